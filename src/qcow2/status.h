/* SPDX-License-Identifier: MIT */
/*
 * What a guest sees, told in QEMU's words (qemu-img map), without gaps:
 * neighbours that differ in nothing are one.
 */
#ifndef QSTILL_QCOW2_STATUS_H
#define QSTILL_QCOW2_STATUS_H

#include "chain.h"

struct block_status {
    uint64_t start;
    uint64_t length;
    uint64_t offset; /* in the file of layer `depth` */
    uint32_t depth;
    bool present;
    bool zero;
    bool data;
    bool compressed;
    bool has_offset;
};

/* The chain's maps must be loaded. A non-zero result of fn ends the walk and
 * is returned; else 0 or a negative code. */
typedef int block_status_fn(void *user, const struct block_status *s);
int block_status(struct chain *c, block_status_fn *fn, void *user,
                 struct qstill_error *err);

#endif
