/* SPDX-License-Identifier: MIT */
/* Shared by rewrite.c (L2, L1) and rewrite_refs.c (refcounts). */
#ifndef QSTILL_QCOW2_REWRITE_IMPL_H
#define QSTILL_QCOW2_REWRITE_IMPL_H

#include "rewrite.h"

/* -1: out of memory */
int moves_push(struct moves *m, const struct move *e);
int runs_push(struct runs *r, uint64_t first, uint64_t count);
struct new_table *new_tables_add(struct new_tables *t, uint64_t index,
                                 size_t len);

/* rewrite_refs.c: gives the counted references their blocks and table, once
 * everything else has its place. */
int rewrite_refcounts(struct rewrite *rw, struct qstill_error *err);

#endif
