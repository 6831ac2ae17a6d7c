/* SPDX-License-Identifier: MIT */
/*
 * The data of a new compressed image: clusters of a view are read, compressed
 * by a few threads and written one behind the other. Compressed clusters of the
 * same kind are taken over as they are; clusters of zeros are left out; those
 * that do not become smaller are stored as they are, in runs of their own.
 */
#ifndef QSTILL_QCOW2_PACK_H
#define QSTILL_QCOW2_PACK_H

#include "chain.h"
#include "fresh.h"

struct pack;

struct pack_options {
    const struct chain *chain;
    const struct extents *view; /* outlives it */
    struct image *target;       /* a file open for writing */
    struct fresh *fresh;        /* gets the entries and the references */
    uint64_t bwlimit;           /* bytes per second, 0: none */
};

/* Guest bytes of the clusters that have any. */
uint64_t pack_bytes(const struct pack_options *o);

int pack_open(struct pack **out, const struct pack_options *o,
              struct qstill_error *err);
void pack_close(struct pack *p); /* waits for what is in flight */

/* Some work; *done: all is written, nothing is flushed. Sleeps for I/O, but not
 * longer than about a tenth of a second. */
int pack_step(struct pack *p, bool *done, struct qstill_error *err);
int pack_fd(const struct pack *p); /* readable when a step has work; -1: now */
uint64_t pack_done(const struct pack *p);
/* Where the data ends, in whole clusters; once done. */
uint64_t pack_end(const struct pack *p);

#endif
