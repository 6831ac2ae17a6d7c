/* SPDX-License-Identifier: MIT */
/*
 * Each block that is not all zeros is summed with its offset as the seed, and
 * the sums are added: where extents begin and end makes no difference.
 */
#include "content.h"

#include <string.h>

#include "base/checked.h"
#include "base/sum.h"
#include "fill.h"
#include "holes.h"

#define WINDOW  ((size_t)1 << 20)
#define BLOCK   ((size_t)1 << 16)
#define WAIT_MS 100

struct reader {
    struct filler filler;
    struct fill fill;
    struct aio_pool *pool;
    uint8_t *data;
    bool busy;
};

static void filled(struct fill *f)
{
    ((struct reader *)f->user)->busy = false;
}

static bool all_zero(const uint8_t *p, size_t n)
{
    return p[0] == 0 && memcmp(p, p + 1, n - 1) == 0;
}

static int read_window(struct reader *r, uint64_t at, size_t len,
                       struct qstill_error *err)
{
    fill_begin(&r->fill, r->data, WINDOW);
    r->fill.done = filled;
    r->fill.user = r;
    if (fill_guest(&r->filler, &r->fill, at, len) < 0)
        return err_nomem(err);
    r->busy = true;
    fill_start(&r->filler, &r->fill);
    while (r->busy)
        if (aio_wait(r->filler.aio, 1, WAIT_MS, err) < 0)
            return err->code;
    if (r->fill.error < 0)
        *err = r->fill.why;
    return r->fill.error;
}

/* Zeros for what is left out of the window. */
static void blank(const struct extents *skip, uint8_t *data, uint64_t at,
                  size_t len)
{
    for (struct extent_walk w = extents_walk(skip, at);
         w.on && w.e.guest < at + len; extents_next(&w)) {
        struct extent e = extent_cut(&w.e, at, at + len);

        memset(data + (e.guest - at), 0, (size_t)e.len);
    }
}

static int sum_view(struct reader *r, const struct extents *skip, uint64_t size,
                    uint64_t *sum, struct qstill_error *err)
{
    uint64_t at = 0;

    *sum = size;
    for (struct extent_walk w = extents_walk(r->filler.view, 0); w.on;
         extents_next(&w)) {
        const struct extent *e = &w.e;
        uint64_t first = max_u64(at, e->guest / WINDOW * WINDOW);

        if (!extent_has_bytes(e))
            continue;
        for (at = first; at < e->guest + e->len && at < size; at += WINDOW) {
            size_t len = (size_t)min_u64(size - at, WINDOW);

            if (read_window(r, at, len, err) < 0)
                return err->code;
            if (skip)
                blank(skip, r->data, at, len);
            for (size_t k = 0; k < len; k += BLOCK) {
                size_t n = len - k < BLOCK ? len - k : BLOCK;

                if (!all_zero(r->data + k, n))
                    *sum += sum_bytes(r->data + k, n, at + k + 1);
            }
        }
    }
    return 0;
}

static int find_foreign(const struct extents *view, struct extents *out,
                        struct qstill_error *err)
{
    for (struct extent_walk w = extents_walk(view, 0); w.on; extents_next(&w))
        if (w.e.kind == EXTENT_FOREIGN && extents_push(out, &w.e) < 0)
            return err_nomem(err);
    return 0;
}

uint64_t content_beyond(const struct extents *a, const struct extents *b)
{
    uint64_t sum = 0;

    for (struct extent_walk w = extents_walk(a, 0); w.on; extents_next(&w)) {
        const struct extent *e = &w.e;

        sum += e->len;
        for (struct extent_walk o = extents_walk(b, e->guest);
             o.on && o.e.guest < extent_end(e); extents_next(&o))
            sum -= extent_cut(&o.e, e->guest, extent_end(e)).len;
    }
    return sum;
}

int content_sum(struct chain *c, const struct extents *skip, uint64_t *sum,
                struct extents *foreign, struct qstill_error *err)
{
    CLEANUP(extents_fini) struct extents view = EXTENTS_INIT;
    struct reader r = {0};

    if (chain_view_all(c, CHAIN_FORGET_MAPS, &view, err) < 0 ||
        holes_drop(c, &view, err) < 0 || find_foreign(&view, foreign, err) < 0)
        return err->code;
    for (size_t i = 0; i < c->n; i++)
        if (image_open_direct(c->layers[i], err) < 0)
            return err->code;
    r.filler = (struct filler){.aio = c->aio, .chain = c, .view = &view};
    if (aio_pool_open(&r.pool, c->aio, WINDOW, 1, err) < 0)
        return err->code;
    r.data = aio_pool_get(r.pool);
    sum_view(&r, skip, c->layers[0]->size, sum, err);
    if (r.busy)
        aio_settle(c->aio);
    fill_fini(&r.fill);
    filler_fini(&r.filler);
    aio_pool_free(r.pool);
    return err->code;
}
