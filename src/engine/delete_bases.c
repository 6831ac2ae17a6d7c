/* SPDX-License-Identifier: MIT */
/*
 * Whether what the disks were made on hinders a delete. A merge needs it; and
 * once the last snapshot is gone, nothing tells of a disk on another base. A
 * layer that only goes needs nothing: whoever has lost a base for good can
 * still remove what stands on it.
 */
#include <string.h>

#include "bases.h"
#include "delete_impl.h"
#include "layers.h"
#include "trash.h"

bool delete_merges(const struct del *c, const struct manifest *m)
{
    const struct tree *t = &c->s.tree;
    const struct manifest *up =
        m->parent_id ? tree_find(t, m->parent_id) : NULL;

    return c->doomed[delete_index(t, m)] ||
           (up && c->doomed[delete_index(t, up)]);
}

/* When the delete is done, nothing needs the file itself. */
static bool goes(const struct del *c, const struct layer *l)
{
    const struct manifest *m =
        l->owner ? tree_find(&c->s.tree, l->owner) : NULL;

    if (l->head || (l->trash && trash_outlives(&c->s, l->path)))
        return false;
    return l->owner ? m && c->doomed[delete_index(&c->s.tree, m)] : true;
}

/* By index: what stays, and all that it stands on. */
static bool *find_needed(struct del *c, const struct layers *all)
{
    bool *needed = arena_array(&c->arena, all->count + 1, sizeof(*needed));

    for (size_t i = 0; needed && i < all->count; i++)
        if (!goes(c, &all->items[i]))
            for (const struct layer *l = &all->items[i];
                 l && !needed[l - all->items]; l = l->below)
                needed[l - all->items] = true;
    return needed;
}

/* A doomed one on which nothing stands that stays. */
static bool only_goes(const struct del *c, const struct layers *all,
                      const bool *needed, const struct manifest *m)
{
    if (!c->doomed[delete_index(&c->s.tree, m)])
        return false;
    for (size_t i = 0; i < m->disk_count; i++) {
        const struct layer *l = layers_find(all, m->disks[i].path);

        if (l && needed[l - all->items])
            return false;
    }
    return true;
}

bool delete_only_goes(struct del *c, const struct layers *all,
                      const struct manifest *m)
{
    const bool *needed = find_needed(c, all);

    return needed && only_goes(c, all, needed, m);
}

static bool any_stays(const struct del *c)
{
    for (size_t i = 0; i < c->s.tree.count; i++)
        if (!c->doomed[i])
            return true;
    return false;
}

/* Forced, it is said once. */
static int weigh(struct del *c, bool *said, struct qstill_error *err)
{
    if (!c->o.force ||
        (err->code != QSTILL_E_CORRUPT && err->code != QSTILL_E_NOT_FOUND))
        return err->code;
    if (!*said)
        store_note(c->store, "%s", err->message);
    *said = true;
    return err_clear(err);
}

struct check {
    struct bases b;
    bool *needed;
    bool gone, other; /* said */
};

static int check_one(struct del *c, struct check *k, const struct layers *all,
                     const struct manifest *m, struct qstill_error *err)
{
    bool merged = !only_goes(c, all, k->needed, m);

    if (!merged && any_stays(c))
        return 0;
    if (merged && bases_reach(&k->b, m, err) < 0) {
        if (err->code == QSTILL_E_NOT_FOUND && c->s.pid == 0)
            err_hint(err,
                     "no layer can be merged without it: put it back; --force "
                     "deletes the snapshots, and what would be merged stays "
                     "as it is");
        return weigh(c, &k->gone, err);
    }
    if (bases_check(&k->b, m, err) == 0)
        return 0;
    if (!merged && err->code == QSTILL_E_NOT_FOUND)
        return err_clear(err);
    if (err->code != QSTILL_E_BUSY)
        err_hint(err, BASES_HINT "; --force goes on without it");
    return weigh(c, &k->other, err);
}

static int check_all(struct del *c, struct check *k, const struct layers *all,
                     struct qstill_error *err)
{
    for (size_t i = 0; i < c->s.tree.count; i++)
        if (delete_merges(c, &c->s.tree.nodes[i]) &&
            check_one(c, k, all, &c->s.tree.nodes[i], err) < 0)
            return err->code;
    return 0;
}

/* Of a running VM the names lead elsewhere than to what QEMU has open. */
static int check_open(struct del *c, const struct check *k,
                      const struct layers *all, struct qstill_error *err)
{
    for (size_t i = 0; i < c->s.tree.count; i++) {
        const struct manifest *m = &c->s.tree.nodes[i];

        if (delete_merges(c, m) &&
            (!any_stays(c) || !only_goes(c, all, k->needed, m)))
            return session_check_bases(&c->s, err);
    }
    return 0;
}

int delete_check_bases(struct del *c, const struct layers *all,
                       struct qstill_error *err)
{
    struct check k = {.needed = find_needed(c, all)};

    if (!k.needed)
        return err_nomem(err);
    if (bases_init(&k.b, &c->s, err) == 0 && check_open(c, &k, all, err) == 0)
        check_all(c, &k, all, err);
    bases_fini(&k.b);
    return err->code;
}
