/* SPDX-License-Identifier: MIT */
/* Shared by rewrite.c (L2, L1), rewrite_bitmaps.c and rewrite_refs.c. */
#ifndef QSTILL_QCOW2_REWRITE_IMPL_H
#define QSTILL_QCOW2_REWRITE_IMPL_H

#include "rewrite.h"

/* -1: out of memory */
int moves_push(struct moves *m, const struct move *e);
int runs_push(struct runs *r, uint64_t first, uint64_t count);
struct new_table *new_tables_add(struct new_tables *t, uint64_t index,
                                 size_t len);

/* rewrite_bitmaps.c: before the refcounts. */
int rewrite_place_bitmaps(struct rewrite *rw, struct qstill_error *err);
void rewrite_bitmaps_header(const struct rewrite *rw, struct qcow2_header *h);

/* rewrite_refs.c: gives the counted references their blocks and table, once
 * everything else has its place. */
int rewrite_refcounts(struct rewrite *rw, struct qstill_error *err);

#endif
