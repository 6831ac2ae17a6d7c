/* SPDX-License-Identifier: MIT */
#include "mover.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "ratelimit.h"

/* 1 MiB writes are at the top speed of every disk seen; 48 of them in flight
 * keep reads and writes busy at once. */
#define BUFFER_BYTES ((size_t)1 << 20)
#define MEMORY_BYTES ((size_t)48 << 20)
/* Compressed clusters are read into memory of their own. */
#define STEP_MS 100
/* Direct writes cover whole pages, whatever less the disk would take: a page
 * that is written both ways at once can lose one of them. */
#define DIRECT_BLOCK 4096u
/* Each is a system call of 10 to 100 microseconds. */
#define SHARES_PER_STEP 512

struct unit {
    struct mover *m;
    struct fill fill;
    struct aio_op write;
    uint8_t *data;
    uint64_t dst;
    size_t at; /* written, or found to be zeros */
    bool busy;
};

struct mover {
    struct mover_options o;
    struct aio *aio;
    struct aio_pool *pool;
    struct filler filler;
    size_t buffer;
    struct unit *units;
    size_t unit_count;
    size_t next;       /* move */
    uint64_t at;       /* bytes of it begun */
    size_t busy;       /* units */
    bool *unshareable; /* by layer */
    struct mover_count count;
    struct ratelimit limit; /* of bytes copied */
    int failed;
    struct qstill_error why;
};

/* -------------------------------------------------------------- open, close */

static int make_units(struct mover *m, struct qstill_error *err)
{
    size_t count = max_u64(MEMORY_BYTES / m->buffer, 4);

    if (aio_pool_open(&m->pool, m->aio, m->buffer, (unsigned)count, err) < 0)
        return err->code;
    m->units = calloc(count, sizeof(*m->units));
    if (!m->units)
        return err_nomem(err);
    m->unit_count = count;
    for (size_t i = 0; i < count; i++) {
        m->units[i].m = m;
        m->units[i].data = aio_pool_get(m->pool);
    }
    return 0;
}

int mover_open(struct mover **out, const struct mover_options *o,
               struct qstill_error *err)
{
    CLEANUP(mover_closep) struct mover *m = calloc(1, sizeof(*m));
    struct aio_options a = {.depth = 256, .max_bytes = 2 * MEMORY_BYTES};

    if (!m)
        return err_nomem(err);
    m->o = *o;
    m->buffer =
        max_u64(BUFFER_BYTES, max_u64(o->target->cluster_size, o->zero_block));
    m->unshareable = calloc(o->chain->n, sizeof(bool));
    if (!m->unshareable)
        return err_nomem(err);
    if (aio_open(&m->aio, o->target->io, &a, err) < 0)
        return err->code;
    m->filler =
        (struct filler){.aio = m->aio, .chain = o->chain, .view = o->view};
    for (size_t i = 0; i < o->chain->n; i++)
        if (image_open_direct(o->chain->layers[i], err) < 0)
            return err->code;
    if (image_open_direct(o->target, err) < 0 || make_units(m, err) < 0)
        return err->code;
    ratelimit_init(&m->limit, o->bwlimit);
    *out = take_ptr(&m);
    return 0;
}

void mover_close(struct mover *m)
{
    if (!m)
        return;
    m->failed = QSTILL_E_CANCELLED; /* units that come back start no more */
    aio_close(m->aio);
    for (size_t i = 0; i < m->unit_count; i++)
        fill_fini(&m->units[i].fill);
    free(m->units);
    filler_fini(&m->filler);
    aio_pool_free(m->pool);
    free(m->unshareable);
    free(m);
}

void mover_closep(struct mover **m)
{
    mover_close(*m);
}

struct mover_count mover_count(const struct mover *m)
{
    return m->count;
}

int mover_fd(struct mover *m)
{
    struct qstill_error ignored;
    int fd = aio_eventfd(m->aio, &ignored);

    /* with nothing in flight nobody would make it readable */
    return m->busy > 0 ? fd : -1;
}

/* -------------------------------------------------------------------- units */

static void unit_end(struct unit *u)
{
    u->busy = false;
    u->m->busy--;
}

static void fail(struct mover *m, const struct qstill_error *why)
{
    if (m->failed == 0) {
        m->failed = why->code;
        m->why = *why;
    }
}

static void unit_write(struct unit *u);

static void unit_written(struct aio_op *op)
{
    struct unit *u = op->user;
    struct mover *m = u->m;
    struct qstill_error why;

    if (op->error) {
        err_errno(&why, op->error, "writing %s", m->o.target->path);
        fail(m, &why);
    }
    m->count.done += op->len;
    u->at += op->len;
    if (u->at < u->fill.len && !m->failed)
        unit_write(u);
    else
        unit_end(u);
}

/* The block of the target that the unit's byte `at` lies in, as far as it is
 * in the unit. */
static size_t block_len(const struct unit *u, size_t at)
{
    size_t block = u->m->o.zero_block;

    return min_u64(block - (u->dst + at) % block, u->fill.len - at);
}

static bool is_zero_block(const struct unit *u, size_t at)
{
    return bytes_are_zero(u->data + at, block_len(u, at));
}

static void skip_zeros(struct unit *u)
{
    struct mover *m = u->m;
    size_t from = u->at;

    while (u->at < u->fill.len && is_zero_block(u, u->at))
        u->at += block_len(u, u->at);
    if (u->at > from && m->o.zeros)
        m->o.zeros(m->o.user, u->dst + from, u->at - from);
    m->count.done += u->at - from;
}

/* From u->at to the next block of zeros. */
static size_t bytes_to_write(const struct unit *u)
{
    size_t end = u->at;

    if (u->m->o.zero_block == 0)
        return u->fill.len - u->at;
    do
        end += block_len(u, end);
    while (end < u->fill.len && !is_zero_block(u, end));
    return end - u->at;
}

static void unit_write(struct unit *u)
{
    struct image *t = u->m->o.target;
    uint64_t dst;
    size_t len;

    if (u->m->o.zero_block)
        skip_zeros(u);
    if (u->at == u->fill.len) {
        unit_end(u);
        return;
    }
    dst = u->dst + u->at;
    len = bytes_to_write(u);
    u->write = (struct aio_op){.type = AIO_WRITE,
                               .fd = t->wfd,
                               .off = dst,
                               .data = u->data + u->at,
                               .len = len,
                               .done = unit_written,
                               .user = u};
    if (t->direct >= 0 && dst % DIRECT_BLOCK == 0 && len % DIRECT_BLOCK == 0 &&
        u->at % DIRECT_BLOCK == 0)
        u->write.fd = t->direct;
    aio_submit(u->m->aio, &u->write);
}

static void unit_filled(struct fill *f)
{
    struct unit *u = f->user;

    if (f->error < 0)
        fail(u->m, &f->why);
    if (u->m->failed)
        unit_end(u);
    else
        unit_write(u);
}

/* The next piece of the current move that fits into `room`. */
static int add_piece(struct mover *m, struct fill *f, struct qstill_error *err)
{
    const struct move *mv = &m->o.moves->v[m->next];
    size_t len = min_u64(mv->len - m->at, f->room - f->len);
    int r;

    if (mv->layer == MOVE_GUEST)
        r = fill_guest(&m->filler, f, mv->from + m->at, len);
    else
        r = fill_raw(&m->filler, f, mv->layer, mv->from, mv->take, len);
    if (r < 0)
        return err_nomem(err);
    m->at += len;
    if (m->at == mv->len) {
        m->next++;
        m->at = 0;
    }
    return 0;
}

static bool fits(const struct mover *m, const struct unit *u)
{
    const struct move *mv = &m->o.moves->v[m->next];

    if (m->next == m->o.moves->n || u->dst + u->fill.len != mv->dst + m->at)
        return false;
    /* raw pieces are not cut */
    return mv->layer == MOVE_GUEST ? u->fill.len < u->fill.room
                                   : u->fill.room - u->fill.len >= mv->len;
}

static int start_unit(struct mover *m, struct unit *u, struct qstill_error *err)
{
    const struct move *mv = &m->o.moves->v[m->next];

    u->dst = mv->dst + m->at;
    u->at = 0;
    u->fill.done = unit_filled;
    u->fill.user = u;
    fill_begin(&u->fill, u->data, m->buffer);
    do {
        if (add_piece(m, &u->fill, err) < 0)
            return err->code;
    } while (fits(m, u));
    u->busy = true;
    m->busy++;
    ratelimit_begin(&m->limit, u->fill.len);
    fill_start(&m->filler, &u->fill);
    return 0;
}

/* ------------------------------------------------------------------ sharing */

static bool share_extent(struct mover *m, const struct extent *e, uint64_t dst)
{
    const struct image *t = m->o.target;
    const struct image *src = m->o.chain->layers[e->layer];

    if (e->kind != EXTENT_DATA || m->unshareable[e->layer] ||
        e->host + e->len > src->info.file_size)
        return false;
    if (t->io->ops->clone_range(t->io, src->fd, e->host, e->len, t->wfd, dst) <
        0) {
        m->unshareable[e->layer] = true;
        return false;
    }
    return true;
}

/* A whole move made of whole pieces of files. False: it must be copied; what
 * was shared already is then written over. */
static bool share(struct mover *m)
{
    const struct move *mv = &m->o.moves->v[m->next];
    const struct extents *x = m->o.view;
    uint64_t done = 0;

    if (!m->o.share || mv->layer != MOVE_GUEST || m->at != 0)
        return false;
    for (size_t i = extents_find(x, mv->from); done < mv->len; i++) {
        struct extent e;

        if (i >= x->n || x->v[i].guest > mv->from + done)
            return false;
        e = extent_cut(&x->v[i], mv->from, mv->from + mv->len);
        if (!share_extent(m, &e, mv->dst + done))
            return false;
        done += e.len;
    }
    m->count.done += mv->len;
    m->count.shared += mv->len;
    m->next++;
    return true;
}

bool mover_can_share(struct mover *m)
{
    const struct extents *x = m->o.view;

    for (size_t k = 0; m->o.share && k < m->o.moves->n; k++) {
        const struct move *mv = &m->o.moves->v[k];
        size_t i = extents_find(x, mv->from);
        struct extent e;

        if (mv->layer != MOVE_GUEST || i >= x->n || x->v[i].guest > mv->from ||
            x->v[i].kind != EXTENT_DATA)
            continue;
        e = extent_cut(&x->v[i], mv->from, mv->from + mv->len);
        return share_extent(m, &e, mv->dst);
    }
    return false;
}

/* --------------------------------------------------------------------- step */

/* Sharing takes time too: a step does not do all of it. */
static bool share_some(struct mover *m)
{
    for (unsigned i = 0; i < SHARES_PER_STEP; i++)
        if (m->next == m->o.moves->n || !share(m))
            return false;
    return true;
}

static int start_units(struct mover *m, struct qstill_error *err)
{
    for (size_t i = 0; i < m->unit_count; i++) {
        if (m->units[i].busy)
            continue;
        if (share_some(m) || m->next == m->o.moves->n ||
            ratelimit_wait_ms(&m->limit, STEP_MS) > 0)
            break;
        if (start_unit(m, &m->units[i], err) < 0)
            return err->code;
    }
    return 0;
}

int mover_step(struct mover *m, bool *done, struct qstill_error *err)
{
    int limit;

    *done = false;
    if (m->failed == 0 && start_units(m, err) < 0)
        fail(m, err);
    limit = ratelimit_wait_ms(&m->limit, STEP_MS);
    if (m->busy > 0) {
        if (aio_wait(m->aio, 1, limit > 0 ? limit : STEP_MS, err) < 0)
            return err->code;
    } else if (limit > 0 && m->next < m->o.moves->n && m->failed == 0) {
        struct timespec ts = {.tv_nsec = limit * 1000000L};

        nanosleep(&ts, NULL);
    }
    if (m->failed && m->busy == 0) {
        *err = m->why;
        return m->failed;
    }
    *done = m->failed == 0 && m->next == m->o.moves->n && m->busy == 0;
    return 0;
}
