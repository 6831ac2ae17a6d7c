/* SPDX-License-Identifier: MIT */
/*
 * Holes of the files themselves: clusters in use (preallocated metadata) that
 * the filesystem has no data for, and that read as zeros.
 */
#ifndef QSTILL_QCOW2_HOLES_H
#define QSTILL_QCOW2_HOLES_H

#include "chain.h"

/* Where a file has data. */
struct holes {
    bool count; /* whether it was asked for them */
    struct holes_data {
        uint64_t from, to;
    } * v;
    size_t n, cap;
};

/* Of each layer that QEMU would look for holes in; all others have none. */
int holes_ask(const struct chain *c, struct holes **out,
              struct qstill_error *err);
void holes_free(struct holes *h, size_t n);

/* The first data that ends behind `off`; h->n when there is none. */
size_t holes_find(const struct holes *h, uint64_t off);

/* Makes zeros of the data of a view of `c` where whole clusters of it are
 * holes, which need not be read, nor copied, be it terabytes. Whoever changes
 * one of the layers keeps the clusters that are in use there. */
int holes_drop(const struct chain *c, struct extents *view,
               struct qstill_error *err);

#endif
