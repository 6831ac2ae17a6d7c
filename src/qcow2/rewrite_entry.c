/* SPDX-License-Identifier: MIT */
/*
 * One cluster of the result: what the view shows there, and the entry that
 * says so, with the bytes that have to come for it.
 */
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "l2.h"
#include "rewrite_impl.h"

/* ------------------------------------------------------------------ looking */

/* What the view shows in a range. */
struct look {
    bool own;         /* bytes of the target itself */
    bool other;       /* bytes of other layers */
    bool own_zeros;   /* zeros of the target itself */
    bool other_zeros; /* zeros of other layers, or of a short one */
    bool gap;         /* falls through */
    bool covered;     /* by one extent: */
    struct extent whole;
};

static void look_at(const struct rewrite *rw, const struct extent *e,
                    struct look *l)
{
    bool own = e->layer == rw->own && e->kind != EXTENT_PAST_END;

    if (extent_is_zero(e)) {
        l->own_zeros |= own;
        l->other_zeros |= !own;
    } else if (extent_has_bytes(e)) {
        l->own |= own;
        l->other |= !own;
    } else {
        l->gap = true;
    }
}

static void look_at_one(const struct work *w, struct look *l)
{
    l->covered = true;
    l->whole = w->view.e;
    look_at(w->rw, &l->whole, l);
}

static void look_at_all(const struct work *w, uint64_t from, uint64_t to,
                        struct look *l)
{
    uint64_t pos = from;

    for (struct extent_walk x = w->view; x.on && x.e.guest < to;
         extents_next(&x)) {
        l->gap |= x.e.guest > pos;
        look_at(w->rw, &x.e, l);
        pos = extent_end(&x.e);
    }
    l->gap |= pos < to;
}

static struct look look(struct work *w, uint64_t from, uint64_t to)
{
    struct look l = {0};

    extents_seek(&w->view, from);
    if (!w->view.on || w->view.e.guest >= to)
        l.gap = true;
    else if (w->view.e.guest <= from && extent_end(&w->view.e) >= to)
        look_at_one(w, &l);
    else
        look_at_all(w, from, to, &l);
    /* the last unit is made anew, with zeros behind the end */
    if (w->stale_end && to == w->rw->size && l.own)
        l.other = true;
    return l;
}

enum state {
    KEEP,    /* as the target has it */
    NOTHING, /* falls through, and what is below reads as zeros */
    ZEROS,
    BYTES,
};

static enum state state_of(struct work *w, const struct look *l, uint64_t guest)
{
    bool below = w->rw->has_backing && guest < w->rw->backing_size;

    if (!l->other && !l->other_zeros)
        return KEEP;
    if (!l->own && !l->other) {
        if (!below)
            return NOTHING;
        if (!l->gap && w->h->version >= 3)
            return ZEROS;
    }
    w->rw->needs_below |= l->gap && below;
    return BYTES;
}

/* -------------------------------------------------------------- one cluster */

static int out_of_memory(struct qstill_error *err)
{
    return err_nomem(err);
}

/* Notes that nothing refers to the old entry's clusters any more. */
int work_free_entry(struct work *w, const struct l2_entry *e,
                    struct qstill_error *err)
{
    uint64_t first = e->host / w->cs, count = 1;

    if (e->kind == L2_NONE || e->host == 0)
        return 0;
    if (e->kind == L2_COMPRESSED)
        count = (e->host + e->clen - 1) / w->cs - first + 1;
    return runs_push(&w->rw->freed, first, count) < 0 ? out_of_memory(err) : 0;
}

struct l2_entry work_entry(const struct work *w, const uint8_t *p)
{
    if (w->extended)
        return l2_decode_ext(w->h, get_be64(p), get_be64(p + 8));
    return l2_decode(w->h, get_be64(p));
}

static int new_cluster(struct work *w, uint64_t *host, struct qstill_error *err)
{
    uint64_t first, got;

    if (alloc_run(&w->rw->alloc, 1, &first, &got, err) < 0)
        return err->code;
    *host = first * w->cs;
    return 0;
}

static int move_guest(struct work *w, uint64_t guest, uint64_t dst,
                      uint64_t len, struct qstill_error *err)
{
    struct move m = {
        .from = guest, .dst = dst, .len = len, .layer = MOVE_GUEST};

    w->rw->bytes += len;
    return moves_push(&w->rw->moves, &m) < 0 ? out_of_memory(err) : 0;
}

/* A whole compressed cluster of the same kind can be taken over as it is; not
 * with what may lie in it behind the end, which a growing disk would show. */
static bool can_stay_packed(const struct work *w, const struct look *l,
                            uint64_t guest)
{
    const struct extent *e = &l->whole;
    const struct image *img;

    if (!l->covered || e->kind != EXTENT_COMPRESSED || e->layer == w->rw->own ||
        e->guest != guest || e->clen > w->cs)
        return false;
    img = w->rw->chain->layers[e->layer];
    return img->cluster_size == w->cs &&
           img->info.header.compression_type == w->h->compression_type &&
           guest + w->cs <= w->rw->size;
}

static int keep_packed(struct work *w, const struct extent *e, size_t at,
                       struct qstill_error *err)
{
    if (rewrite_make_room((void **)&w->packed, w->packed_n, &w->packed_cap,
                          sizeof(*w->packed)) < 0)
        return out_of_memory(err);
    w->packed[w->packed_n++] = (struct packed){.slot = w->rw->l2.n,
                                               .at = at,
                                               .host = e->host,
                                               .clen = e->clen,
                                               .layer = e->layer};
    return 0;
}

/* ------------------------------------------------- clusters that are in use */

/* May the cluster of an entry take other bytes as it stands? Nothing else
 * refers to it, snapshots and compressed data included, and it lies wholly
 * within the disk, before and after. */
static bool can_overwrite(const struct work *w, const struct l2_entry *old,
                          uint64_t guest)
{
    const struct rewrite *rw = w->rw;
    uint64_t end = min_u64(rw->size, rw->target->size);

    return rw->overwrite && old->host != 0 && old->kind != L2_COMPRESSED &&
           old->kind != L2_BAD && guest + w->cs <= end &&
           rw->refs.count[old->host / w->cs] == 1;
}

static int overwrite(struct work *w, uint64_t guest, uint64_t dst, uint64_t len,
                     struct qstill_error *err)
{
    struct move m = {.from = guest,
                     .dst = dst,
                     .len = len,
                     .layer = MOVE_GUEST,
                     .over = true};

    w->rw->bytes += len;
    w->rw->over += len;
    return moves_push(&w->rw->moves, &m) < 0 ? out_of_memory(err) : 0;
}

/* What other layers show in [from, to), all of which the target has bytes for,
 * from `dst` on. Bytes of its own are not touched. */
static int overwrite_others(struct work *w, uint64_t from, uint64_t to,
                            uint64_t dst, struct qstill_error *err)
{
    extents_seek(&w->view, from);
    for (struct extent_walk x = w->view; x.on && x.e.guest < to;
         extents_next(&x)) {
        const struct extent *e = &x.e;
        uint64_t at = max_u64(e->guest, from);
        uint64_t end = min_u64(extent_end(e), to);

        if ((e->layer == w->rw->own && e->kind != EXTENT_PAST_END) || end <= at)
            continue;
        if (overwrite(w, at, dst + (at - from), end - at, err) < 0)
            return err->code;
    }
    return 0;
}

static int plan_cluster(struct work *w, uint8_t *p, size_t at, uint64_t guest,
                        struct qstill_error *err)
{
    uint64_t end = min_u64(guest + w->cs, w->rw->size), host = 0;
    struct look l = look(w, guest, end);
    struct l2_entry old = work_entry(w, p);
    enum state s = state_of(w, &l, guest);

    if (s == KEEP)
        return 0;
    if (s == BYTES && can_overwrite(w, &old, guest) &&
        !can_stay_packed(w, &l, guest)) {
        put_be64(p, old.host | QCOW2_COPIED);
        if (old.kind == L2_DATA)
            return overwrite_others(w, guest, end, old.host, err);
        /* of zeros; what its cluster holds is nobody's */
        return overwrite(w, guest, old.host, w->cs, err);
    }
    if (work_free_entry(w, &old, err) < 0)
        return err->code;
    put_be64(p, s == ZEROS ? QCOW2_ZERO : 0);
    if (s != BYTES)
        return 0;
    if (can_stay_packed(w, &l, guest))
        return keep_packed(w, &l.whole, at, err);
    if (new_cluster(w, &host, err) < 0)
        return err->code;
    put_be64(p, host | QCOW2_COPIED);
    return move_guest(w, guest, host, w->cs, err);
}

/* ------------------------------------------------------- with subclusters */

struct subs {
    uint32_t has;   /* with bytes, in the result */
    uint32_t zeros; /* in the result */
    uint32_t bytes; /* those whose bytes come from elsewhere */
    bool changed;
};

static struct subs look_at_subs(struct work *w, const struct l2_entry *old,
                                uint64_t guest)
{
    struct subs s = {0};

    for (unsigned i = 0; i < QCOW2_SUBCLUSTERS; i++) {
        uint64_t from = guest + i * w->unit;
        uint64_t to = min_u64(from + w->unit, w->rw->size);
        uint32_t bit = 1u << i;
        struct look l;
        enum state st;

        if (from >= w->rw->size) {
            s.changed |=
                w->cut && ((old->has & bit) || old->kind == L2_COMPRESSED);
            continue;
        }
        l = look(w, from, to);
        st = state_of(w, &l, from);
        s.changed |= st != KEEP;
        s.bytes |= st == BYTES ? bit : 0;
        if (st == BYTES ||
            (st == KEEP && ((old->has & bit) || old->kind == L2_COMPRESSED)))
            s.has |= bit;
        else if (st == ZEROS || (st == KEEP && (old->zeros & bit)))
            s.zeros |= bit;
    }
    return s;
}

/* A new cluster for the subclusters with bytes, also for those that the target
 * had in its old one. */
static int move_subs(struct work *w, const struct subs *s, uint64_t guest,
                     uint64_t host, struct qstill_error *err)
{
    for (unsigned i = 0; i < QCOW2_SUBCLUSTERS; i++)
        if ((s->has & 1u << i) &&
            move_guest(w, guest + i * w->unit, host + i * w->unit, w->unit,
                       err) < 0)
            return err->code;
    return 0;
}

/* Into the cluster that the target has. What its bitmap does not show is free
 * to be written as a whole. */
static int overwrite_subs(struct work *w, const struct subs *s,
                          const struct l2_entry *old, uint64_t guest,
                          struct qstill_error *err)
{
    for (unsigned i = 0; i < QCOW2_SUBCLUSTERS; i++) {
        uint64_t from = guest + i * w->unit, dst = old->host + i * w->unit;

        if (!(s->bytes & 1u << i))
            continue;
        if (((old->has & 1u << i)
                 ? overwrite_others(w, from, from + w->unit, dst, err)
                 : overwrite(w, from, dst, w->unit, err)) < 0)
            return err->code;
    }
    return 0;
}

static int plan_extended(struct work *w, uint8_t *p, size_t at, uint64_t guest,
                         struct qstill_error *err)
{
    uint64_t end = min_u64(guest + w->cs, w->rw->size), host;
    struct l2_entry old = work_entry(w, p);
    struct look l = look(w, guest, end);
    struct extent_walk start = w->view;
    struct subs s;

    if (can_stay_packed(w, &l, guest)) {
        put_be64(p, 0);
        put_be64(p + 8, 0);
        if (work_free_entry(w, &old, err) < 0)
            return err->code;
        return keep_packed(w, &l.whole, at, err);
    }
    s = look_at_subs(w, &old, guest);
    if (!s.changed)
        return 0;
    /* the old cluster stays when its bytes are all that is needed; its bits
     * may go, bytes never change */
    host = old.kind == L2_COMPRESSED || !s.has ? 0 : old.host;
    w->view = start;
    if (s.bytes && can_overwrite(w, &old, guest)) {
        if (overwrite_subs(w, &s, &old, guest, err) < 0)
            return err->code;
        host = old.host;
        put_be64(p, host | QCOW2_COPIED);
    } else if (s.bytes || (s.has && !host)) {
        if (new_cluster(w, &host, err) < 0 ||
            move_subs(w, &s, guest, host, err) < 0)
            return err->code;
    }
    if ((host != old.host || old.kind == L2_COMPRESSED) &&
        work_free_entry(w, &old, err) < 0)
        return err->code;
    if (host != old.host || !host || old.kind == L2_COMPRESSED)
        put_be64(p, host ? host | QCOW2_COPIED : 0);
    put_be64(p + 8, (uint64_t)s.zeros << 32 | s.has);
    return 0;
}

/* --------------------------------------------------------------------- either
 */

int work_plan_entry(struct work *w, uint8_t *table, size_t at, uint64_t guest,
                    struct qstill_error *err)
{
    return (w->extended ? plan_extended : plan_cluster)(w, table + at, at,
                                                        guest, err);
}
