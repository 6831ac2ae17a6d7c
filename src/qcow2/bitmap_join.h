/* SPDX-License-Identifier: MIT */
/*
 * What the persistent dirty bitmaps of several layers become when the layers
 * become one image. A bitmap says what may have changed since a backup, so it
 * may say too much, never too little: its bits are joined with those of the
 * same name in the layers above, and with all that the layers above hold,
 * because whatever was written after its layer was frozen went there.
 *
 * A bitmap that cannot be carried over (of a kind that QEMU does not read, too
 * large, or the result is of version 2 or raw) is left out, with those of its
 * name in the other layers, and named: who asks for it finds none, and makes a
 * full backup.
 */
#ifndef QSTILL_QCOW2_BITMAP_JOIN_H
#define QSTILL_QCOW2_BITMAP_JOIN_H

#include "base/buf.h"
#include "bitmaps.h"
#include "chain.h"

struct joined_bitmap {
    char *name;
    uint8_t granularity_bits;
    uint32_t flags;
    uint64_t bit_count;
    uint8_t *bits; /* the lowest bit of a byte first */
    bool lost;     /* none of these is left in the end */
};

struct bitmap_join {
    bool needed;   /* else the target's bitmaps stay as they are */
    uint64_t size; /* of the result */
    struct joined_bitmap *v;
    size_t n;
    size_t *slots; /* while they are joined: by name, 1 + the place in v */
    size_t slot_count;
    uint64_t bits;   /* of all of them */
    struct buf lost; /* words about those left out, a line each */
    size_t lost_count;
};

/*
 * Layers [upper, last] become one image of `size` bytes, with the file of layer
 * `kept` (or none of them); `possible`: it can hold bitmaps. The layers' maps
 * are loaded where they are asked, and none is left. `out` must be zeroed.
 */
int bitmap_join(struct chain *c, size_t upper, size_t last, size_t kept,
                uint64_t size, bool possible, struct bitmap_join *out,
                struct qstill_error *err);
void bitmap_join_fini(struct bitmap_join *j);

/* Sets the bits of guest bytes [from, to). */
void joined_bitmap_mark(struct joined_bitmap *b, uint64_t from, uint64_t to);

#endif
