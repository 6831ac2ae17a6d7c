/* SPDX-License-Identifier: MIT */
/* The edges of the block graph, by whatever way this QEMU tells them. */
#ifndef QSTILL_QMP_EDGES_H
#define QSTILL_QMP_EDGES_H

#include <jansson.h>

#include "block.h"

/*
 * Fills `file` and `below` of the graph's nodes (sorted by name) and its
 * source. `list` is the answer of query-named-block-nodes. CORRUPT when there
 * is a cycle, PRECONDITION when QEMU tells no edges and names do not suffice.
 */
int edges_read(struct qstill_qmp *q, struct qmp_graph *g, const json_t *list,
               struct qstill_error *err);

#endif
