/* SPDX-License-Identifier: MIT */
/*
 * Visits the L2 tables of an L1 table in guest order. They are read many at a
 * time, into memory of bounded size; a table that the end of the file cuts off
 * reads as zeros there. One that lies in a hole names nothing, and is neither
 * read nor visited: a small file may have a million of them. Nor are the holes
 * in those of more than 64 KiB. CANCELLED when the aio's stop says so.
 */
#ifndef QSTILL_QCOW2_L2WALK_H
#define QSTILL_QCOW2_L2WALK_H

#include "image.h"

struct l2walk {
    const struct image *img;
    struct aio *aio;
    const uint64_t *l1; /* host order; offsets aligned and in the file */
    uint64_t l1_size;
    bool whole; /* visit tables as a whole, with their holes */
    /* `entries`: `len` bytes of the table from byte `from` on, valid during the
     * call; whole entries. Others of the same table may follow. < 0 ends the
     * walk. */
    int (*visit)(void *user, uint64_t l1_index, size_t from,
                 const uint8_t *entries, size_t len, struct qstill_error *err);
    void *user;
};

int l2walk(const struct l2walk *w, struct qstill_error *err);

#endif
