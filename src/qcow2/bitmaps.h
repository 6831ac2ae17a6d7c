/* SPDX-License-Identifier: MIT */
/* The directory of persistent dirty bitmaps, and the tables it points to. */
#ifndef QSTILL_QCOW2_BITMAPS_H
#define QSTILL_QCOW2_BITMAPS_H

#include "image.h"

enum {
    BITMAP_IN_USE = 1 << 0,
    BITMAP_AUTO = 1 << 1,
    BITMAP_EXTRA_COMPATIBLE = 1 << 2,
    BITMAP_KNOWN_FLAGS = 7,
    /* QEMU's: 512 bytes to 2 GiB */
    BITMAP_MIN_GRANULARITY = 9,
    BITMAP_MAX_GRANULARITY = 31,
};

/* Bits of a table entry: an offset, or 0 and whether all bits are ones. */
#define BITMAP_OFFSET_MASK 0x00fffffffffffe00ull
#define BITMAP_ALL_ONES    1ull
#define BITMAP_RESERVED    0xff000000000001feull

struct bitmap {
    uint64_t table_offset;
    uint32_t table_entries;
    uint32_t flags;
    uint8_t type;
    uint8_t granularity_bits;
    char *name;
    uint8_t *extra;
    uint32_t extra_len;
    uint64_t *table; /* host order; loaded by bitmaps_load() */
};

struct bitmaps {
    struct bitmap *v;
    size_t n;
};

/* Nothing when the image has no (consistent) bitmaps. `out` must be zeroed. */
int bitmaps_load(const struct image *img, struct bitmaps *out,
                 struct qstill_error *err);
void bitmaps_fini(struct bitmaps *b);

#endif
