/* SPDX-License-Identifier: MIT */
/*
 * The plan of a delete: the same steps as layers_collapse() would take, on a
 * graph in memory; in words, and whether others are in the way. Bytes come from
 * the images' maps where nobody writes them, else from the files' sizes, which
 * are upper bounds.
 */
#include <string.h>

#include "collapse_impl.h"
#include "layer_file.h"
#include "livechain.h"
#include "others.h"
#include "qcow2/children.h"
#include "qcow2/merge.h"
#include "trash.h"

/* Bytes per second of QEMU's own jobs, which go one piece at a time. */
#define JOB_RATE 200e6

struct price {
    const char *direction;
    uint64_t moved, freed;
    double seconds;
};

static uint64_t allocated(const struct step *st)
{
    uint64_t sum = 0;

    for (const struct layer *l = st->first;; l = l->below) {
        sum += l->allocated;
        if (l == st->last)
            return sum;
    }
}

static struct price guess(const struct step *st)
{
    struct price p = {"up", allocated(st), 0, 0};

    if (st->kind == STEP_FOLD_LIVE || st->kind == STEP_FOLD)
        p = (struct price){"down", st->child->allocated, st->child->allocated,
                           0};
    else if (st->first->children == 1)
        p.freed = p.moved;
    p.seconds = (double)p.moved / JOB_RATE;
    if (st->kind == STEP_PULL_LIVE)
        p.seconds += (double)collapse_walk(st) / JOB_RATE;
    return p;
}

/* Our own merges are asked; what cannot be read now is guessed. */
static struct price price_of(struct collapse *c, const struct step *st)
{
    struct merge_request r = MERGE_REQUEST_INIT;
    CLEANUP(merge_closep) struct merge *m = NULL;
    struct qstill_error ignored = {0};
    const struct merge_estimate *e;
    struct price p;

    if (step_is_cheap(st))
        return (struct price){
            "none", 0, st->kind == STEP_REMOVE ? st->first->allocated : 0, 0};
    if (st->kind == STEP_FOLD_LIVE || st->kind == STEP_PULL_LIVE ||
        collapse_request(c, st, &r, &ignored) < 0)
        return guess(st);
    r.estimate_only = true;
    if (st->kind == STEP_SWAP_LIVE) {
        r.output = "/nonexistent";
        r.child_count = 0;
    }
    if (merge_open(&m, io_real(), &r, &ignored) < 0)
        return guess(st);
    e = merge_estimate(m);
    p = (struct price){e->direction, e->bytes - e->shared, e->freed,
                       e->seconds};
    if (st->kind == STEP_SWAP_LIVE) {
        uint64_t old = st->child->allocated +
                       (st->first->children == 1 ? allocated(st) : 0);

        p.freed = old > e->bytes ? old - e->bytes : 0;
    }
    return p;
}

/* ---------------------------------------------------------------- simulation
 */

static void link_to(struct layer *l, struct layer *below)
{
    if (l->below)
        l->below->children--;
    l->below = below;
    if (below)
        below->children++;
}

static void vanish(struct layer *l)
{
    link_to(l, NULL);
    l->hidden = l->head = false;
    l->owner = NULL;
    l->node = NULL;
    l->path = ""; /* no request names it again */
}

/* Our own merges take the files of the run away themselves. */
static void vanish_run(const struct step *st, bool last_too)
{
    struct layer *l = st->first;

    while (l != st->last) {
        struct layer *below = l->below;

        vanish(l);
        l = below;
    }
    if (last_too)
        vanish(l);
}

static void simulate(struct collapse *c, const struct step *st)
{
    struct layer *below = st->last->below;
    bool all = st->kind == STEP_MERGE;

    if (st->kind == STEP_FORGET && !st->first->missing) {
        st->first->hidden = false;
        return;
    }
    if (step_is_cheap(st)) {
        vanish(st->first);
        return;
    }
    if (st->kind == STEP_FOLD || st->kind == STEP_FOLD_LIVE ||
        st->kind == STEP_LOWER) {
        st->last->hidden = false;
        st->last->head = st->child->head;
        st->last->owner = st->child->owner;
        for (struct layer *l; (l = layers_child(&c->all, st->child, NULL));)
            link_to(l, st->last);
        vanish(st->child);
        if (st->kind != STEP_FOLD_LIVE)
            vanish_run(st, false);
        return;
    }
    for (struct layer *l = layers_child(&c->all, st->first, NULL), *next; l;
         l = next) {
        next = layers_child(&c->all, st->first, l);
        if (all || l == st->child)
            link_to(l, below);
    }
    if (all)
        vanish_run(st, true);
}

/* --------------------------------------------------------------------- words
 */

static void say(struct collapse *c, const struct step *st, struct price p)
{
    static const char *const how[] = {
        [STEP_FORGET] = "forget",
        [STEP_REMOVE] = "remove",
        [STEP_LEAVE] = "leave (no layer that qstill has made of that disk)",
        [STEP_MERGE] = "merge",
        [STEP_TAKE] = "merge",
        [STEP_LOWER] = "merge into the disk's first image",
        [STEP_FOLD] = "merge",
        [STEP_FOLD_LIVE] = "fold by QEMU",
        [STEP_PULL_LIVE] = "pull by QEMU",
        [STEP_SWAP_LIVE] = "merge into a new file and swap",
    };

    buf_printf(c->text, "disk %s: %s", st->first->disk, how[st->kind]);
    for (const struct layer *l = st->first;; l = l->below) {
        buf_printf(c->text, " %s", l->path);
        if (l == st->last)
            break;
    }
    if (st->child)
        buf_printf(c->text, " with %s (%s)", st->child->path, p.direction);
    buf_printf(c->text, ": moves %llu bytes, frees about %llu, takes %.1f s\n",
               (unsigned long long)p.moved, (unsigned long long)p.freed,
               p.seconds);
}

static void choose_kept(struct collapse *c)
{
    for (size_t i = 0; c->j->keep_hidden && i < c->all.count; i++) {
        struct layer *l = &c->all.items[i];

        if (collapse_is_idle(l) && l->children > 1)
            l->keep |= collapse_costs_room(c, l);
    }
}

/* ------------------------------------------------------------------ the run
 */

struct foresight {
    struct collapse c;
    const char **was; /* by index: the snapshot that goes and had the layer */
    const struct tree_damage *damaged; /* that stays: nothing is touched then */
    struct price total;
};

/* Others have it open: told now, while nothing has been done yet. */
static int check_use(struct foresight *f, const struct layer *l,
                     struct qstill_error *err)
{
    struct qstill_error ignored = {0};
    const struct qmp_graph *g;

    /* what our QEMU has open it closes before */
    if (l->node || layer_check_unused(l->path, err) == 0)
        return 0;
    if (err->code != QSTILL_E_BUSY)
        return err->code;
    g = collapse_graph(&f->c, &ignored);
    if (g && livechain_has_open(f->c.s, g, l->path))
        return err_clear(err);
    return err->code;
}

static int refuse(struct foresight *f, const struct layer *l,
                  struct qstill_error *err)
{
    const char *id = f->was[l - f->c.all.items];
    const struct manifest *m = tree_find(&f->c.s->tree, id);

    return err_wrap(err, "snapshot %s, disk %s", m ? m->name : id, l->disk);
}

static int take(struct foresight *f, const struct step *st,
                struct qstill_error *err)
{
    const struct layer *l = st->first;

    if (st->kind == STEP_REMOVE && f->was[l - f->c.all.items] &&
        check_use(f, l, err) < 0)
        return refuse(f, l, err);
    if (!step_is_cheap(st) && collapse_check(&f->c, st, err) < 0)
        return err->code;
    if (f->c.text) {
        struct price p = price_of(&f->c, st);

        say(&f->c, st, p);
        f->total.moved += p.moved;
        f->total.freed += p.freed;
        f->total.seconds += p.seconds;
    }
    simulate(&f->c, st);
    return 0;
}

/* What nobody reads goes first, from the leaves down: parents mostly stand
 * before their children. */
static int take_cheap(struct foresight *f, bool *any, struct qstill_error *err)
{
    for (size_t i = f->c.all.count; i-- > 0;) {
        struct step st = collapse_step(&f->c, &f->c.all.items[i]);

        if (!step_is_cheap(&st))
            continue;
        *any = true;
        if (take(f, &st, err) < 0)
            return err->code;
    }
    return 0;
}

static int take_merge(struct foresight *f, bool *any, struct qstill_error *err)
{
    for (size_t i = 0; i < f->c.all.count; i++) {
        struct step st = collapse_step(&f->c, &f->c.all.items[i]);

        if (st.kind == STEP_NONE || step_is_cheap(&st))
            continue;
        *any = true;
        return take(f, &st, err);
    }
    return 0;
}

static int take_all(struct foresight *f, struct qstill_error *err)
{
    bool any = true;

    choose_kept(&f->c);
    /* each step takes a layer or a link away */
    for (size_t left = 2 * f->c.all.count + 2; any && left; left--) {
        any = false;
        if (take_cheap(f, &any, err) < 0 ||
            (!any && take_merge(f, &any, err) < 0))
            return err->code;
    }
    return 0;
}

static int check_held(struct foresight *f, struct qstill_error *err)
{
    for (size_t i = 0; i < f->c.all.count; i++) {
        struct layer *l = &f->c.all.items[i];
        struct step st = {0};

        if (!f->was[i] || !collapse_is_idle(l))
            continue;
        st = collapse_step(&f->c, l);
        if (!st.held)
            continue;
        err_set(err, QSTILL_E_PRECONDITION, "%s must stay: %s", st.held->path,
                st.why);
        err_hint(err, OTHERS_HINT);
        /* what was hidden before is no snapshot's */
        return refuse(f, f->was[st.held - f->c.all.items] ? st.held : l, err);
    }
    return 0;
}

static void say_rest(struct foresight *f)
{
    struct collapse *c = &f->c;

    for (size_t i = 0; i < c->all.count; i++) {
        const struct layer *l = &c->all.items[i];
        struct step st = collapse_step(c, &c->all.items[i]);

        if (collapse_is_idle(l))
            buf_printf(c->text, "disk %s: %s stays hidden%s%s\n", l->disk,
                       l->path, st.why ? ": " : "", st.why ? st.why : "");
    }
    buf_printf(c->text,
               "all: moves %llu bytes of disks, frees about %llu, takes about "
               "%.1f s\n",
               (unsigned long long)f->total.moved,
               (unsigned long long)f->total.freed, f->total.seconds);
}

/* Trash whose last operation this is: no undo brings it back. */
static void expire(struct foresight *f)
{
    struct session *s = f->c.s;

    if (f->c.text)
        trash_say_last(s, NULL, f->c.text);
    for (size_t i = 0; i < s->rec.trash_count; i++) {
        const struct vm_trash *t = &s->rec.trash[i];

        if (t->keep > 1)
            continue;
        for (size_t k = 0; k < t->layer_count; k++) {
            struct layer *l = layers_named(&f->c.all, t->layers[k].path);

            if (!l || trash_outlives(s, l->path))
                continue;
            l->trash = false;
            l->hidden = true;
        }
    }
}

/* What the delete hides, or keeps for undo. */
static int hide(struct foresight *f, bool (*gone)(void *user, const char *id),
                void *user, struct qstill_error *err)
{
    struct collapse *c = &f->c;

    f->was = arena_array(&c->s->rec.arena, c->all.count + 1, sizeof(*f->was));
    if (!f->was)
        return err_nomem(err);
    for (size_t i = 0; i < c->all.count; i++) {
        struct layer *l = &c->all.items[i];

        if (!l->owner || !gone(user, l->owner))
            continue;
        l->trash = c->j->keep_trash > 0;
        l->hidden = !l->trash;
        if (!l->trash)
            f->was[i] = l->owner;
        else if (c->text)
            buf_printf(c->text, "disk %s: %s stays for undo\n", l->disk,
                       l->path);
        l->owner = NULL;
    }
    for (size_t i = 0; i < c->s->tree.damaged_count && !f->damaged; i++)
        if (!gone(user, c->s->tree.damaged[i].id))
            f->damaged = &c->s->tree.damaged[i];
    return 0;
}

static int look_ahead(struct foresight *f, struct qstill_error *err)
{
    struct collapse *c = &f->c;

    if (f->damaged) {
        if (c->text)
            buf_printf(c->text,
                       "no layer is merged or removed: snapshot %s is %s, and "
                       "may need it\n",
                       f->damaged->id, tree_damage_word(f->damaged));
        return 0;
    }
    if (take_all(f, err) < 0)
        return err->code;
    if (c->text)
        say_rest(f);
    return check_held(f, err);
}

int layers_foresee(struct session *s, const struct journal *j,
                   bool (*gone)(void *user, const char *id), void *user,
                   struct buf *text, struct qstill_error *err)
{
    struct journal copy = *j;
    struct foresight f = {
        .c = {.s = s, .j = &copy, .text = text, .seen = children_seen_new()}};

    const struct qmp_graph *g = collapse_graph(&f.c, err);

    if (err->code == 0 && layers_load(s, &f.c.all, err) == 0 &&
        livechain_mark(s, g, &f.c.all, err) == 0 &&
        others_mark(s, &f.c.all, f.c.seen, err) == 0 &&
        hide(&f, gone, user, err) == 0) {
        expire(&f);
        look_ahead(&f, err);
    }
    layers_fini(&f.c.all);
    collapse_graph_changed(&f.c);
    children_seen_free(f.c.seen);
    return err->code;
}
