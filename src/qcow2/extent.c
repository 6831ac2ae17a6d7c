/* SPDX-License-Identifier: MIT */
#include "extent.h"

#include <stdlib.h>

#include "base/checked.h"

/* Between two marks lie so many; each of them is packed by itself. */
#define PER_MARK 64u
/* Of one at most: a byte, and five numbers of up to 64 bits. */
#define PACKED_MAX 64u

struct extents_mark {
    uint64_t guest;
    size_t pos;
};

/* The first byte of a packed extent; what is not like the one before follows
 * in this order. */
enum {
    KIND = 7,
    GAP_SAME = 1 << 3,  /* as far behind its neighbour as that was, */
    GAP_OTHER = 1 << 4, /* or not; neither: right behind it */
    LEN_OTHER = 1 << 5,
    LAYER_OTHER = 1 << 6,
    SHIFT_OTHER = 1 << 7, /* not where this layer's last one was continued */
};

void extents_fini(struct extents *x)
{
    free(x->bytes);
    free(x->marks);
    *x = (struct extents)EXTENTS_INIT;
}

static bool continues(const struct extent *a, const struct extent *b)
{
    if (a->kind != b->kind || a->layer != b->layer || extent_end(a) != b->guest)
        return false;
    switch ((enum extent_kind)a->kind) {
    case EXTENT_DATA:
    case EXTENT_ZERO_OWNED:
    case EXTENT_OWNED:
        return a->host + a->len == b->host;
    case EXTENT_ZERO:
    case EXTENT_PAST_END:
    case EXTENT_FOREIGN:
        return true;
    case EXTENT_COMPRESSED:
        return false;
    }
    return false;
}

static bool has_host(unsigned kind)
{
    const unsigned without =
        1u << EXTENT_ZERO | 1u << EXTENT_PAST_END | 1u << EXTENT_FOREIGN;

    return !(without >> kind & 1);
}

static uint64_t *shift_of(struct extent_near *near)
{
    return &near->shift[near->layer % 4];
}

/* ------------------------------------------------------------------ packing */

/* Seven bits a byte, the lowest first; the last has the top bit clear. */
static uint8_t *put(uint8_t *p, uint64_t v)
{
    for (; v >= 0x80; v >>= 7)
        *p++ = (uint8_t)(v | 0x80);
    *p++ = (uint8_t)v;
    return p;
}

/* A length in sectors is a short number; any other comes back, too. */
static uint64_t to_sectors(uint64_t v)
{
    return v >> 9 | v << 55;
}

static uint64_t from_sectors(uint64_t v)
{
    return v << 9 | v >> 55;
}

static uint8_t *pack(uint8_t *p, struct extent_near *near,
                     const struct extent *e)
{
    uint64_t gap = e->guest - near->end, shift = e->host - e->guest;
    uint8_t *first = p++;

    *first = (uint8_t)e->kind;
    near->end = extent_end(e);
    if (gap && gap == near->gap) {
        *first |= GAP_SAME;
    } else if (gap) {
        *first |= GAP_OTHER;
        p = put(p, to_sectors(near->gap = gap));
    }
    if (e->len != near->len) {
        *first |= LEN_OTHER;
        p = put(p, to_sectors(near->len = e->len));
    }
    if (e->layer != near->layer) {
        *first |= LAYER_OTHER;
        p = put(p, near->layer = e->layer);
    }
    if (has_host(e->kind) && shift != *shift_of(near)) {
        uint64_t diff = shift - *shift_of(near);

        *first |= SHIFT_OTHER;
        p = put(p, diff >> 63 ? ~(diff << 1) : diff << 1);
        *shift_of(near) = shift;
    }
    return e->kind == EXTENT_COMPRESSED ? put(p, e->clen) : p;
}

static int make_room(void **v, size_t need, size_t *cap, size_t size)
{
    size_t more = *cap ? *cap + *cap / 2 : 16 * PACKED_MAX / size;
    void *p;

    if (need <= *cap)
        return 0;
    p = realloc(*v, more * size);
    if (!p)
        return -1;
    *v = p;
    *cap = more;
    return 0;
}

/* The last one will not grow any more. */
static int pack_last(struct extents *x)
{
    if (make_room((void **)&x->bytes, x->len + PACKED_MAX, &x->cap, 1) < 0)
        return -1;
    if ((x->n - 1) % PER_MARK == 0) {
        if (make_room((void **)&x->marks, x->mark_n + 1, &x->mark_cap,
                      sizeof(*x->marks)) < 0)
            return -1;
        x->marks[x->mark_n++] = (struct extents_mark){x->last.guest, x->len};
        x->near = (struct extent_near){0};
    }
    x->len = (size_t)(pack(x->bytes + x->len, &x->near, &x->last) - x->bytes);
    return 0;
}

int extents_push(struct extents *x, const struct extent *e)
{
    if (x->n > 0 && continues(&x->last, e)) {
        x->last.len += e->len;
        return 0;
    }
    if (x->n > 0 && pack_last(x) < 0)
        return -1;
    x->last = *e;
    x->n++;
    return 0;
}

/* ------------------------------------------------------------------ walking */

static uint64_t get_more(const uint8_t **p, uint64_t v)
{
    for (unsigned at = 7;; at += 7) {
        uint8_t b = *(*p)++;

        v |= (uint64_t)(b & 0x7f) << at;
        if (b < 0x80)
            return v;
    }
}

static inline uint64_t get(const uint8_t **p)
{
    uint8_t b = *(*p)++;

    return b < 0x80 ? b : get_more(p, b & 0x7f);
}

static void unpack(struct extent_walk *w)
{
    const uint8_t *p = w->x->bytes + w->pos;
    struct extent_near *near = &w->near;
    uint64_t guest = near->end;
    uint8_t first = *p++;
    unsigned kind = first & KIND;

    if (first & GAP_OTHER)
        near->gap = from_sectors(get(&p));
    if (first & LEN_OTHER)
        near->len = from_sectors(get(&p));
    if (first & LAYER_OTHER)
        near->layer = (uint16_t)get(&p);
    if (first & SHIFT_OTHER) {
        uint64_t diff = get(&p);

        *shift_of(near) += diff & 1 ? ~(diff >> 1) : diff >> 1;
    }
    if (first & (GAP_SAME | GAP_OTHER))
        guest += near->gap;
    near->end = guest + near->len;
    w->e = (struct extent){.guest = guest,
                           .len = near->len,
                           .host = has_host(kind) ? guest + *shift_of(near) : 0,
                           .kind = kind,
                           .clen = kind == EXTENT_COMPRESSED ? (uint32_t)get(&p)
                                                             : 0,
                           .layer = (uint16_t)(near->layer + w->x->layer)};
    w->pos = (size_t)(p - w->x->bytes);
}

/* Extent w->i, which the walk is right before. */
static void load(struct extent_walk *w)
{
    const struct extents *x = w->x;

    w->on = w->i < x->n;
    if (!w->on)
        return;
    if (w->i + 1 == x->n) {
        w->e = x->last;
        w->e.layer = (uint16_t)(w->e.layer + x->layer);
    } else {
        if (w->i % PER_MARK == 0)
            w->near = (struct extent_near){0};
        unpack(w);
    }
}

void extents_next(struct extent_walk *w)
{
    w->from = extent_end(&w->e);
    w->i++;
    load(w);
}

struct extent_walk extents_walk(const struct extents *x, uint64_t guest)
{
    struct extent_walk w = {.x = x};
    size_t lo = 0, hi = x->mark_n;

    if (x->n > 0 && x->last.guest <= guest) {
        w.i = extent_end(&x->last) > guest ? x->n - 1 : x->n;
        w.from = x->last.guest;
        load(&w);
        return w;
    }
    while (hi - lo > 1) {
        size_t mid = lo + (hi - lo) / 2;

        if (x->marks[mid].guest <= guest)
            lo = mid;
        else
            hi = mid;
    }
    if (x->mark_n > 0) {
        w.i = lo * PER_MARK;
        w.pos = x->marks[lo].pos;
        w.from = lo > 0 ? x->marks[lo].guest : 0;
    }
    load(&w);
    while (w.on && extent_end(&w.e) <= guest)
        extents_next(&w);
    return w;
}

void extents_seek_away(struct extent_walk *w, uint64_t guest)
{
    if (w->on && guest >= w->from)
        for (unsigned steps = 0; w->on && steps < PER_MARK / 2; steps++) {
            if (extent_end(&w->e) > guest)
                return;
            extents_next(w);
        }
    *w = extents_walk(w->x, guest);
}

struct extent extent_cut(const struct extent *e, uint64_t from, uint64_t to)
{
    struct extent r = *e;

    r.guest = max_u64(e->guest, from);
    r.len = min_u64(extent_end(e), to) - r.guest;
    if (e->kind == EXTENT_DATA || e->kind == EXTENT_ZERO_OWNED ||
        e->kind == EXTENT_OWNED)
        r.host = e->host + (r.guest - e->guest);
    return r;
}

/* ------------------------------------------------------------------ overlay */

/* What lower shows in [from, to), where upper has nothing; the walk goes on. */
static int fill_gap(struct extent_walk *lower, uint64_t from, uint64_t to,
                    struct extents *out)
{
    if (from == to) /* neighbours of upper */
        return 0;
    while (lower->on && extent_end(&lower->e) <= from)
        extents_next(lower);
    while (lower->on && lower->e.guest < to) {
        struct extent e = extent_cut(&lower->e, from, to);

        if (e.kind != EXTENT_OWNED && extents_push(out, &e) < 0)
            return -1;
        if (extent_end(&lower->e) > to)
            return 0;
        extents_next(lower);
    }
    return 0;
}

int extents_overlay(const struct extents *upper, const struct extents *lower,
                    struct extents *out)
{
    struct extent_walk below = extents_walk(lower, 0);
    uint64_t pos = 0;

    for (struct extent_walk w = extents_walk(upper, 0); w.on;
         extents_next(&w)) {
        if (w.e.kind == EXTENT_OWNED)
            continue;
        if (fill_gap(&below, pos, w.e.guest, out) < 0 ||
            extents_push(out, &w.e) < 0)
            return -1;
        pos = extent_end(&w.e);
    }
    return fill_gap(&below, pos, UINT64_MAX, out);
}
