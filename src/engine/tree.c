/* SPDX-License-Identifier: MIT */
#include "tree.h"

#include <string.h>

#include "name.h"
#include "store.h"

static int load_one(int snapsfd, const char *id, struct manifest *m,
                    struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;

    if (store_opendirat(snapsfd, id, &fd, err) < 0 ||
        manifest_load(fd, m, err) < 0) {
        /* A snapshot directory without a manifest is damage, not absence. */
        if (err->code == QSTILL_E_NOT_FOUND)
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

static int find_parents(struct manifest **sorted, size_t count, size_t *parent,
                        const struct tree *t, struct qstill_error *err)
{
    for (size_t i = 0; i < count; i++) {
        struct manifest key = {.id = t->nodes[i].parent_id}, *k = &key;
        struct manifest **up = NULL;

        parent[i] = SIZE_MAX;
        if (!key.id)
            continue;
        up = bsearch(&k, sorted, count, sizeof(k), by_id);
        if (!up)
            return err_set(err, QSTILL_E_CORRUPT,
                           "snapshot %s: its parent %.64s does not exist",
                           t->nodes[i].id, key.id);
        parent[i] = (size_t)(*up - t->nodes);
    }
    return 0;
}

/* Each way up is gone once: it ends at a root or at what has been seen. */
static int check_loops(const struct tree *t, const size_t *parent, size_t *seen,
                       struct qstill_error *err)
{
    for (size_t i = 0; i < t->count; i++)
        for (size_t at = i; at != SIZE_MAX; at = parent[at]) {
            if (seen[at] == i + 1)
                return err_set(err, QSTILL_E_CORRUPT,
                               "snapshot %s: its parents form a loop",
                               t->nodes[i].id);
            if (seen[at] != 0)
                break; /* that way was good */
            seen[at] = i + 1;
        }
    return 0;
}

static int check_parents(const struct tree *t, struct qstill_error *err)
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
    if (find_parents(sorted, t->count, parent, t, err) < 0)
        return err->code;
    return check_loops(t, parent, seen, err);
}

int tree_load(int vmfd, struct tree *out, struct qstill_error *err)
{
    CLEANUP(closep) int snapsfd = -1;
    struct tree t = {0, NULL};
    char **names = NULL;
    size_t count = 0;
    int r = 0;

    if (store_open_snapshots(vmfd, &snapsfd, err) < 0 ||
        store_names(snapsfd, &names, &count, err) < 0)
        return err->code;
    t.nodes = calloc(count + 1, sizeof(*t.nodes));
    if (!t.nodes)
        r = err_nomem(err);
    for (size_t i = 0; i < count && r == 0; i++) {
        if (names[i][0] == '.') /* being made or being removed */
            continue;
        r = load_one(snapsfd, names[i], &t.nodes[t.count], err);
        if (r == 0)
            t.count++;
    }
    store_names_free(names, count);
    if (r == 0)
        r = check_parents(&t, err);
    if (r < 0) {
        tree_fini(&t);
        return r;
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
    free(t->nodes);
    t->nodes = NULL;
    t->count = 0;
}

struct manifest *tree_find(const struct tree *t, const char *id)
{
    for (size_t i = 0; i < t->count; i++)
        if (strcmp(t->nodes[i].id, id) == 0)
            return &t->nodes[i];
    return NULL;
}

int tree_resolve(const struct tree *t, const char *snap, struct manifest **out,
                 struct qstill_error *err)
{
    struct manifest *found = tree_find(t, snap);

    if (name_check("snapshot name", snap, err) < 0)
        return err->code;
    for (size_t i = 0; !found && i < t->count; i++) {
        if (strcmp(t->nodes[i].name, snap) != 0)
            continue;
        found = &t->nodes[i];
    }
    if (!found) {
        err_set(err, QSTILL_E_NOT_FOUND, "no snapshot named %s", snap);
        return err_hint(err, "qstill list shows them");
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
