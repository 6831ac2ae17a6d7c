/* SPDX-License-Identifier: MIT */
#include "bases.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "layer_file.h"
#include "reach.h"
#include "session.h"

/* Below one first layer. */
struct base_list {
    struct base_list *next; /* looked at before */
    const struct manifest_disk *first;
    const char *lowest; /* the layer above all these */
    size_t count;
    struct manifest_disk *items;
    struct qstill_error why; /* NOT_FOUND: behind the last one */
    bool told;
    bool owners_known;
};

/* ------------------------------------------------------------------- looking
 */

struct look {
    struct bases *b;
    struct base_list *list;
    bool below; /* the image at hand is no layer */
};

static bool is_among(const struct vm_hidden *layers, size_t count,
                     const char *path)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(layers[i].path, path) == 0)
            return true;
    return false;
}

/* Where a disk came from, which may have another name there. */
static bool is_first_image(const struct bases *b, const char *path)
{
    struct stat st;

    if (b->first_count == 0 || stat(path, &st) < 0)
        return false;
    for (size_t i = 0; i < b->first_count; i++)
        if (b->firsts[i].ino == st.st_ino && b->firsts[i].dev == st.st_dev)
            return true;
    return false;
}

/* A layer of the VM, which a deleted snapshot's is until it is merged. */
static bool is_layer(const struct bases *b, const char *path)
{
    const struct vm_record *rec = &b->s->rec;

    if (tree_owner(&b->s->tree, path) ||
        is_among(rec->hidden, rec->hidden_count, path))
        return true;
    for (size_t i = 0; i < rec->trash_count; i++)
        if (is_among(rec->trash[i].layers, rec->trash[i].layer_count, path))
            return true;
    return is_first_image(b, path);
}

static bool is_data(const char *format)
{
    return strcmp(format, REACH_DATA) == 0;
}

/* What is met above a layer is one, too: of a snapshot that was given up, or is
 * damaged, of which nobody knows what it had. */
static int take(void *user, const char *path, const char *format,
                struct qstill_error *err)
{
    struct look *l = user;
    struct bases *b = l->b;
    struct base_list *list = l->list;
    struct manifest_disk *d;

    if (!is_data(format)) {
        l->below = strcmp(path, list->first->path) != 0 && !is_layer(b, path);
        if (!l->below) {
            list->count = 0;
            list->lowest = arena_strdup(&b->arena, path);
            return list->lowest ? 0 : err_nomem(err);
        }
    }
    if (!l->below || list->count == MANIFEST_BASES_MAX)
        return 0;
    d = &list->items[list->count];
    *d = (struct manifest_disk){0};
    d->path = arena_strdup(&b->arena, path);
    d->format = arena_strdup(&b->arena, format);
    if (!d->path || !d->format)
        return err_nomem(err);
    layer_identify_base(&b->arena, d);
    list->count++;
    return 0;
}

/* What is not to be found, or not to be read, ends the list. */
static struct base_list *look_below(struct bases *b,
                                    const struct manifest_disk *first,
                                    struct qstill_error *err)
{
    struct base_list *list = b->seen;
    struct look l = {.b = b};
    struct reach reach;

    while (list && strcmp(list->first->path, first->path) != 0)
        list = list->next;
    if (list)
        return list;
    list = arena_alloc(&b->arena, sizeof(*list));
    if (list)
        list->items = arena_array(&b->arena, MANIFEST_BASES_MAX + 1,
                                  sizeof(*list->items));
    if (!list || !list->items) {
        err_nomem(err);
        return NULL;
    }
    list->first = first;
    list->lowest = first->path; /* also when it cannot be opened */
    l.list = list;
    reach_init(&reach, geteuid(), getegid());
    reach.each = take;
    reach.user = &l;
    reach_chain(&reach, first->path, first->format, &list->why);
    list->next = b->seen;
    b->seen = list;
    return list;
}

/* ------------------------------------------------------------------ snapshots
 */

/* All layers of a disk stand on its first image. */
static int find_firsts(struct bases *b, struct qstill_error *err)
{
    struct vm_record *rec = &b->s->rec;

    b->firsts = arena_array(&b->arena, rec->disk_count + 1, sizeof(*b->firsts));
    if (!b->firsts)
        return err_nomem(err);
    for (size_t i = 0; i < rec->disk_count; i++) {
        const char *path = session_first_image(rec, &rec->disks[i]);
        struct stat st;

        if (!path)
            return err_nomem(err);
        if (path[0] != '/' || stat(path, &st) < 0)
            continue;
        b->firsts[b->first_count].dev = st.st_dev;
        b->firsts[b->first_count++].ino = st.st_ino;
    }
    return 0;
}

int bases_init(struct bases *b, struct session *s, struct qstill_error *err)
{
    const struct tree *t = &s->tree;

    *b = (struct bases){.s = s, .arena = ARENA_INIT};
    b->owners = (struct base_owners){.s = s, .arena = &b->arena};
    b->up = arena_array(&b->arena, t->count + 1, sizeof(*b->up));
    if (!b->up)
        return err_nomem(err);
    for (size_t i = 0; i < t->count; i++)
        if (t->nodes[i].parent_id)
            b->up[i] = tree_find(t, t->nodes[i].parent_id);
    return find_firsts(b, err);
}

void bases_fini(struct bases *b)
{
    base_owners_fini(&b->owners);
    arena_fini(&b->arena);
}

/* The disk's lowest layer that a snapshot has: in `up` and its ancestors, or
 * `d` itself. */
static const struct manifest_disk *first_of(const struct bases *b,
                                            const struct manifest *up,
                                            const struct manifest_disk *d)
{
    const struct manifest_disk *below;
    const char *name = d->name;

    for (; up && (below = manifest_disk(up, name)) != NULL;
         up = b->up[up - b->s->tree.nodes])
        d = below;
    return d;
}

static void add_old_name(const char *path, struct qstill_error *err)
{
    struct qstill_error said = *err;

    err_set(err, said.code, "%s; it was %s", said.message, path);
}

/* As they were, one by one; files of data that were not kept then are passed
 * over. *at: where it goes on. */
static int compare_run(const struct manifest_disk *then, size_t count,
                       const struct base_list *list, size_t *at,
                       struct qstill_error *err)
{
    for (size_t i = 0; i < count; i++, ++*at) {
        const struct manifest_disk *now;

        while (!is_data(then[i].format) && *at < list->count &&
               is_data(list->items[*at].format))
            ++*at;
        if (!then[i].ino)
            continue;
        if (*at >= list->count) {
            if (list->why.code == QSTILL_E_NOT_FOUND)
                *err = list->why;
            return err->code;
        }
        now = &list->items[*at];
        if (layer_check_base(&then[i], now, err) == 0)
            continue;
        if (strcmp(then[i].path, now->path) != 0)
            add_old_name(then[i].path, err);
        return err->code;
    }
    return 0;
}

/* Layers of another VM that follow each other are one. */
static size_t run_of(const struct manifest_disk *d, size_t from)
{
    const char *vm = d->bases[from].owner_vm;
    size_t n = 1;

    while (vm && from + n < d->base_count && d->bases[from + n].owner_vm &&
           strcmp(d->bases[from + n].owner_vm, vm) == 0)
        n++;
    return n;
}

/* How many of the list the other VM vouches for; 0: it does not, and *err says
 * what was found. */
static size_t vouched(struct bases *b, const struct manifest *m,
                      const struct manifest_disk *then, size_t count,
                      const struct base_list *list, size_t at,
                      struct qstill_error *err)
{
    struct qstill_error why = {0};
    size_t n = 0;

    if (!then->owner_vm || err->code != QSTILL_E_CORRUPT)
        return 0;
    if (base_owners_vouch(&b->owners, m, then, count, &list->items[at],
                          list->count - at, &n, &why) < 0) {
        *err = why;
        return 0;
    }
    if (n > 0)
        err_clear(err);
    return n;
}

static int compare(struct bases *b, const struct manifest *m,
                   const struct manifest_disk *d, const struct base_list *list,
                   struct qstill_error *err)
{
    size_t at = 0, count;

    for (size_t i = 0; i < d->base_count; i += count) {
        const struct manifest_disk *then = &d->bases[i];
        size_t next = at, n = 0;

        count = run_of(d, i);
        if (compare_run(then, count, list, &next, err) < 0) {
            n = vouched(b, m, then, count, list, at, err);
            if (n == 0)
                return err->code;
            next = at + n;
        }
        at = next;
    }
    return 0;
}

/* What to do about it; of a file that is gone QEMU may still have the bytes. */
static int hint(const struct bases *b, const char *else_,
                struct qstill_error *err)
{
    if (err->code == QSTILL_E_BUSY)
        return err->code;
    if (err->code == QSTILL_E_NOT_FOUND && b->s->pid > 0)
        return err_hint(err,
                        "put it back; the VM that runs has it open still, as "
                        "one of /proc/%d/fd: a copy that keeps the time (cp "
                        "-p) will do when the VM is started anew",
                        b->s->pid);
    return err_hint(err, "%s", else_);
}

static int check_disk(struct bases *b, const struct manifest *m,
                      const struct manifest_disk *d, struct base_list **list,
                      struct qstill_error *err)
{
    *list = NULL;
    if (d->base_count == 0)
        return 0;
    *list = look_below(b, first_of(b, b->up[m - b->s->tree.nodes], d), err);
    if (!*list)
        return err->code;
    if (compare(b, m, d, *list, err) == 0)
        return 0;
    err_wrap(err, "snapshot %s: below disk %s", m->name, d->name);
    return hint(b, BASES_HINT, err);
}

int bases_check(struct bases *b, const struct manifest *m,
                struct qstill_error *err)
{
    struct base_list *list;

    for (size_t i = 0; i < m->disk_count; i++)
        if (check_disk(b, m, &m->disks[i], &list, err) < 0)
            return err->code;
    return 0;
}

int bases_reach(struct bases *b, const struct manifest *m,
                struct qstill_error *err)
{
    for (size_t i = 0; i < m->disk_count; i++) {
        const struct manifest_disk *d = &m->disks[i];
        const struct base_list *list =
            look_below(b, first_of(b, b->up[m - b->s->tree.nodes], d), err);

        if (!list || list->why.code == 0)
            continue;
        *err = list->why;
        err_wrap(err, "snapshot %s", m->name);
        return hint(b, "no layer can be merged without it: put it back", err);
    }
    return err->code;
}

int bases_check_one(struct session *s, const struct manifest *m, bool force,
                    struct qstill_error *err)
{
    CLEANUP(bases_fini) struct bases b;

    if (bases_init(&b, s, err) < 0 || bases_check(&b, m, err) == 0)
        return err->code;
    if (!force && err->code == QSTILL_E_BUSY)
        return err->code;
    if (!force)
        return err_hint(err, BASES_HINT "; --force takes it as it is");
    store_note(s->store, "%s", err->message);
    return err_clear(err);
}

void bases_note(struct session *s, const char *snapshot)
{
    const struct manifest *m = snapshot ? tree_find(&s->tree, snapshot) : NULL;
    struct qstill_error ignored = {0};

    if (m)
        bases_check_one(s, m, true, &ignored);
}

/* Below one layer all see the same. */
static bool is_told(const struct base_list *seen, const struct base_list *list)
{
    for (; seen; seen = seen->next)
        if (seen->told && strcmp(seen->lowest, list->lowest) == 0)
            return true;
    return false;
}

int bases_foresee(struct session *s, bases_tell_fn *tell, void *user,
                  struct qstill_error *err)
{
    CLEANUP(bases_fini) struct bases b;

    if (bases_init(&b, s, err) < 0)
        return err->code;
    for (size_t i = 0; i < s->tree.count; i++) {
        const struct manifest *m = &s->tree.nodes[i];

        for (size_t k = 0; k < m->disk_count; k++) {
            struct qstill_error why = {0};
            struct base_list *list;

            if (check_disk(&b, m, &m->disks[k], &list, &why) == 0)
                continue;
            if (!list)
                return (*err = why).code;
            if (!is_told(b.seen, list) && why.code == QSTILL_E_BUSY)
                store_note(s->store, "%s", why.message);
            else if (!is_told(b.seen, list))
                tell(user, &why);
            list->told = true;
        }
    }
    return 0;
}

/* -------------------------------------------------------------------- keeping
 */

/* NULL stays NULL. */
static bool copy(struct manifest *m, const char *from, const char **to)
{
    *to = from ? arena_strdup(&m->arena, from) : NULL;
    return *to || !from;
}

/* By their real names: a link on the way may point elsewhere later. */
static int keep(struct manifest *m, struct manifest_disk *d,
                const struct base_list *list, struct qstill_error *err)
{
    d->bases = arena_array(&m->arena, list->count + 1, sizeof(*d->bases));
    if (!d->bases)
        return err_nomem(err);
    for (; d->base_count < list->count; d->base_count++) {
        const struct manifest_disk *from = &list->items[d->base_count];
        struct manifest_disk *to = &d->bases[d->base_count];
        CLEANUP(freep) char *real = realpath(from->path, NULL);

        if (!real)
            return 0; /* it has just gone */
        *to = *from;
        to->path = arena_strdup(&m->arena, real);
        to->format = arena_strdup(&m->arena, from->format);
        if (!to->path || !to->format ||
            !copy(m, from->header_hash, &to->header_hash) ||
            !copy(m, from->owner_vm, &to->owner_vm) ||
            !copy(m, from->owner_snapshot, &to->owner_snapshot))
            return err_nomem(err);
    }
    return 0;
}

static int find_owners(struct bases *b, struct base_list *list,
                       struct qstill_error *err)
{
    if (list->owners_known)
        return 0;
    list->owners_known = true;
    return base_owners_find(&b->owners, list->items, list->count, err);
}

int bases_keep(struct session *s, struct manifest *m, struct qstill_error *err)
{
    const struct manifest *up =
        s->rec.current ? tree_find(&s->tree, s->rec.current) : NULL;
    CLEANUP(bases_fini) struct bases b;

    if (bases_init(&b, s, err) < 0)
        return err->code;
    for (size_t i = 0; i < m->disk_count; i++) {
        struct manifest_disk *d = &m->disks[i];
        struct base_list *list = look_below(&b, first_of(&b, up, d), err);

        if (!list || find_owners(&b, list, err) < 0 ||
            keep(m, d, list, err) < 0)
            return err->code;
    }
    return 0;
}
