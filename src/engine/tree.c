/* SPDX-License-Identifier: MIT */
#include "tree.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "name.h"
#include "store.h"

/* A symbolic link, a fifo and the like in the place of what we made. */
static bool is_strange(int snapsfd, int fd, const char *id)
{
    struct stat st;

    if (fd < 0)
        return fstatat(snapsfd, id, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
               !S_ISDIR(st.st_mode);
    return fstatat(fd, STORE_MANIFEST, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
           !S_ISREG(st.st_mode);
}

static int load_one(int snapsfd, const char *id, struct manifest *m,
                    struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;

    if (store_opendirat(snapsfd, id, &fd, err) < 0 ||
        manifest_load(fd, m, err) < 0) {
        /* A snapshot directory without a manifest is damage, not absence. */
        if (err->code == QSTILL_E_NOT_FOUND || is_strange(snapsfd, fd, id))
            err->code = QSTILL_E_CORRUPT;
        return err_wrap(err, "snapshot %s", id);
    }
    if (strcmp(m->id, id) == 0)
        return 0;
    err_set(err, QSTILL_E_CORRUPT,
            "snapshot %s: manifest.json is damaged: it has the id '%.64s'", id,
            m->id);
    manifest_fini(m);
    return err->code;
}

/* Notes what `err` says of a snapshot and forgets it. */
static int note_damage(struct tree *t, const char *id, struct qstill_error *err)
{
    struct tree_damage *more =
        realloc(t->damaged, (t->damaged_count + 1) * sizeof(*more));
    struct tree_damage d;

    if (!more)
        return err_nomem(err);
    t->damaged = more;
    d = (struct tree_damage){err->code, strdup(id), strdup(err->message),
                             strdup(err->hint)};
    more[t->damaged_count++] = d;
    err_clear(err);
    return d.id && d.message && d.hint ? 0 : err_nomem(err);
}

static int by_time(const void *a, const void *b)
{
    const struct manifest *x = a, *y = b;

    if (x->created_ns != y->created_ns)
        return x->created_ns < y->created_ns ? -1 : 1;
    return strcmp(x->id, y->id);
}

static int by_id(const void *a, const void *b)
{
    return strcmp((*(struct manifest *const *)a)->id,
                  (*(struct manifest *const *)b)->id);
}

/* The node becomes a damaged one; `err` says why. */
static int give_up(struct tree *t, size_t i, struct qstill_error *err)
{
    struct manifest m = t->nodes[i];
    int r = note_damage(t, m.id, err);

    manifest_fini(&m);
    t->nodes[i] = t->nodes[--t->count];
    return r;
}

static void find_parents(struct manifest **sorted, size_t *parent,
                         struct tree *t)
{
    for (size_t i = 0; i < t->count; i++) {
        struct manifest *m = &t->nodes[i], key = {.id = m->parent_id};
        struct manifest *k = &key, **up = NULL;

        parent[i] = SIZE_MAX;
        if (!key.id)
            continue;
        up = bsearch(&k, sorted, t->count, sizeof(k), by_id);
        if (up) {
            parent[i] = (size_t)(*up - t->nodes);
        } else if (!tree_find_damaged(t, key.id)) {
            m->lost_parent = m->parent_id;
            m->parent_id = NULL;
        }
    }
}

/* Each way up is gone once: it ends at a root or at what has been seen. */
static int check_loops(const struct tree *t, const size_t *parent, size_t *seen,
                       size_t *bad, struct qstill_error *err)
{
    for (size_t i = 0; i < t->count; i++)
        for (size_t at = i; at != SIZE_MAX; at = parent[at]) {
            if (seen[at] == i + 1) {
                *bad = at;
                return err_set(err, QSTILL_E_CORRUPT,
                               "snapshot %s: its parents form a loop",
                               t->nodes[at].id);
            }
            if (seen[at] != 0)
                break; /* that way was good */
            seen[at] = i + 1;
        }
    return 0;
}

/* CORRUPT: the node *bad cannot be. */
static int check_parents(struct tree *t, size_t *bad, struct qstill_error *err)
{
    CLEANUP(freep) struct manifest **sorted = NULL;
    CLEANUP(freep) size_t *parent = NULL;
    CLEANUP(freep) size_t *seen = NULL;

    sorted = calloc(t->count + 1, sizeof(*sorted));
    parent = calloc(t->count + 1, sizeof(*parent));
    seen = calloc(t->count + 1, sizeof(*seen));
    if (!sorted || !parent || !seen)
        return err_nomem(err);
    for (size_t i = 0; i < t->count; i++)
        sorted[i] = &t->nodes[i];
    if (t->count > 1)
        qsort(sorted, t->count, sizeof(*sorted), by_id);
    find_parents(sorted, parent, t);
    return check_loops(t, parent, seen, bad, err);
}

/* One after the other: who has lost its parent is a known parent itself. */
static int settle_parents(struct tree *t, struct qstill_error *err)
{
    size_t bad = 0;

    while (check_parents(t, &bad, err) < 0)
        if (err->code != QSTILL_E_CORRUPT || give_up(t, bad, err) < 0)
            return err->code;
    return 0;
}

/* Who only reads holds no lock: a delete may have been faster. */
static bool is_gone(int snapsfd, const char *id)
{
    return faccessat(snapsfd, id, F_OK, AT_SYMLINK_NOFOLLOW) < 0 &&
           errno == ENOENT;
}

static int load_all(struct tree *t, int snapsfd, char **names, size_t count,
                    struct qstill_error *err)
{
    t->nodes = calloc(count + 1, sizeof(*t->nodes));
    if (!t->nodes)
        return err_nomem(err);
    for (size_t i = 0; i < count; i++) {
        if (names[i][0] == '.') /* being made or being removed */
            continue;
        if (load_one(snapsfd, names[i], &t->nodes[t->count], err) == 0)
            t->count++;
        else if (err->code == QSTILL_E_CORRUPT && is_gone(snapsfd, names[i]))
            err_clear(err);
        else if ((err->code != QSTILL_E_CORRUPT &&
                  err->code != QSTILL_E_PRECONDITION) ||
                 note_damage(t, names[i], err) < 0)
            return err->code;
    }
    return settle_parents(t, err);
}

int tree_load(int vmfd, struct tree *out, struct qstill_error *err)
{
    CLEANUP(closep) int snapsfd = -1;
    struct tree t = {0};
    char **names = NULL;
    size_t count = 0;

    if (store_open_snapshots(vmfd, &snapsfd, err) < 0 ||
        store_names(snapsfd, &names, &count, err) < 0)
        return err->code;
    load_all(&t, snapsfd, names, count, err);
    store_names_free(names, count);
    if (err->code < 0) {
        tree_fini(&t);
        return err->code;
    }
    if (t.count > 1)
        qsort(t.nodes, t.count, sizeof(*t.nodes), by_time);
    *out = t;
    return 0;
}

void tree_fini(struct tree *t)
{
    for (size_t i = 0; i < t->count; i++)
        manifest_fini(&t->nodes[i]);
    for (size_t i = 0; i < t->damaged_count; i++) {
        free(t->damaged[i].id);
        free(t->damaged[i].message);
        free(t->damaged[i].hint);
    }
    free(t->nodes);
    free(t->damaged);
    *t = (struct tree){0};
}

const struct tree_damage *tree_find_damaged(const struct tree *t,
                                            const char *id)
{
    for (size_t i = 0; i < t->damaged_count; i++)
        if (strcmp(t->damaged[i].id, id) == 0)
            return &t->damaged[i];
    return NULL;
}

const char *tree_damage_word(const struct tree_damage *d)
{
    return d->code == QSTILL_E_CORRUPT ? "damaged" : "of another version";
}

struct manifest *tree_find(const struct tree *t, const char *id)
{
    for (size_t i = 0; i < t->count; i++)
        if (strcmp(t->nodes[i].id, id) == 0)
            return &t->nodes[i];
    return NULL;
}

struct manifest *tree_named(const struct tree *t, const char *name,
                            const struct manifest *after)
{
    for (size_t i = after ? (size_t)(after - t->nodes) + 1 : 0; i < t->count;
         i++)
        if (strcmp(t->nodes[i].name, name) == 0)
            return &t->nodes[i];
    return NULL;
}

struct manifest *tree_taken(const struct tree *t, const char *name)
{
    struct manifest *m = tree_find(t, name);

    return m ? m : tree_named(t, name, NULL);
}

static int ambiguous(const struct manifest *a, const struct manifest *b,
                     struct qstill_error *err)
{
    err_set(err, QSTILL_E_PRECONDITION,
            "two snapshots have the name %s: %s "
            "and %s",
            a->name, a->id, b->id);
    return err_hint(err, "name it by its id, or give it another name: qstill "
                         "rename VM ID NEW");
}

int tree_resolve(const struct tree *t, const char *snap, struct manifest **out,
                 struct qstill_error *err)
{
    struct manifest *found = tree_find(t, snap), *second = NULL;
    const struct tree_damage *d = tree_find_damaged(t, snap);

    if (name_check("snapshot name", snap, err) < 0)
        return err->code;
    if (d) {
        err_set(err, d->code, "%s", d->message);
        return err_hint(err, "%s", d->hint);
    }
    if (!found) {
        found = tree_named(t, snap, NULL);
        second = found ? tree_named(t, snap, found) : NULL;
    }
    if (second)
        return ambiguous(found, second, err);
    if (!found) {
        err_set(err, QSTILL_E_NOT_FOUND, "no snapshot named %s", snap);
        return err_hint(err, t->damaged_count == 0
                                 ? "qstill list shows them"
                                 : "the names of damaged ones are not known: "
                                   "qstill list shows their ids");
    }
    *out = found;
    return 0;
}

size_t tree_children(const struct tree *t, const char *id)
{
    size_t n = 0;

    for (size_t i = 0; i < t->count; i++)
        if (t->nodes[i].parent_id && strcmp(t->nodes[i].parent_id, id) == 0)
            n++;
    return n;
}

struct manifest *tree_owner(const struct tree *t, const char *path)
{
    for (size_t i = 0; i < t->count; i++)
        for (size_t k = 0; k < t->nodes[i].disk_count; k++)
            if (strcmp(t->nodes[i].disks[k].path, path) == 0)
                return &t->nodes[i];
    return NULL;
}
