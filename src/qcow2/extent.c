/* SPDX-License-Identifier: MIT */
#include "extent.h"

#include <stdlib.h>

#include "base/checked.h"

void extents_fini(struct extents *x)
{
    free(x->v);
    *x = (struct extents)EXTENTS_INIT;
}

int extents_append(struct extents *x, const struct extent *e)
{
    if (x->n == x->cap) {
        size_t cap = x->cap ? x->cap + x->cap / 2 : 64;
        struct extent *v = realloc(x->v, cap * sizeof(*v));

        if (!v)
            return -1;
        x->v = v;
        x->cap = cap;
    }
    x->v[x->n++] = *e;
    return 0;
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

int extents_push(struct extents *x, const struct extent *e)
{
    if (x->n > 0 && continues(&x->v[x->n - 1], e)) {
        x->v[x->n - 1].len += e->len;
        return 0;
    }
    return extents_append(x, e);
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

size_t extents_find(const struct extents *x, uint64_t guest)
{
    size_t lo = 0, hi = x->n;

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;

        if (extent_end(&x->v[mid]) > guest)
            hi = mid;
        else
            lo = mid + 1;
    }
    return lo;
}

/* What lower shows in [from, to), where upper has nothing; `at` walks on. */
static int fill_gap(const struct extents *lower, size_t *at, uint64_t from,
                    uint64_t to, struct extents *out)
{
    if (from == to) /* neighbours of upper */
        return 0;
    while (*at < lower->n && extent_end(&lower->v[*at]) <= from)
        (*at)++;
    for (size_t i = *at; i < lower->n && lower->v[i].guest < to; i++) {
        struct extent e = extent_cut(&lower->v[i], from, to);

        if (e.kind != EXTENT_OWNED && extents_push(out, &e) < 0)
            return -1;
        *at = i;
    }
    return 0;
}

int extents_overlay(const struct extents *upper, const struct extents *lower,
                    struct extents *out)
{
    uint64_t pos = 0;
    size_t at = 0;

    for (size_t i = 0; i < upper->n; i++) {
        const struct extent *e = &upper->v[i];

        if (e->kind == EXTENT_OWNED)
            continue;
        if (fill_gap(lower, &at, pos, e->guest, out) < 0 ||
            extents_push(out, e) < 0)
            return -1;
        pos = extent_end(e);
    }
    return fill_gap(lower, &at, pos, UINT64_MAX, out);
}
