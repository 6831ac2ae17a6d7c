/* SPDX-License-Identifier: MIT */
/*
 * The plan of a delete in words: the same steps as layers_collapse() would
 * take, on a graph in memory. Bytes come from the images' maps where nobody
 * writes them, else from the files' sizes, which are upper bounds.
 */
#include <string.h>

#include "collapse_impl.h"
#include "livechain.h"
#include "qcow2/merge.h"

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

    if (st->kind == STEP_REMOVE || st->kind == STEP_FORGET)
        return (struct price){
            "none", 0, st->kind == STEP_REMOVE ? st->first->allocated : 0, 0};
    if (st->kind == STEP_FOLD_LIVE || st->kind == STEP_PULL_LIVE ||
        collapse_request(c, st, &r, &ignored) < 0)
        return guess(st);
    if (st->kind == STEP_SWAP_LIVE) {
        r.output = "/nonexistent";
        r.child_count = 0;
    }
    if (merge_open(&m, io_real(), &r, &ignored) < 0)
        return guess(st);
    e = merge_estimate(m);
    p = (struct price){e->direction, e->bytes, e->freed, e->seconds};
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

static void simulate(struct collapse *c, const struct step *st)
{
    struct layer *below = st->last->below;
    bool all = st->kind == STEP_MERGE;

    if (st->kind == STEP_FORGET && !st->first->missing) {
        st->first->hidden = false;
        return;
    }
    if (st->kind == STEP_REMOVE || st->kind == STEP_FORGET) {
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
        return;
    }
    for (struct layer *l = layers_child(&c->all, st->first, NULL), *next; l;
         l = next) {
        next = layers_child(&c->all, st->first, l);
        if (all || l == st->child)
            link_to(l, below);
    }
}

/* --------------------------------------------------------------------- words
 */

static void say(struct collapse *c, const struct step *st, struct price p)
{
    static const char *const how[] = {
        [STEP_FORGET] = "forget",
        [STEP_REMOVE] = "remove",
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

static bool next_step(struct collapse *c, struct step *st)
{
    for (size_t i = 0; i < c->all.count; i++) {
        *st = collapse_step(c, &c->all.items[i]);
        if (st->kind != STEP_NONE)
            return true;
    }
    return false;
}

static void say_rest(struct collapse *c)
{
    for (size_t i = 0; i < c->all.count; i++) {
        const struct layer *l = &c->all.items[i];
        struct step st = collapse_step(c, &c->all.items[i]);

        if (collapse_is_idle(l))
            buf_printf(c->text, "disk %s: %s stays hidden%s%s\n", l->disk,
                       l->path, st.why ? ": " : "", st.why ? st.why : "");
    }
}

static void run(struct collapse *c)
{
    struct price total = {0};
    struct step st;

    choose_kept(c);
    /* each step takes a layer or a link away */
    for (size_t left = 2 * c->all.count + 2; left && next_step(c, &st);
         left--) {
        struct price p = price_of(c, &st);

        say(c, &st, p);
        total.moved += p.moved;
        total.freed += p.freed;
        total.seconds += p.seconds;
        simulate(c, &st);
    }
    say_rest(c);
    buf_printf(c->text,
               "all: moves %llu bytes of disks, frees about %llu, takes about "
               "%.1f s\n",
               (unsigned long long)total.moved, (unsigned long long)total.freed,
               total.seconds);
}

int layers_describe(struct session *s, const struct journal *j,
                    bool (*gone)(void *user, const char *id), void *user,
                    struct buf *text, struct qstill_error *err)
{
    struct journal copy = *j;
    struct collapse c = {
        .s = s, .j = &copy, .text = text, .seen = children_seen_new()};

    if (layers_load(s, &c.all, err) == 0 &&
        livechain_mark(s, &c.all, err) == 0) {
        for (size_t i = 0; i < c.all.count; i++) {
            struct layer *l = &c.all.items[i];

            if (!l->owner || !gone(user, l->owner))
                continue;
            l->owner = NULL;
            l->hidden = true;
        }
        if (s->tree.damaged_count == 0)
            run(&c);
        else
            buf_printf(text,
                       "no layer is merged or removed: snapshot %s is damaged, "
                       "and may need it\n",
                       s->tree.damaged[0].id);
    }
    layers_fini(&c.all);
    children_seen_free(c.seen);
    return err->code;
}
