/* SPDX-License-Identifier: MIT */
#include "compare.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "fill.h"
#include "holes.h"

#define PIECE_BYTES ((size_t)1 << 20)
#define PIECES      16u
#define STEP_MS     100
/* Ranges walked over in one step without anything to read. */
#define WALK_PER_STEP 4096u

struct side {
    struct chain *chain;
    struct extents view;
    struct filler filler;
    uint64_t size;
    struct extent_walk at; /* the first that ends after the position */
};

struct pair {
    struct compare *c;
    struct fill fill[2];
    uint8_t *data[2];
    uint64_t guest;
    unsigned filled;
    bool busy;
};

struct compare {
    struct side side[2];
    struct aio *aio;
    struct aio_pool *pool;
    struct pair pairs[PIECES];
    unsigned busy;
    uint64_t pos;
    uint64_t end;
    uint64_t differs; /* first sector that does, or UINT64_MAX */
    int failed;
    struct qstill_error why;
};

static void side_close(struct side *s)
{
    filler_fini(&s->filler);
    extents_fini(&s->view);
    chain_close(s->chain);
}

void compare_close(struct compare *c)
{
    if (!c)
        return;
    aio_close(c->aio);
    for (unsigned i = 0; i < PIECES; i++) {
        fill_fini(&c->pairs[i].fill[0]);
        fill_fini(&c->pairs[i].fill[1]);
    }
    aio_pool_free(c->pool);
    side_close(&c->side[0]);
    side_close(&c->side[1]);
    free(c);
}

void compare_closep(struct compare **c)
{
    compare_close(*c);
}

static int side_load(struct compare *c, unsigned i, struct qstill_error *err)
{
    struct side *s = &c->side[i];

    if (chain_view_all(s->chain, CHAIN_FORGET_MAPS, &s->view, err) < 0 ||
        holes_drop(s->chain, &s->view, err) < 0)
        return err->code;
    for (size_t k = 0; k < s->chain->n; k++)
        if (image_open_direct(s->chain->layers[k], err) < 0)
            return err->code;
    s->size = s->chain->layers[0]->size;
    s->at = extents_walk(&s->view, 0);
    s->filler =
        (struct filler){.aio = c->aio, .chain = s->chain, .view = &s->view};
    return 0;
}

int compare_open(struct compare **out, struct chain *a, struct chain *b,
                 struct qstill_error *err)
{
    CLEANUP(compare_closep) struct compare *c = calloc(1, sizeof(*c));

    if (!c) {
        chain_close(a);
        chain_close(b);
        return err_nomem(err);
    }
    c->side[0].chain = a;
    c->side[1].chain = b;
    c->differs = UINT64_MAX;
    if (aio_open(&c->aio, a->io, NULL, err) < 0 ||
        aio_pool_open(&c->pool, c->aio, PIECE_BYTES, 2 * PIECES, err) < 0)
        return err->code;
    for (unsigned i = 0; i < PIECES; i++) {
        c->pairs[i].c = c;
        c->pairs[i].data[0] = aio_pool_get(c->pool);
        c->pairs[i].data[1] = aio_pool_get(c->pool);
    }
    *out = take_ptr(&c);
    return 0;
}

int compare_load(struct compare *c, struct aio_stop stop,
                 struct qstill_error *err)
{
    for (unsigned i = 0; i < 2; i++) {
        c->side[i].chain->stop = stop;
        if (side_load(c, i, err) < 0)
            return err->code;
        c->end = max_u64(c->end, c->side[i].size);
    }
    return 0;
}

/* ------------------------------------------------------------------ walking */

/* What one side shows at a position, and up to where; foreign or of bytes.
 * NULL: zeros. */
static const struct extent *at(struct side *s, uint64_t pos, uint64_t *to)
{
    const struct extent *e = &s->at.e;

    extents_seek(&s->at, pos);
    if (!s->at.on)
        return NULL;
    if (e->guest > pos) {
        *to = min_u64(*to, e->guest);
        return NULL;
    }
    *to = min_u64(*to, extent_end(e));
    return extent_has_bytes(e) || e->kind == EXTENT_FOREIGN ? e : NULL;
}

/* Both are the same bytes of the same file; of a foreign one, whatever it is.
 */
static bool same_place(const struct compare *c, const struct extent *a,
                       const struct extent *b, uint64_t pos)
{
    const struct qcow2_info *x = &c->side[0].chain->layers[a->layer]->info;
    const struct qcow2_info *y = &c->side[1].chain->layers[b->layer]->info;

    if (a->kind == EXTENT_FOREIGN && b->kind == EXTENT_FOREIGN)
        return x->dev == y->dev && x->ino == y->ino;
    return a->kind == b->kind && x->dev == y->dev && x->ino == y->ino &&
           a->host + (pos - a->guest) == b->host + (pos - b->guest) &&
           (a->kind != EXTENT_COMPRESSED || a->guest == b->guest);
}

/* It cannot be read; but no merge takes anything of it over. */
static bool is_foreign(const struct extent *e)
{
    return e && e->kind == EXTENT_FOREIGN;
}

/* Moves c->pos to the next range that must be read; its end, or c->pos when
 * the walk has to go on in another step. */
static uint64_t next_range(struct compare *c)
{
    for (unsigned i = 0; i < WALK_PER_STEP && c->pos < c->end; i++) {
        uint64_t to = c->end;
        const struct extent *a = at(&c->side[0], c->pos, &to);
        const struct extent *b = at(&c->side[1], c->pos, &to);

        if ((a || b) && !(a && b && same_place(c, a, b, c->pos))) {
            if (is_foreign(a) || is_foreign(b))
                c->differs = min_u64(c->differs, c->pos);
            return is_foreign(a) || is_foreign(b) ? c->pos : to;
        }
        c->pos = to;
    }
    return c->pos;
}

/* ------------------------------------------------------------------- reading
 */

static void judge(struct pair *p)
{
    struct compare *c = p->c;
    size_t len = p->fill[0].len;

    for (unsigned i = 0; i < 2; i++)
        if (p->fill[i].error < 0 && c->failed == 0) {
            c->failed = p->fill[i].error;
            c->why = p->fill[i].why;
        }
    if (c->failed || memcmp(p->data[0], p->data[1], len) == 0)
        return;
    for (size_t k = 0; k < len; k += QCOW2_SECTOR)
        if (memcmp(p->data[0] + k, p->data[1] + k, QCOW2_SECTOR) != 0) {
            c->differs = min_u64(c->differs, p->guest + k);
            return;
        }
}

static void side_filled(struct fill *f)
{
    struct pair *p = f->user;

    if (++p->filled < 2)
        return;
    judge(p);
    p->busy = false;
    p->c->busy--;
}

static int start_pair(struct compare *c, struct pair *p, uint64_t to,
                      struct qstill_error *err)
{
    size_t len = (size_t)min_u64(to - c->pos, PIECE_BYTES);

    p->guest = c->pos;
    p->filled = 0;
    for (unsigned i = 0; i < 2; i++) {
        fill_begin(&p->fill[i], p->data[i], PIECE_BYTES);
        p->fill[i].done = side_filled;
        p->fill[i].user = p;
        if (fill_guest(&c->side[i].filler, &p->fill[i], c->pos, len) < 0)
            return err_nomem(err);
    }
    p->busy = true;
    c->busy++;
    c->pos += len;
    fill_start(&c->side[0].filler, &p->fill[0]);
    fill_start(&c->side[1].filler, &p->fill[1]);
    return 0;
}

int compare_step(struct compare *c, bool *done, struct qstill_error *err)
{
    for (unsigned i = 0; i < PIECES; i++) {
        uint64_t to;

        if (c->pairs[i].busy || c->failed || c->differs != UINT64_MAX)
            continue;
        to = next_range(c);
        if (to > c->pos && start_pair(c, &c->pairs[i], to, err) < 0) {
            c->failed = err->code;
            c->why = *err;
        }
    }
    if (c->busy > 0 && aio_wait(c->aio, 1, STEP_MS, err) < 0)
        return err->code;
    *done = c->busy == 0 &&
            (c->failed || c->differs != UINT64_MAX || c->pos == c->end);
    if (c->busy == 0 && c->failed) {
        *err = c->why;
        return c->failed;
    }
    return 0;
}

int compare_fd(struct compare *c)
{
    struct qstill_error ignored;

    return c->busy ? aio_eventfd(c->aio, &ignored) : -1;
}

bool compare_equal(const struct compare *c, uint64_t *offset)
{
    *offset = c->differs;
    return c->differs == UINT64_MAX;
}

void compare_progress(const struct compare *c, uint64_t *done, uint64_t *total)
{
    *done = c->pos;
    *total = c->end;
}
