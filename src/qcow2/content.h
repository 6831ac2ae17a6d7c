/* SPDX-License-Identifier: MIT */
/* A sum of what a guest sees through a chain, however its layers hold it. */
#ifndef QSTILL_QCOW2_CONTENT_H
#define QSTILL_QCOW2_CONTENT_H

#include "chain.h"

/*
 * Of a chain with a foreign bottom, what shows that is zeros here, and *foreign
 * gets where that is. `skip`: what was such before, taken for zeros now,
 * whatever is there; or NULL. A chain without one has none.
 *
 * Loads the maps. Reads all data that is not a hole.
 */
int content_sum(struct chain *c, const struct extents *skip, uint64_t *sum,
                struct extents *foreign, struct qstill_error *err);
/* Bytes of `a` that are not of `b`: of what content_sum() says is foreign. */
uint64_t content_beyond(const struct extents *a, const struct extents *b);

#endif
