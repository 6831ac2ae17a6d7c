/* SPDX-License-Identifier: MIT */
/* Shared by rewrite.c (L2 tables, L1), rewrite_entry.c (one cluster),
 * rewrite_lists.c, rewrite_bitmaps.c, rewrite_marks.c and rewrite_refs.c. */
#ifndef QSTILL_QCOW2_REWRITE_IMPL_H
#define QSTILL_QCOW2_REWRITE_IMPL_H

#include "l2.h"
#include "rewrite.h"

/* Compressed bytes that are taken over as they are; they get their place when
 * all of them are known, because they are packed. */
struct packed {
    size_t slot; /* in rw->l2 */
    size_t at;   /* of the entry in its table */
    uint64_t host;
    uint32_t clen;
    uint16_t layer;
};

struct work {
    struct rewrite *rw;
    const struct qcow2_header *h;
    uint64_t cs;
    uint64_t unit; /* cluster or subcluster */
    bool extended;
    size_t entry;            /* bytes */
    uint64_t span;           /* guest bytes of a slot */
    struct extent_walk view; /* at what may touch the cluster looked at */
    /* what the target has behind the end is not the disk's: it must not be seen
     * when that grows */
    bool hide_end;
    bool cut;       /* hide_end, and the last table has entries behind it */
    bool stale_end; /* its last unit has something there */
    struct packed *packed;
    size_t packed_n;
    size_t packed_cap;
};

/* Room for one more element of `size` bytes; the array may move. -1: out of
 * memory, here and below. */
int rewrite_make_room(void **v, size_t n, size_t *cap, size_t size);
int moves_push(struct moves *m, const struct move *e);
/* By their places in the target. */
void moves_sort(struct moves *m);
int runs_push(struct runs *r, uint64_t first, uint64_t count);
struct new_table *new_tables_add(struct new_tables *t, uint64_t index,
                                 size_t len);

/* rewrite_entry.c */
struct l2_entry work_entry(const struct work *w, const uint8_t *p);
/* Notes that nothing refers to the entry's clusters any more. */
int work_free_entry(struct work *w, const struct l2_entry *e,
                    struct qstill_error *err);
/* The entry at table + at, for the cluster at `guest`. */
int work_plan_entry(struct work *w, uint8_t *table, size_t at, uint64_t guest,
                    struct qstill_error *err);

/* rewrite_bitmaps.c: before the refcounts. */
int rewrite_place_bitmaps(struct rewrite *rw, struct qstill_error *err);
void rewrite_bitmaps_header(const struct rewrite *rw, struct qcow2_header *h);

/* rewrite_marks.c: once all that goes is freed, and before the tables get their
 * places. */
int rewrite_marks(struct work *w, struct qstill_error *err);

/* rewrite_refs.c: gives the counted references their blocks and table, once
 * everything else has its place. */
int rewrite_refcounts(struct rewrite *rw, struct qstill_error *err);

#endif
