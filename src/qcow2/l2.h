/* SPDX-License-Identifier: MIT */
/* One L2 entry, taken apart. Pure; what cannot be is L2_BAD. */
#ifndef QSTILL_QCOW2_L2_H
#define QSTILL_QCOW2_L2_H

#include "header.h"

enum l2_kind {
    L2_NONE,       /* falls through */
    L2_DATA,       /* a cluster at `host` */
    L2_ZERO,       /* zeros, no cluster */
    L2_ZERO_OWNED, /* zeros, a cluster at `host` */
    L2_COMPRESSED, /* `clen` bytes at `host` */
    L2_MIXED,      /* extended: see the bitmap; host may be 0 */
    L2_BAD,
};

struct l2_entry {
    enum l2_kind kind;
    uint64_t host;
    uint32_t clen;
    bool copied;     /* marked as having one owner */
    uint32_t has;    /* extended: subclusters with data */
    uint32_t zeros;  /* extended: subclusters that read as zeros */
    const char *why; /* of L2_BAD */
};

static inline struct l2_entry l2_bad(const char *why)
{
    return (struct l2_entry){.kind = L2_BAD, .why = why};
}

static inline struct l2_entry l2_compressed(const struct qcow2_header *h,
                                            uint64_t v)
{
    unsigned x = 62 - (h->cluster_bits - 8);
    struct l2_entry e = {.kind = L2_COMPRESSED};
    uint64_t sectors = (v >> x) & ((1ull << (62 - x)) - 1);

    e.host = v & ((1ull << x) - 1);
    e.clen = (uint32_t)((sectors + 1) * QCOW2_SECTOR -
                        (e.host & (QCOW2_SECTOR - 1)));
    if (v & QCOW2_COPIED)
        return l2_bad("a compressed entry is marked as not shared");
    if (e.host == 0 || e.host >> 56)
        return l2_bad("compressed data at an impossible offset");
    return e;
}

static inline struct l2_entry l2_decode(const struct qcow2_header *h,
                                        uint64_t v)
{
    struct l2_entry e = {.kind = L2_NONE};

    if (v == 0)
        return e;
    if (v & QCOW2_COMPRESSED)
        return l2_compressed(h, v);
    if (v & QCOW2_L2_RESERVED_MASK)
        return l2_bad("an L2 entry has reserved bits set");
    e.host = v & QCOW2_L2_OFFSET_MASK;
    e.copied = (v & QCOW2_COPIED) != 0;
    if (e.host & (qcow2_cluster_size(h) - 1))
        return l2_bad("a data cluster is not aligned");
    if (v & QCOW2_ZERO) {
        if (h->version < 3)
            return l2_bad("a zero flag in a version 2 image");
        e.kind = e.host ? L2_ZERO_OWNED : L2_ZERO;
    } else {
        e.kind = e.host ? L2_DATA : L2_NONE;
    }
    return e;
}

/* An extended entry; `v` first, `bits` second word. */
static inline struct l2_entry l2_decode_ext(const struct qcow2_header *h,
                                            uint64_t v, uint64_t bits)
{
    struct l2_entry e;

    if (v & QCOW2_COMPRESSED) {
        if (bits)
            return l2_bad("a compressed entry has subclusters");
        return l2_compressed(h, v);
    }
    if (v & (QCOW2_L2_RESERVED_MASK | QCOW2_ZERO))
        return l2_bad("an L2 entry has reserved bits set");
    e = (struct l2_entry){.kind = L2_MIXED,
                          .host = v & QCOW2_L2_OFFSET_MASK,
                          .copied = (v & QCOW2_COPIED) != 0,
                          .has = (uint32_t)bits,
                          .zeros = (uint32_t)(bits >> 32)};
    if (e.host & (qcow2_cluster_size(h) - 1))
        return l2_bad("a data cluster is not aligned");
    if ((e.has & e.zeros) || (!e.host && e.has))
        return l2_bad("a subcluster bitmap is not possible");
    if (!e.host && !e.zeros)
        e.kind = L2_NONE;
    else if (e.has == UINT32_MAX)
        e.kind = L2_DATA;
    else if (e.zeros == UINT32_MAX)
        e.kind = e.host ? L2_ZERO_OWNED : L2_ZERO;
    return e;
}

/* The descriptor of compressed bytes; the inverse of l2_compressed(). */
static inline uint64_t l2_encode_compressed(const struct qcow2_header *h,
                                            uint64_t host, uint32_t clen)
{
    unsigned x = 62 - (h->cluster_bits - 8);
    uint64_t sectors = (host + clen - 1) / QCOW2_SECTOR - host / QCOW2_SECTOR;

    return QCOW2_COMPRESSED | sectors << x | host;
}

#endif
