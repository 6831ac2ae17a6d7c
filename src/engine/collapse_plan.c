/* SPDX-License-Identifier: MIT */
/*
 * What is to be done about a hidden layer.
 *
 *   no child        the file is removed (never the disk's first image, and
 *                   only one that qstill made)
 *   one child       merged with it, together with hidden layers below
 *   more children   merged into each of them, or kept while they are several
 *   trash           is left as it is, and so is what trash reads
 *   others' overlay (others.h) neither removed nor folded into, nor merged
 *                   upwards unless the merge itself takes that overlay with it
 *                   (qcow2/children.h): of the same folder, nobody's, VM off
 *
 * The disk's first image is never given up: the head is folded into it when
 * the last snapshot goes, and a frozen layer while the VM is off.
 */
#include <string.h>

#include "collapse_impl.h"
#include "liveswap.h"
#include "lost.h"
#include "qcow2/merge.h"

bool collapse_is_idle(const struct layer *l)
{
    return l->hidden && !l->head && !l->owner && !l->missing && !l->trash;
}

static bool is_trunk(const struct layer *l)
{
    return collapse_is_idle(l) && !l->stuck && l->children == 1;
}

static uint64_t run_bytes(const struct step *st)
{
    uint64_t sum = st->first->allocated;

    for (const struct layer *l = st->first; l != st->last; l = l->below)
        sum += l->below->allocated;
    return sum;
}

/* The layer above a run's end, from the first on. */
static struct layer *before(const struct step *st, const struct layer *end)
{
    struct layer *l = st->first;

    while (l != end && l->below != end)
        l = l->below;
    return l == end ? NULL : l;
}

/* The first image only takes in; it is no part of what is merged upwards. */
static bool leave_first_image(struct step *st)
{
    if (!st->last->first_image)
        return true;
    st->last = before(st, st->last);
    return st->last != NULL;
}

/* What undo may bring back, and what nobody knows who needs it, is neither
 * changed nor given other files. */
static bool has_trash_child(const struct layers *all, const struct layer *l)
{
    const struct layer *child = layers_child(all, l, NULL);

    while (child && !child->trash)
        child = layers_child(all, l, child);
    return child != NULL;
}

static struct step nothing(const char *why)
{
    return (struct step){.kind = STEP_NONE, .why = why};
}

static struct step waits(const char *why, const char *then)
{
    return (struct step){.kind = STEP_NONE, .why = why, .then = then};
}

static struct step held(const struct layer *l, const char *why)
{
    return (struct step){.kind = STEP_NONE, .why = why, .held = l};
}

/* The layer of the run that others do not let a step take away. */
static const struct layer *held_layer(const struct step *st)
{
    bool live = st->first->node || st->child->node;

    for (const struct layer *l = st->first;; l = l->below) {
        if (l->other && (live || l->other_fixed))
            return l;
        if (l == st->last)
            return NULL;
    }
}

/* The same of one that takes the layer above away, too, or its name. */
static const char *upper_holder(const struct collapse *c, const struct step *st)
{
    const struct layer *l = st->child;

    if (!l->other || (!l->node && !l->other_fixed))
        return NULL;
    return arena_printf(&c->s->rec.arena, "of %s, which reads it: %s", l->path,
                        l->other);
}

uint64_t collapse_walk(const struct step *st)
{
    return st->child->node_size / 1000;
}

/* QEMU would leave the lower one its size, and the guest's disk grew back. */
static bool was_shrunk(const struct step *st)
{
    return st->child->node_size < st->last->node_size;
}

/* What lies below a layer that ends before the one above reads as zeros there:
 * QEMU's block-stream takes it for what is to show. */
static bool hides_by_its_end(const struct step *st)
{
    const struct layer *below = st->last->below;
    uint64_t end = st->child->node_size;

    for (const struct layer *l = st->first;; l = l->below) {
        end = l->node_size < end ? l->node_size : end;
        if (l == st->last)
            break;
    }
    return end < st->child->node_size && below && end < below->node_size;
}

/* QEMU's other formats cannot grow. */
static bool outgrows(const struct step *st)
{
    return st->child->node_size > st->last->node_size &&
           qcow2_format_any(st->last->format) == QCOW2_FORMAT_FOREIGN;
}

static struct step pulled_live(struct step st)
{
    if (hides_by_its_end(&st))
        return waits("it ends before the disk, and QEMU's job would show "
                     "what it hides: it is merged when the VM is off",
                     "shut the VM down");
    st.kind = STEP_PULL_LIVE;
    return st;
}

static struct step live_choice(struct collapse *c, struct step st)
{
    if (st.child->head && st.last->first_image && outgrows(&st))
        return nothing("the disk was made larger than its first image, whose "
                       "format cannot grow");
    if (st.child->head && st.last->first_image && was_shrunk(&st))
        return waits("the disk was made smaller: its first image takes the "
                     "head in when the VM is off",
                     "shut the VM down");
    /* QEMU would write to a torn one, and not open it the next time */
    if (st.child->head && !st.last->torn &&
        (st.last->first_image ||
         (st.first->children == 1 && !was_shrunk(&st) &&
          (st.child->allocated <= run_bytes(&st) + collapse_walk(&st) ||
           hides_by_its_end(&st))))) {
        st.kind = STEP_FOLD_LIVE;
        return st.first->children == 1
                   ? st
                   : nothing("others read the disk's first image");
    }
    if (!leave_first_image(&st))
        return nothing("the disk's first image takes a frozen layer in when "
                       "the VM is off");
    /* a swap gives what reads the child another header */
    if (!st.child->head && st.child->owner && c->swaps &&
        liveswap_possible(st.child) && !has_trash_child(&c->all, st.child)) {
        st.kind = STEP_SWAP_LIVE;
        return st;
    }
    return pulled_live(st);
}

static struct step live_step(struct collapse *c, struct step st)
{
    struct step choice = live_choice(c, st);

    return choice.kind != STEP_NONE && upper_holder(c, &st)
               ? held(st.first, upper_holder(c, &st))
               : choice;
}

static struct step off_step(struct collapse *c, struct step st)
{
    st.kind = STEP_MERGE;
    if (st.last->first_image && st.first->children == 1) {
        if (st.child->head &&
            qcow2_format_any(st.last->format) == QCOW2_FORMAT_FOREIGN)
            return waits("the disk's first image is of a format that QEMU "
                         "alone can write to",
                         "start the VM");
        st.kind = st.child->head ? STEP_FOLD : STEP_LOWER;
        if (!st.child->head && !st.child->owner)
            return nothing("what reads it is hidden, too");
        if (upper_holder(c, &st))
            return held(st.first, upper_holder(c, &st));
        if (has_trash_child(&c->all, st.child))
            return nothing(
                "undo, or a damaged snapshot, may need what reads it");
    } else if (!leave_first_image(&st)) {
        return nothing("others read the disk's first image");
    }
    return st;
}

/* A run that several read: one after the other is given what it needs, while
 * QEMU has the run open; else all at once. */
static struct step shared_step(struct collapse *c, struct step st)
{
    struct layer *l = st.first;

    if (l->first_image)
        return nothing(NULL);
    if (l->keep)
        return nothing("several share it");
    if (!l->node)
        return off_step(c, st);
    if (st.child->node)
        return live_step(c, st);
    if (!leave_first_image(&st))
        return nothing(NULL);
    st.kind = STEP_TAKE;
    return st;
}

/* A child that nobody reads is removed first: nothing is merged into it. */
static bool has_dead_child(const struct layers *all, const struct layer *l)
{
    const struct layer *child = layers_child(all, l, NULL);

    while (child && !(collapse_is_idle(child) && child->children == 0))
        child = layers_child(all, l, child);
    return child != NULL;
}

/* The child to begin with: one that can be dealt with. */
static struct layer *usable_child(const struct layers *all,
                                  const struct layer *l)
{
    struct layer *child = layers_child(all, l, NULL);

    while (child && (child->missing || child->stuck))
        child = layers_child(all, l, child);
    return child;
}

static struct step leaf_step(struct collapse *c, struct layer *l)
{
    struct step st = {.kind = STEP_REMOVE, .first = l, .last = l};

    if (l->first_image)
        return nothing(NULL);
    if (!lost_is_ours(c->s, &c->all, l->disk, l->path))
        st.kind = STEP_LEAVE;
    else if (l->other)
        return held(l, l->other);
    else if (c->all.unsure)
        return nothing(c->all.unsure);
    return st;
}

struct step collapse_step(struct collapse *c, struct layer *l)
{
    struct step st = {.first = l, .last = l};

    if (!l->hidden || l->trash || l->stuck)
        return nothing(NULL);
    /* a layer that took others in is a head, or a snapshot's; a process that
     * died had noted it before, as that of a snapshot which went */
    if (l->missing || l->head || l->owner) {
        st.kind = STEP_FORGET;
        return st;
    }
    if (l->children == 0)
        return leaf_step(c, l);
    if (has_dead_child(&c->all, l))
        return nothing(NULL);
    if (has_trash_child(&c->all, l))
        return nothing("undo, or a damaged snapshot, may need what reads it");
    st.child = usable_child(&c->all, l);
    if (!st.child)
        return nothing("what reads it cannot be changed now");
    if (l->children == 1 && is_trunk(st.child))
        return nothing(NULL); /* part of that one's run */
    while (st.last->below && is_trunk(st.last->below))
        st.last = st.last->below;
    if (held_layer(&st))
        return held(held_layer(&st), held_layer(&st)->other);
    if (c->all.unsure)
        return nothing(c->all.unsure);
    if (l->children > 1)
        return shared_step(c, st);
    if (l->node && st.child->node)
        return live_step(c, st);
    if (l->node || st.child->node)
        return nothing("QEMU's chain is another than the files'");
    return off_step(c, st);
}

/* ----------------------------------------------------------------- its price
 */

/* Room that one child needs to do without the layer. */
static uint64_t room_of(struct collapse *c, const struct layer *l,
                        struct layer *child)
{
    struct merge_request r = MERGE_REQUEST_INIT;
    CLEANUP(merge_closep) struct merge *m = NULL;
    struct step st = {STEP_TAKE,
                      child,
                      (struct layer *)(uintptr_t)l,
                      (struct layer *)(uintptr_t)l,
                      NULL,
                      NULL,
                      NULL};
    struct qstill_error ignored = {0};

    r.estimate_only = true;
    if (collapse_request(c, &st, &r, &ignored) < 0 ||
        merge_open(&m, io_real(), &r, &ignored) < 0)
        return l->allocated; /* a head that is being written: at most so */
    return merge_estimate(m)->needed;
}

bool collapse_costs_room(struct collapse *c, const struct layer *l)
{
    uint64_t needed = 0;

    for (struct layer *child = layers_child(&c->all, l, NULL); child;
         child = layers_child(&c->all, l, child))
        needed += room_of(c, l, child);
    return needed >= l->allocated;
}
