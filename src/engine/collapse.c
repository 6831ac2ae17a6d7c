/* SPDX-License-Identifier: MIT */
/*
 * Merging hidden layers away. One pass looks at the whole graph and does one
 * merge; passes repeat until nothing more can be done. Each pass starts from
 * what the images' headers say, so that it may be cut and run again anywhere.
 */
#include <string.h>
#include <unistd.h>

#include "collapse_impl.h"
#include "head_zeroes.h"
#include "headlock.h"
#include "heads.h"
#include "layer_file.h"
#include "livechain.h"
#include "liveswap.h"
#include "others.h"
#include "protect.h"
#include "qcow2/children.h"
#include "reach.h"
#include "spare.h"
#include "trash.h"

/* A layer that cannot be merged now is left alone: in use, of a format that
 * only QEMU writes, no room for its data, changed by others, on a base that is
 * gone. It reads as before. When it is the store that is full, record and files
 * are not of one mind: only the next command, which reads both anew, can go on.
 */
static bool can_wait(const struct collapse *c, const struct qstill_error *err)
{
    return c->changed || c->no_base || err->code == QSTILL_E_BUSY ||
           err->code == QSTILL_E_PRECONDITION ||
           (err->code == QSTILL_E_NO_SPACE && c->no_room);
}

/* That a manifest names a file does not make it ours. */
static void leave_file(struct collapse *c, const struct layer *l)
{
    store_note(c->s->store,
               "%s stays: a snapshot of disk %s named it, but it is no layer "
               "that qstill has made of that disk; if nobody needs it: "
               "chattr -i FILE; rm FILE",
               l->path, l->disk);
}

static int drop_file(struct collapse *c, const struct layer *l,
                     struct qstill_error *err)
{
    const struct qmp_graph *g = collapse_graph(c, err);

    if (err->code < 0 || (g && livechain_release(c->s, g, l->path, err) < 0) ||
        layer_remove_unused(l->path, err) < 0)
        return err->code;
    if (c->text)
        buf_printf(c->text, "removed %s\n", l->path);
    return 0;
}

static int take_step(struct collapse *c, const struct step *st,
                     struct qstill_error *err)
{
    switch (st->kind) {
    case STEP_NONE:
    case STEP_FORGET:
    case STEP_REMOVE:
    case STEP_LEAVE:
        return 0; /* those of sweep() */
    case STEP_MERGE:
    case STEP_TAKE:
    case STEP_LOWER:
    case STEP_FOLD:
        return collapse_off(c, st, err);
    case STEP_FOLD_LIVE:
    case STEP_PULL_LIVE:
    case STEP_SWAP_LIVE:
        return collapse_live(c, st, err);
    }
    return 0;
}

/* Layers that have been given up for now, by path: passes load anew. */
struct stuck {
    char **paths;
    size_t count;
};

static void stuck_fini(struct stuck *x)
{
    for (size_t i = 0; i < x->count; i++)
        free(x->paths[i]);
    free(x->paths);
}

static int stuck_add(struct stuck *x, const char *path,
                     struct qstill_error *err)
{
    char **more = realloc(x->paths, (x->count + 1) * sizeof(*more));

    if (!more)
        return err_nomem(err);
    x->paths = more;
    more[x->count] = strdup(path);
    if (!more[x->count])
        return err_nomem(err);
    x->count++;
    return 0;
}

static bool any_idle(const struct layers *all)
{
    for (size_t i = 0; i < all->count; i++)
        if (collapse_is_idle(&all->items[i]))
            return true;
    return false;
}

static int load(struct collapse *c, const struct stuck *stuck,
                struct qstill_error *err)
{
    struct layers old = c->all;
    const struct qmp_graph *g;

    memset(&c->all, 0, sizeof(c->all));
    layers_reload(c->s, &old, &c->all, err);
    layers_fini(&old);
    if (err->code < 0)
        return err->code;
    if (c->patched)
        collapse_graph_changed(c);
    g = collapse_graph(c, err);
    if (err->code < 0 || livechain_mark(c->s, g, &c->all, err) < 0 ||
        (any_idle(&c->all) && others_mark(c->s, &c->all, c->seen, err) < 0))
        return err->code;
    for (size_t i = 0; i < stuck->count; i++) {
        struct layer *l = layers_find(&c->all, stuck->paths[i]);

        if (l)
            l->stuck = true;
    }
    return 0;
}

/* --keep-hidden: a layer that several share stays if it is cheaper so. */
static int choose_kept(struct collapse *c, struct qstill_error *err)
{
    bool any = false;

    for (size_t i = 0; c->j->keep_hidden && i < c->all.count; i++) {
        struct layer *l = &c->all.items[i];

        if (!collapse_is_idle(l) || l->children < 2 || l->keep ||
            !collapse_costs_room(c, l))
            continue;
        vmrecord_keep(&c->s->rec, l->path);
        any = l->keep = true;
    }
    return any ? vmrecord_save(c->s->vmfd, &c->s->rec, err) : 0;
}

/* All layers are there, and what they stand on is not. */
static bool lacks_base(const struct step *st)
{
    struct qstill_error ignored = {0};
    struct reach reach;

    for (const struct layer *l = st->child; l; l = l->below)
        if (l->missing)
            return false;
    reach_init(&reach, geteuid(), getegid());
    return reach_chain(&reach, st->child->path, st->child->format, &ignored) ==
           QSTILL_E_NOT_FOUND;
}

/* The graph of this disk is another now; those of others are as they were. */
static void leave_disk(struct collapse *c, const char *disk)
{
    for (size_t i = 0; i < c->all.count; i++)
        if (strcmp(c->all.items[i].disk, disk) == 0)
            c->all.items[i].stuck = true;
}

static void tell_stuck(struct collapse *c, const struct step *st,
                       const struct qstill_error *why)
{
    if (c->no_room)
        store_note(c->s->store,
                   "%s is still there, for there is no room to merge it: "
                   "make some, then run qstill recover %s",
                   st->first->path, c->s->vm);
    else if (c->changed)
        store_note(c->s->store,
                   "%s is not merged: %s; bring the original file back, then "
                   "run qstill recover %s (with --force it is taken as it is)",
                   st->first->path, why->message, c->s->vm);
    else
        store_note(c->s->store,
                   "%s stays for now: %s; qstill recover %s goes on later",
                   st->first->path, why->message, c->s->vm);
}

static int give_up_for_now(struct collapse *c, struct stuck *stuck,
                           const struct step *st,
                           const struct qstill_error *why,
                           struct qstill_error *err)
{
    if (c->text)
        buf_printf(c->text, "%s stays hidden: %s\n", st->first->path,
                   why->message);
    tell_stuck(c, st, why);
    return stuck_add(stuck, st->first->path, err);
}

/* ---------------------------------------------------- what nobody reads */

/* In memory. What is left is a child still, of whatever it reads. */
static void let_go(struct collapse *c, const struct step *st)
{
    struct layer *l = st->first;

    vmrecord_unhide(&c->s->rec, l->path);
    l->hidden = false;
    if (st->kind == STEP_LEAVE || !l->below || l->head || l->owner)
        return;
    l->below->children--;
    l->below = NULL;
}

static int sweep_one(struct collapse *c, struct stuck *stuck,
                     const struct step *st, struct qstill_error *err)
{
    struct qstill_error why = {0};

    if (st->kind == STEP_LEAVE)
        leave_file(c, st->first);
    if (st->kind != STEP_REMOVE || drop_file(c, st->first, &why) == 0) {
        let_go(c, st);
        return 0;
    }
    c->no_room = c->changed = c->no_base = false;
    if (!can_wait(c, &why)) {
        *err = why;
        return err->code;
    }
    st->first->stuck = true;
    return give_up_for_now(c, stuck, st, &why, err);
}

/* The names of one wave are gone for good before the files below go: a file
 * without its backing file could not be told to be one of ours. */
static int sync_wave(const struct layer *const *wave, size_t n,
                     struct qstill_error *err)
{
    const char *synced = NULL; /* mostly all are in one folder */

    for (size_t i = 0; i < n; i++) {
        const char *path = wave[i]->path, *slash = strrchr(path, '/');
        size_t len = slash ? (size_t)(slash - path) + 1 : 0;

        if (synced && strncmp(synced, path, len) == 0 &&
            !strchr(synced + len, '/'))
            continue;
        if (layer_sync_dir(path, err) < 0)
            return err->code;
        synced = path;
    }
    return 0;
}

static int sweep_wave(struct collapse *c, struct stuck *stuck,
                      struct step *wave, bool *any, struct qstill_error *err)
{
    CLEANUP(freep) const struct layer **removed = NULL;
    size_t n = 0, gone = 0;

    for (size_t i = 0; i < c->all.count; i++) {
        wave[n] = collapse_step(c, &c->all.items[i]);
        n += step_is_cheap(&wave[n]);
    }
    removed = calloc(n + 1, sizeof(*removed));
    if (!removed)
        return err_nomem(err);
    for (size_t i = 0; i < n; i++) {
        if (sweep_one(c, stuck, &wave[i], err) < 0)
            return err->code;
        if (wave[i].kind == STEP_REMOVE && !wave[i].first->hidden)
            removed[gone++] = wave[i].first;
    }
    *any = n > 0;
    return sync_wave(removed, gone, err);
}

/* From the leaves down. The record follows at the end: what is gone by then it
 * forgets in any case. */
static int sweep(struct collapse *c, struct stuck *stuck, bool *more,
                 struct qstill_error *err)
{
    CLEANUP(freep) struct step *wave = calloc(c->all.count + 1, sizeof(*wave));
    bool any = true;

    if (!wave)
        return err_nomem(err);
    while (any) {
        if (sweep_wave(c, stuck, wave, &any, err) < 0)
            return err->code;
        *more |= any;
    }
    return *more ? vmrecord_save(c->s->vmfd, &c->s->rec, err) : 0;
}

static int one_pass(struct collapse *c, struct stuck *stuck, bool *more,
                    struct qstill_error *err)
{
    *more = false;
    if (load(c, stuck, err) < 0 || choose_kept(c, err) < 0 ||
        sweep(c, stuck, more, err) < 0)
        return err->code;
    if (*more) /* the merges see the graph anew */
        return 0;
    for (size_t i = 0; i < c->all.count; i++) {
        struct step st = collapse_step(c, &c->all.items[i]);
        struct qstill_error why = {0};

        if (st.kind == STEP_NONE)
            continue;
        *more = true;
        c->no_room = false;
        c->wanted = UINT64_MAX;
        c->changed = collapse_check(c, &st, &why) < 0;
        if (!c->changed && collapse_expect(c, &st, &why) == 0 &&
            take_step(c, &st, &why) == 0) {
            leave_disk(c, st.first->disk);
            continue;
        }
        c->no_base = why.code == QSTILL_E_NOT_FOUND && lacks_base(&st);
        if (!can_wait(c, &why)) {
            *err = why;
            return err->code;
        }
        leave_disk(c, st.first->disk);
        /* once more: the least that a merge needs is a journal */
        if (c->no_room && spare_give_up(c->s->vmfd, c->wanted))
            continue;
        if (give_up_for_now(c, stuck, &st, &why, err) < 0)
            return err->code;
    }
    return 0;
}

int layers_settle(struct session *s, struct journal *j,
                  struct qstill_error *err)
{
    /* what QEMU has pulled is known anew when nobody writes to it any more */
    if (livechain_settle_pull(s, j, err) < 0 ||
        collapse_settle_off(s, j, err) < 0)
        return err->code;
    return liveswap_settle(s, j, err);
}

/* What a merge may write, rename or remove is no longer immutable. */
static int open_protected(struct session *s, struct qstill_error *err)
{
    CLEANUP(layers_fini) struct layers all = {0};

    if (layers_load(s, &all, err) < 0)
        return err->code;
    return protect_open_hidden(&all, err);
}

/* What others need stays; somebody may wait for its room. So does what can only
 * be merged in another state of the VM, which the caller may not know of. */
static void tell_held(struct collapse *c)
{
    for (size_t i = 0; i < c->all.count; i++) {
        struct layer *l = &c->all.items[i];
        struct step st = collapse_step(c, l);

        if (!collapse_is_idle(l) || !st.why)
            continue;
        if (c->text)
            buf_printf(c->text, "%s stays hidden: %s\n", l->path, st.why);
        if (st.then)
            store_note(c->s->store, "%s stays: %s; %s, then: qstill recover %s",
                       l->path, st.why, st.then, c->s->vm);
        else if (st.held || st.why == c->all.unsure)
            store_note(c->s->store,
                       "%s stays: %s; when that is over: qstill recover %s",
                       st.held ? st.held->path : l->path, st.why, c->s->vm);
    }
}

static int wait_for_mending(struct session *s, struct buf *text,
                            struct qstill_error *err)
{
    protect_all(s);
    if (text && s->rec.hidden_count > 0)
        buf_printf(text,
                   "%zu layer(s) stay hidden: snapshot %s is %s, and may "
                   "need them\n",
                   s->rec.hidden_count, s->tree.damaged[0].id,
                   tree_damage_word(&s->tree.damaged[0]));
    return trash_identify(s) ? vmrecord_save(s->vmfd, &s->rec, err) : 0;
}

int layers_collapse(struct session *s, struct journal *j, struct buf *text,
                    struct qstill_error *err)
{
    struct collapse c = {.s = s, .j = j, .text = text};
    struct stuck stuck = {0};
    bool more = true;

    headlock_release(s); /* what a merge writes to, it locks itself */
    if (session_wake_images(s, err) < 0 || open_protected(s, err) < 0 ||
        layers_settle(s, j, err) < 0)
        return err->code;
    /* a damaged snapshot may need any of them */
    if (s->tree.damaged_count > 0)
        return wait_for_mending(s, text, err);
    c.seen = children_seen_new();
    while (more && one_pass(&c, &stuck, &more, err) == 0)
        ;
    /* what a process that died here had closed in part */
    if (err->code == 0 && s->qmp)
        heads_sweep(s, j, err);
    if (err->code == 0) {
        head_zeroes_keep(s);
        tell_held(&c);
    }
    if (err->code == 0)
        collapse_identify_rest(&c, err);
    layers_fini(&c.all);
    collapse_graph_changed(&c);
    children_seen_free(c.seen);
    stuck_fini(&stuck);
    if (err->code == 0)
        protect_all(s); /* not after a failure: it goes on where it stopped */
    if (err->code == 0 && text && s->rec.hidden_count > 0)
        buf_printf(text, "%zu layer%s stay%s hidden for now\n",
                   s->rec.hidden_count, s->rec.hidden_count == 1 ? "" : "s",
                   s->rec.hidden_count == 1 ? "s" : "");
    return err->code;
}
