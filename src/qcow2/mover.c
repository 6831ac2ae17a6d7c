/* SPDX-License-Identifier: MIT */
#include "mover.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "mover_impl.h"

/* 1 MiB writes are at the top speed of every disk seen; 48 of them in flight
 * keep reads and writes busy at once. */
#define BUFFER_BYTES ((size_t)1 << 20)
#define MEMORY_BYTES ((size_t)48 << 20)
/* Beside the buffers: compressed clusters are read into memory of their own,
 * also a whole one of 2 MiB for the 512 bytes that are wanted of it. */
#define FLYING_BYTES MEMORY_BYTES
#define STEP_MS      100
/* Where a guest waits for the same disk: its request finds little before it,
 * and the disk has most of its speed all the same. */
#define GENTLE_BYTES ((size_t)256 << 10)
#define GENTLE_UNITS 1u
/* Where the page cache is all there is (tmpfs), a copy is made by a few
 * threads, in pieces that stay in a CPU's cache; io_uring would hand each write
 * to a thread of the kernel. */
#define THREADS        2u /* a file takes one write at a time */
#define THREADED_BYTES ((size_t)128 << 10)
#define THREADED_UNITS 16u
/* Direct writes cover whole pages, whatever less the disk would take: a page
 * that is written both ways at once can lose one of them. */
#define DIRECT_BLOCK 4096u
/* Each is a system call of 10 to 100 microseconds. */
#define SHARES_PER_STEP 512

/* -------------------------------------------------------------- open, close */

/* Nobody can bypass the page cache, so that nothing overlaps but CPUs. Zeros
 * are told by a bit per block. */
static bool wants_threads(const struct mover *m)
{
    const struct chain *c = m->o.chain;
    size_t block = m->o.zero_block;

    for (size_t i = 0; i < c->n; i++)
        if (c->layers[i]->direct >= 0)
            return false;
    return m->o.target->direct < 0 && io_is_real(m->o.target->io) &&
           (block == 0 || block >= THREADED_BYTES / 64);
}

/* What is begun at once, and read or written at once. */
static size_t buffer_bytes(const struct mover_options *o, size_t most)
{
    return max_u64(ratelimit_piece(o->bwlimit, most),
                   max_u64(o->target->cluster_size, o->zero_block));
}

static int start_threads(struct mover *m, struct qstill_error *err)
{
    m->event_fd = aio_eventfd(m->aio, err);
    if (m->event_fd < 0)
        return err->code;
    m->buffer = buffer_bytes(&m->o, THREADED_BYTES);
    return taskpool_open(&m->threads, THREADS, m->event_fd, err);
}

static void unit_run(struct task *t);

static int make_units(struct mover *m, struct qstill_error *err)
{
    size_t count = max_u64(MEMORY_BYTES / max_u64(m->buffer, BUFFER_BYTES), 4);

    if (m->o.gentle)
        count = GENTLE_UNITS;
    if (m->threads)
        count = THREADED_UNITS;
    if (aio_pool_open(&m->pool, m->threads ? NULL : m->aio, m->buffer,
                      (unsigned)count, err) < 0)
        return err->code;
    m->units = calloc(count, sizeof(*m->units));
    if (!m->units)
        return err_nomem(err);
    m->unit_count = count;
    for (size_t i = 0; i < count; i++) {
        m->units[i].m = m;
        m->units[i].task.run = unit_run;
        m->units[i].data = aio_pool_get(m->pool);
    }
    return 0;
}

int mover_open(struct mover **out, const struct mover_options *o,
               struct qstill_error *err)
{
    CLEANUP(mover_closep) struct mover *m = calloc(1, sizeof(*m));
    struct aio_options a = {.depth = 256, .max_bytes = FLYING_BYTES};

    if (!m)
        return err_nomem(err);
    m->o = *o;
    m->next = moves_walk(o->moves);
    m->buffer = buffer_bytes(o, o->gentle ? GENTLE_BYTES : BUFFER_BYTES);
    m->shareable = calloc(o->chain->n, sizeof(bool));
    if (!m->shareable)
        return err_nomem(err);
    if (aio_open(&m->aio, o->target->io, &a, err) < 0)
        return err->code;
    m->filler =
        (struct filler){.aio = m->aio, .chain = o->chain, .view = o->view};
    for (size_t i = 0; i < o->chain->n; i++)
        if (image_open_direct(o->chain->layers[i], err) < 0)
            return err->code;
    if (image_open_direct(o->target, err) < 0 ||
        (wants_threads(m) && start_threads(m, err) < 0) ||
        make_units(m, err) < 0)
        return err->code;
    mover_share_init(m);
    ratelimit_init(&m->limit, o->bwlimit);
    *out = take_ptr(&m);
    return 0;
}

void mover_close(struct mover *m)
{
    if (!m)
        return;
    m->failed = QSTILL_E_CANCELLED; /* units that come back start no more */
    taskpool_close(m->threads);     /* they write to the event of the aio */
    aio_close(m->aio);
    for (size_t i = 0; i < m->unit_count; i++)
        fill_fini(&m->units[i].fill);
    filler_fini(&m->filler);
    free(m->units);
    aio_pool_free(m->pool);
    free(m->shareable);
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

/* ---------------------------------------------------------- on a thread */

/* All of a unit, without a word to anybody: unit_take() tells. */
static void unit_run(struct task *t)
{
    struct unit *u = (struct unit *)t;
    struct image *target = u->m->o.target;
    size_t block = u->m->o.zero_block;

    u->zeros = 0;
    u->error = fill_now(target->io, &u->fill);
    if (u->error)
        u->why = u->fill.why;
    while (u->error == 0 && u->at < u->fill.len) {
        size_t len;

        if (block && is_zero_block(u, u->at)) {
            u->zeros |= 1ull << u->at / block;
            u->at += block_len(u, u->at);
            continue;
        }
        len = bytes_to_write(u);
        u->error = io_write_full(target->io, target->wfd, u->data + u->at, len,
                                 u->dst + u->at, &u->why);
        if (u->error)
            u->error = err_wrap(&u->why, "%s", target->path);
        u->at += len;
    }
}

/* Back on the mover's thread. */
static void unit_take(struct unit *u)
{
    struct mover *m = u->m;
    size_t block = m->o.zero_block;

    if (u->error)
        fail(m, &u->why);
    else
        m->count.done += u->fill.len;
    for (size_t at = 0; u->zeros && m->o.zeros && at < u->fill.len; at += block)
        if (u->zeros & 1ull << at / block)
            m->o.zeros(m->o.user, u->dst + at, block_len(u, at));
    unit_end(u);
}

/* Those that are ready, or the next one. */
static int take_units(struct mover *m, int wait_ms, struct qstill_error *err)
{
    struct pollfd fd = {.fd = m->event_fd, .events = POLLIN};
    struct task *t = taskpool_take(m->threads);

    if (!t) {
        if (aio_poll(m->aio, err) < 0) /* clears the event */
            return err->code;
        t = taskpool_take(m->threads);
    }
    if (!t) {
        poll(&fd, 1, wait_ms);
        t = taskpool_take(m->threads);
    }
    for (; t; t = taskpool_take(m->threads))
        unit_take((struct unit *)t);
    return 0;
}

void mover_advance(struct mover *m, uint64_t len)
{
    m->at += len;
    if (m->at == m->next.m.len) {
        moves_next(&m->next);
        m->at = 0;
    }
}

/* The next piece of the current move that fits into `room`. */
static int add_piece(struct mover *m, struct fill *f, struct qstill_error *err)
{
    const struct move *mv = &m->next.m;
    size_t len = share_distance(&m->ask, mv, m->at, f->room - f->len);
    int r;

    if (mv->layer == MOVE_GUEST)
        r = fill_guest(&m->filler, f, mv->from + m->at, len);
    else
        r = fill_raw(&m->filler, f, mv->layer, mv->from, mv->take, len);
    if (r < 0)
        return err_nomem(err);
    mover_advance(m, len);
    return 0;
}

static bool fits(struct mover *m, const struct unit *u)
{
    const struct move *mv = &m->next.m;

    if (!m->next.on || u->dst + u->fill.len != mv->dst + m->at ||
        mover_may_share(m))
        return false;
    /* raw pieces are not cut */
    return mv->layer == MOVE_GUEST ? u->fill.len < u->fill.room
                                   : u->fill.room - u->fill.len >= mv->len;
}

static int start_unit(struct mover *m, struct unit *u, struct qstill_error *err)
{
    const struct move *mv = &m->next.m;

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
    if (m->threads)
        taskpool_submit(m->threads, &u->task);
    else
        fill_start(&m->filler, &u->fill);
    return 0;
}

/* --------------------------------------------------------------------- step */

/* Sharing takes time too: a step does not do all of it. */
static bool share_some(struct mover *m)
{
    for (size_t calls = 0; calls < SHARES_PER_STEP;) {
        size_t n = m->next.on ? mover_share(m) : 0;

        if (n == 0)
            return false;
        calls += n;
    }
    return true;
}

static int start_units(struct mover *m, struct qstill_error *err)
{
    for (size_t i = 0; i < m->unit_count; i++) {
        if (m->units[i].busy)
            continue;
        if (share_some(m) || !m->next.on ||
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
        int wait = limit > 0 ? limit : STEP_MS;

        if ((m->threads ? take_units(m, wait, err)
                        : aio_wait(m->aio, 1, wait, err)) < 0)
            return err->code;
    } else if (limit > 0 && m->next.on && m->failed == 0) {
        struct timespec ts = {.tv_nsec = limit * 1000000L};

        nanosleep(&ts, NULL);
    }
    if (m->failed && m->busy == 0) {
        *err = m->why;
        return m->failed;
    }
    *done = m->failed == 0 && !m->next.on && m->busy == 0;
    return 0;
}
