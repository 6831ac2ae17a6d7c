/* SPDX-License-Identifier: MIT */
/*
 * A guest disk as a sorted list of extents: what one image holds, or what a
 * guest sees through several. What no extent covers falls through to the layer
 * below, or reads as zeros when there is none.
 */
#ifndef QSTILL_QCOW2_EXTENT_H
#define QSTILL_QCOW2_EXTENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum extent_kind {
    EXTENT_DATA = 1,   /* the bytes at `host` */
    EXTENT_ZERO,       /* zeros; host is 0 */
    EXTENT_ZERO_OWNED, /* zeros, though the clusters at `host` belong to it */
    EXTENT_COMPRESSED, /* (a part of) one cluster, in `clen` bytes at `host` */
    EXTENT_OWNED,      /* falls through, though clusters at `host` are owned */
    EXTENT_PAST_END,   /* zeros: the layer below ends before (spec: a short
                          layer never shows what is below it) */
    EXTENT_FOREIGN,    /* what an image that is not read here shows */
};

struct extent {
    uint64_t guest;
    uint64_t len;
    uint64_t host : 56;
    uint64_t kind : 8; /* enum extent_kind */
    uint32_t clen;     /* compressed: bytes at host, an upper bound */
    uint16_t layer;    /* which image of the chain; 0 is the top */
};

/*
 * The list, packed: of an extent that is like the one before it a byte or two
 * are kept instead of 32. A cluster of subclusters can be 32 extents, and there
 * is one for every 16 bytes of tables. It is read by walking.
 */
struct extents {
    uint8_t *bytes; /* of all but the last, which may still grow */
    size_t len;
    size_t cap;
    struct extents_mark *marks; /* where walks can start */
    size_t mark_n;
    size_t mark_cap;
    size_t n; /* extents */
    struct extent last;
    uint16_t layer; /* is added to that of each one */

    /* what the next one is packed against */
    struct extent_near {
        uint64_t end;
        uint64_t gap;
        uint64_t len;
        uint64_t shift[4]; /* host - guest, by layer */
        uint16_t layer;
    } near;
};

#define EXTENTS_INIT                                                           \
    {                                                                          \
        .bytes = NULL                                                          \
    }

void extents_fini(struct extents *x);

/* Appends, or lengthens the last extent when `e` continues it. Extents come in
 * guest order, do not overlap and are not empty. -1: out of memory. */
int extents_push(struct extents *x, const struct extent *e);

/* The part of e within [from, to); they must overlap. */
struct extent extent_cut(const struct extent *e, uint64_t from, uint64_t to);

static inline uint64_t extent_end(const struct extent *e)
{
    return e->guest + e->len;
}

static inline bool extent_is_zero(const struct extent *e)
{
    return e->kind == EXTENT_ZERO || e->kind == EXTENT_ZERO_OWNED ||
           e->kind == EXTENT_PAST_END;
}

/* Has the extent bytes of a file behind it that would have to be moved? */
static inline bool extent_has_bytes(const struct extent *e)
{
    return e->kind == EXTENT_DATA || e->kind == EXTENT_COMPRESSED;
}

/* One extent of a list after the other, as long as nothing is appended:
 *
 *     for (struct extent_walk w = extents_walk(x, from); w.on;
 *          extents_next(&w))
 *         ... w.e ...
 */
struct extent_walk {
    bool on;         /* there is an extent: */
    struct extent e; /* this one; a copy */

    const struct extents *x;
    size_t i;
    size_t pos;
    uint64_t from; /* none before ends after this */
    struct extent_near near;
};

/* At the first extent that ends after `guest`, if there is one. */
struct extent_walk extents_walk(const struct extents *x, uint64_t guest);
void extents_next(struct extent_walk *w);
/* Goes to the first extent that ends after `guest`; cheap where that is here or
 * a little ahead. */
void extents_seek_away(struct extent_walk *w, uint64_t guest);
static inline void extents_seek(struct extent_walk *w, uint64_t guest)
{
    if (!w->on || guest < w->from || extent_end(&w->e) <= guest)
        extents_seek_away(w, guest);
}

/*
 * out = upper where it has an extent, else lower. EXTENT_OWNED of either is
 * left out. -1: out of memory; `out` must be empty.
 */
int extents_overlay(const struct extents *upper, const struct extents *lower,
                    struct extents *out);

#endif
