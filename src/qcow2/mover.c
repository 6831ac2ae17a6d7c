/* SPDX-License-Identifier: MIT */
#include "mover.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/checked.h"

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
    uint64_t begun;    /* bytes of all, copied */
    size_t busy;       /* units */
    bool *unshareable; /* by layer */
    struct mover_count count;
    struct timespec start;
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
    m->buffer = max_u64(BUFFER_BYTES, o->target->cluster_size);
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
    clock_gettime(CLOCK_MONOTONIC, &m->start);
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

    return aio_eventfd(m->aio, &ignored);
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

static void unit_written(struct aio_op *op)
{
    struct unit *u = op->user;
    struct qstill_error why;

    if (op->error) {
        err_errno(&why, op->error, "writing %s", u->m->o.target->path);
        fail(u->m, &why);
    }
    u->m->count.done += op->len;
    unit_end(u);
}

static void unit_filled(struct fill *f)
{
    struct unit *u = f->user;
    struct mover *m = u->m;
    struct image *t = m->o.target;

    if (f->error < 0)
        fail(m, &f->why);
    if (m->failed) {
        unit_end(u);
        return;
    }
    u->write = (struct aio_op){.type = AIO_WRITE,
                               .fd = t->wfd,
                               .off = u->dst,
                               .data = u->data,
                               .len = f->len,
                               .done = unit_written,
                               .user = u};
    if (t->direct >= 0 && u->dst % DIRECT_BLOCK == 0 &&
        f->len % DIRECT_BLOCK == 0)
        u->write.fd = t->direct;
    aio_submit(m->aio, &u->write);
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
    u->fill.done = unit_filled;
    u->fill.user = u;
    fill_begin(&u->fill, u->data, m->buffer);
    do {
        if (add_piece(m, &u->fill, err) < 0)
            return err->code;
    } while (fits(m, u));
    u->busy = true;
    m->busy++;
    m->begun += u->fill.len;
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

static uint64_t elapsed_ms(const struct mover *m)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)((now.tv_sec - m->start.tv_sec) * 1000 +
                      (now.tv_nsec - m->start.tv_nsec) / 1000000);
}

/* Milliseconds until the limit lets another buffer begin; 0: now. */
static int wait_for_limit(const struct mover *m)
{
    uint64_t due;

    if (m->o.bwlimit == 0)
        return 0;
    due = (uint64_t)((double)m->begun * 1000 / (double)m->o.bwlimit);
    return due <= elapsed_ms(m) ? 0
                                : (int)min_u64(due - elapsed_ms(m), STEP_MS);
}

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
        if (share_some(m) || m->next == m->o.moves->n || wait_for_limit(m) > 0)
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
    limit = wait_for_limit(m);
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
