/* SPDX-License-Identifier: MIT */
/*
 * Slot by slot (a slot is what one L2 table maps): where the view shows
 * something that is not the target's own, the entries are made anew.
 */
#include "rewrite.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "l2.h"
#include "rewrite_impl.h"
#include "snaps.h"
#include "torn.h"

/* ---------------------------------------------------------------- one slot */

static void work_finip(struct work *w)
{
    free(w->packed);
}

static int read_table(const struct work *w, uint64_t index, uint8_t *table,
                      struct qstill_error *err)
{
    const struct image *t = w->rw->target;
    uint64_t off = index < t->info.header.l1_size
                       ? t->l1[index] & QCOW2_L1_OFFSET_MASK
                       : 0;
    size_t got = 0;

    if (off && io_read_upto(t->io, t->fd, table, w->cs, off, &got, err) < 0)
        return err_wrap(err, "%s: L2 table", t->path);
    memset(table + got, 0, w->cs - got);
    return 0;
}

/* Entries [from, end) of a table are given up. */
static int give_up(struct work *w, uint8_t *table, size_t from,
                   struct qstill_error *err)
{
    for (size_t at = from; at < w->cs; at += w->entry) {
        struct l2_entry e = work_entry(w, table + at);

        if (work_free_entry(w, &e, err) < 0)
            return err->code;
        memset(table + at, 0, w->entry);
    }
    return 0;
}

/* The slot in which the disk ends; clusters up to `done` are planned. */
static int plan_cut(struct work *w, uint8_t *table, uint64_t from,
                    uint64_t done, struct qstill_error *err)
{
    uint64_t last = round_down_u64(w->rw->size, w->cs);
    size_t at = (size_t)((last - from) / w->cs) * w->entry;

    if (last < w->rw->size) {
        if (done <= last && work_plan_entry(w, table, at, last, err) < 0)
            return err->code;
        at += w->entry;
    }
    return give_up(w, table, at, err);
}

/* All clusters of the slot that an extent of another layer touches. */
static int plan_entries(struct work *w, uint64_t index, uint8_t *table,
                        struct qstill_error *err)
{
    uint64_t from = index * w->span;
    uint64_t to = min_u64(from + w->span, w->rw->size), done = from;

    for (struct extent_walk x = w->view; x.on && x.e.guest < to;
         extents_next(&x)) {
        const struct extent *e = &x.e;
        uint64_t g = max_u64(round_down_u64(e->guest, w->cs), done);

        if (e->layer == w->rw->own && e->kind != EXTENT_PAST_END)
            continue;
        for (; g < min_u64(extent_end(e), to); g += w->cs) {
            size_t at = (size_t)((g - from) / w->cs) * w->entry;

            if (work_plan_entry(w, table, at, g, err) < 0)
                return err->code;
            done = g + w->cs;
        }
    }
    return w->cut && to == w->rw->size ? plan_cut(w, table, from, done, err)
                                       : 0;
}

static bool is_zero(const uint8_t *p, size_t len)
{
    return p[0] == 0 && memcmp(p, p + 1, len - 1) == 0;
}

/* Takes the changed table over; an empty one is none. */
static int finish_slot(struct work *w, uint64_t index, bool any_packed,
                       struct qstill_error *err)
{
    struct rewrite *rw = w->rw;
    struct new_table *t = &rw->l2.v[rw->l2.n - 1];
    uint64_t old = rw->l1[index] & QCOW2_L1_OFFSET_MASK;

    if (old && runs_push(&rw->freed, old / w->cs, 1) < 0)
        return err_nomem(err);
    rw->tables = true;
    if (is_zero(t->bytes, w->cs) && !any_packed) {
        free(t->bytes);
        rw->l2.n--;
        rw->l1[index] = 0;
    }
    return 0;
}

static int plan_slot(struct work *w, uint64_t index, struct qstill_error *err)
{
    CLEANUP(freep) uint8_t *before = malloc(w->cs);
    struct rewrite *rw = w->rw;
    size_t packed = w->packed_n;
    struct new_table *t;

    if (!before)
        return err_nomem(err);
    extents_seek(&w->view, index * w->span);
    if (read_table(w, index, before, err) < 0)
        return err->code;
    t = new_tables_add(&rw->l2, index, w->cs);
    if (!t)
        return err_nomem(err);
    memcpy(t->bytes, before, w->cs);
    rw->l2.n--; /* keep_packed() names the slot by its number */
    if (plan_entries(w, index, t->bytes, err) < 0) {
        rw->l2.n++;
        return err->code;
    }
    rw->l2.n++;
    if (packed == w->packed_n && memcmp(before, t->bytes, w->cs) == 0) {
        free(t->bytes);
        rw->l2.n--;
        return 0;
    }
    return finish_slot(w, index, packed != w->packed_n, err);
}

/* Zeros over nothing, where the target has no table either. */
static bool slot_stays_empty(const struct work *w, const struct extent *e,
                             uint64_t slot)
{
    const struct rewrite *rw = w->rw;
    uint64_t from = slot * w->span, to = from + w->span;
    bool below = rw->has_backing && from < rw->backing_size;

    return !below && extent_is_zero(e) && e->guest <= from &&
           extent_end(e) >= min_u64(to, rw->size) && rw->l1[slot] == 0;
}

static int plan_slots(struct work *w, struct qstill_error *err)
{
    struct rewrite *rw = w->rw;
    uint64_t next = 0; /* slots before it are done */

    for (struct extent_walk x = extents_walk(rw->view, 0); x.on;
         extents_next(&x)) {
        const struct extent *e = &x.e;
        uint64_t slot = max_u64(e->guest / w->span, next);

        if (e->layer == rw->own && e->kind != EXTENT_PAST_END)
            continue;
        for (; slot * w->span < extent_end(e); slot++) {
            if (slot_stays_empty(w, e, slot))
                continue;
            if (plan_slot(w, slot, err) < 0)
                return err->code;
            next = slot + 1;
        }
    }
    return w->cut && next * w->span < rw->size
               ? plan_slot(w, rw->size / w->span, err)
               : 0;
}

/* ----------------------------------------------------------- behind the end */

/* Tables that lie wholly behind the new size. */
static int drop_slots(struct work *w, uint32_t first, struct qstill_error *err)
{
    const struct image *t = w->rw->target;
    CLEANUP(freep) uint8_t *table = malloc(w->cs);

    if (!table)
        return err_nomem(err);
    for (uint32_t i = first; i < t->info.header.l1_size; i++) {
        uint64_t off = t->l1[i] & QCOW2_L1_OFFSET_MASK;

        if (!off)
            continue;
        if (read_table(w, i, table, err) < 0 || give_up(w, table, 0, err) < 0)
            return err->code;
        if (runs_push(&w->rw->freed, off / w->cs, 1) < 0)
            return err_nomem(err);
    }
    return 0;
}

static bool has_tables(const struct image *t, uint32_t first)
{
    for (uint32_t i = first; i < t->info.header.l1_size; i++)
        if (t->l1[i] & QCOW2_L1_OFFSET_MASK)
            return true;
    return false;
}

/* Whether growing the disk would show bytes of the target's last unit. */
static int look_behind_end(struct work *w, struct qstill_error *err)
{
    struct image *t = w->rw->target;
    uint64_t size = w->rw->size, end = round_up_u64(size, w->unit);
    CLEANUP(freep) uint8_t *behind = NULL;
    struct extent_walk x;
    size_t got;

    if (!w->cut || end == size)
        return 0;
    if (image_load_map(t, w->rw->aio, err) < 0)
        return err->code;
    x = extents_walk(&t->map, size - 1);
    image_forget_map(t);
    if (!x.on || x.e.guest >= size)
        return 0;
    w->stale_end = x.e.kind == EXTENT_COMPRESSED; /* not looked at */
    if (x.e.kind != EXTENT_DATA)
        return 0;
    behind = malloc((size_t)(end - size));
    if (!behind)
        return err_nomem(err);
    if (io_read_upto(t->io, t->fd, behind, (size_t)(end - size),
                     x.e.host + (size - x.e.guest), &got, err) < 0)
        return err_wrap(err, "%s", t->path);
    w->stale_end = !bytes_are_zero(behind, got);
    return 0;
}

/* ------------------------------------------------------------- compressed */

/* Where packed bytes go, relative to where the first do. A cluster takes no
 * more of them than its refcount can count. */
struct packer {
    uint64_t cs;
    uint64_t max;
    uint64_t pos;
    uint64_t users; /* of the cluster at pos */
};

static uint64_t pack_next(struct packer *p, uint32_t clen)
{
    uint64_t at, last;

    if (p->users >= p->max) {
        p->pos = round_up_u64(p->pos + 1, p->cs);
        p->users = 0;
    }
    at = p->pos;
    last = (at + clen - 1) / p->cs;
    p->pos = round_up_u64(at + clen, QCOW2_SECTOR);
    if (p->pos % p->cs == 0)
        p->users = 0; /* a new cluster begins */
    else
        p->users = last == at / p->cs ? p->users + 1 : 1;
    return at;
}

static int place_one(struct work *w, const struct packed *k, uint64_t host,
                     struct qstill_error *err)
{
    struct rewrite *rw = w->rw;
    struct move m = {.from = k->host,
                     .dst = host,
                     .len = round_up_u64(k->clen, QCOW2_SECTOR),
                     .take = k->clen,
                     .layer = k->layer};

    for (uint64_t c = host / w->cs; c <= (host + k->clen - 1) / w->cs; c++)
        alloc_ref(&rw->alloc, c);
    put_be64(rw->l2.v[k->slot].bytes + k->at,
             l2_encode_compressed(w->h, host, k->clen));
    rw->bytes += m.len; /* as the mover counts it */
    return moves_push(&rw->moves, &m) < 0 ? err_nomem(err) : 0;
}

static int place_packed(struct work *w, struct qstill_error *err)
{
    struct packer p = {.cs = w->cs, .max = qcow2_refcount_max(w->h)};
    uint64_t first, clusters;

    for (size_t i = 0; i < w->packed_n; i++)
        pack_next(&p, w->packed[i].clen);
    clusters = div_up_u64(p.pos, w->cs);
    if (clusters == 0)
        return 0;
    if (alloc_tail(&w->rw->alloc, clusters, &first, err) < 0)
        return err->code;
    for (uint64_t c = first; c < first + clusters; c++)
        w->rw->refs.count[c] = 0; /* place_one() counts */
    p.pos = p.users = 0;
    for (size_t i = 0; i < w->packed_n; i++)
        if (place_one(w, &w->packed[i],
                      first * w->cs + pack_next(&p, w->packed[i].clen),
                      err) < 0)
            return err->code;
    return 0;
}

/* --------------------------------------------------------------------- all */

static int place_tables(struct work *w, struct qstill_error *err)
{
    struct rewrite *rw = w->rw;
    const struct qcow2_header *h = w->h;
    uint64_t first;

    if (rw->l2.n > 0) {
        if (alloc_tail(&rw->alloc, rw->l2.n, &first, err) < 0)
            return err->code;
        for (size_t i = 0; i < rw->l2.n; i++) {
            rw->l2.v[i].host = (first + i) * w->cs;
            rw->l1[rw->l2.v[i].index] = rw->l2.v[i].host | QCOW2_COPIED;
        }
    }
    if (alloc_tail(&rw->alloc, div_up_u64(8ull * rw->l1_size, w->cs), &first,
                   err) < 0)
        return err->code;
    rw->l1_offset = first * w->cs;
    if (runs_push(&rw->freed, h->l1_offset / w->cs,
                  div_up_u64(8ull * h->l1_size, w->cs)) < 0)
        return err_nomem(err);
    return rewrite_refcounts(rw, err);
}

static int new_l1(struct work *w, struct qstill_error *err)
{
    struct rewrite *rw = w->rw;
    const struct image *t = rw->target;
    uint64_t needed = max_u64(qcow2_l1_needed(w->h, rw->size), 1);
    uint32_t keep = t->info.header.l1_size;

    if (needed > QCOW2_MAX_L1_BYTES / 8)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "%s cannot hold a disk of %llu bytes: its clusters are "
                       "too small",
                       t->path, (unsigned long long)rw->size);
    if (t->size > rw->size ||
        (w->hide_end && needed < keep && has_tables(t, (uint32_t)needed)))
        keep = (uint32_t)min_u64(keep, needed);
    rw->l1_size = (uint32_t)max_u64(needed, keep);
    rw->l1 = calloc(rw->l1_size, sizeof(*rw->l1));
    if (!rw->l1)
        return err_nomem(err);
    memcpy(rw->l1, t->l1, keep * sizeof(*rw->l1));
    rw->tables = rw->l1_size != t->info.header.l1_size;
    return keep < t->info.header.l1_size ? drop_slots(w, keep, err) : 0;
}

/* The target as it is: every reference counted, no damage. */
static int check_target(struct rewrite *rw, struct qstill_error *err)
{
    struct image *t = rw->target;
    const struct qcow2_header *h = &t->info.header;

    if ((h->incompatible & QCOW2_INCOMPAT_CORRUPT) && !torn_is(h)) {
        err_set(err, QSTILL_E_PRECONDITION, "%s is marked as corrupt", t->path);
        return err_hint(err, "qemu-img check -r all may repair it");
    }
    if (h->version < 3 && h->nb_snapshots > 0 && t->size != rw->size)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "%s is version 2 with internal snapshots and cannot "
                       "change its size",
                       t->path);
    if (image_check_readable(t, err) < 0 || image_load_l1(t, err) < 0 ||
        refs_count(t, rw->aio, &rw->refs, &rw->stored, &rw->report, err) < 0)
        return err->code;
    /* stale refcounts are what the dirty bit is about; they are made anew */
    if (h->incompatible & QCOW2_INCOMPAT_DIRTY)
        rw->report.corruptions -= rw->report.marks;
    else
        refs_compare(t, &rw->refs, &rw->stored, &rw->report);
    if (rw->report.corruptions > 0) {
        err_set(err, QSTILL_E_CORRUPT, "%s is damaged: %s", t->path,
                rw->report.message_count ? rw->report.messages[0] : "");
        return err_hint(err, "see qstill image check");
    }
    return 0;
}

/* An upper image that keeps its file has behind its end what it always had. But
 * QEMU writes zeros there before it grows an image whose backing file is
 * longer (bdrv_co_truncate), and only then: when that one goes, they are due.
 */
static bool must_hide_end(const struct rewrite *rw)
{
    const struct chain *c = rw->chain;
    size_t below = (size_t)rw->own + 1;

    if (rw->own == REWRITE_NEW)
        return false;
    if (!rw->top)
        return true;
    return below < c->n && c->layers[below]->size > rw->size &&
           !(rw->has_backing && rw->backing_size > rw->size &&
             !rw->backing_unknown);
}

/* Compressed clusters of which a move takes no more than a part: one behind the
 * other they are unpacked once, but in the order of a fragmented target once
 * for each part. */
static bool takes_parts(const struct work *w)
{
    const struct rewrite *rw = w->rw;

    for (struct extent_walk x = extents_walk(rw->view, 0); x.on;
         extents_next(&x))
        if (x.e.kind == EXTENT_COMPRESSED &&
            rw->chain->layers[x.e.layer]->cluster_size > w->cs)
            return true;
    return false;
}

int rewrite_plan(struct rewrite *rw, struct qstill_error *err)
{
    CLEANUP(work_finip)
    struct work w = {.rw = rw,
                     .h = &rw->target->info.header,
                     .cs = rw->target->cluster_size,
                     .view = extents_walk(rw->view, 0),
                     .extended = qcow2_has_extl2(&rw->target->info.header)};

    rw->moves.block = w.cs;
    w.unit = w.extended ? w.cs / QCOW2_SUBCLUSTERS : w.cs;
    w.entry = w.extended ? 16 : 8;
    w.span = w.cs * (w.cs / w.entry);
    w.hide_end = must_hide_end(rw);
    w.cut = w.hide_end && rw->size % w.span != 0;
    if (check_target(rw, err) < 0)
        return err->code;
    rw->old_end = rw->target->info.file_size;
    alloc_init(&rw->alloc, &rw->refs, w.cs, image_clusters(rw->target));
    if (look_behind_end(&w, err) < 0 || new_l1(&w, err) < 0 ||
        plan_slots(&w, err) < 0 || place_packed(&w, err) < 0 ||
        rewrite_place_bitmaps(rw, err) < 0 || rewrite_marks(&w, err) < 0)
        return err->code;
    /* by its place of the L1 table the new state is told from the old: all
     * that changes the header, the size too, comes with new tables; refcounts
     * that are too high are made right */
    rw->tables |= rw->report.leaks > 0 ||
                  (w.h->incompatible & QCOW2_INCOMPAT_DIRTY) != 0 ||
                  rw->over > 0 || torn_is(w.h) || rw->size != rw->target->size;
    if (!takes_parts(&w)) /* else in the guest's order */
        moves_sort(&rw->moves);
    rw->end = rw->old_end;
    return rw->tables ? place_tables(&w, err) : 0;
}

void rewrite_header(const struct rewrite *rw, struct qcow2_header *h)
{
    h->size = rw->size;
    if (!rw->tables)
        return;
    rewrite_bitmaps_header(rw, h);
    h->l1_size = rw->l1_size;
    h->l1_offset = rw->l1_offset;
    h->reftable_offset = rw->reftable_offset;
    h->reftable_clusters = rw->reftable_clusters;
    h->incompatible &= ~QCOW2_INCOMPAT_DIRTY;
    torn_clear(h);
}
