/* SPDX-License-Identifier: MIT */
/*
 * The part of bulk I/O that both backends share: the queue, the bounds, short
 * transfers, the buffer pool.
 */
#include "aio.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>

#include "aio_impl.h"
#include "checked.h"

#define DEFAULT_DEPTH     64u
#define MAX_DEPTH         4096u
#define DEFAULT_MAX_BYTES ((size_t)64 << 20)

static void queue_init(struct aio_queue *q)
{
    q->head = NULL;
    q->tail = &q->head;
    q->count = 0;
}

static void queue_push(struct aio_queue *q, struct aio_op *op)
{
    op->next = NULL;
    *q->tail = op;
    q->tail = &op->next;
    q->count++;
}

static void queue_push_front(struct aio_queue *q, struct aio_op *op)
{
    op->next = q->head;
    q->head = op;
    if (!op->next)
        q->tail = &op->next;
    q->count++;
}

static struct aio_op *queue_pop(struct aio_queue *q)
{
    struct aio_op *op = q->head;

    q->head = op->next;
    if (!q->head)
        q->tail = &q->head;
    q->count--;
    return op;
}

int aio_open(struct aio **out, const struct io *io,
             const struct aio_options *options, struct qstill_error *err)
{
    struct aio_options o = options ? *options : (struct aio_options){0};
    struct aio *a = NULL;

    o.depth = o.depth == 0 ? DEFAULT_DEPTH : o.depth;
    o.depth = o.depth > MAX_DEPTH ? MAX_DEPTH : o.depth;
    if (o.backend != AIO_SYNC && io_is_real(io) &&
        aio_uring_new(&a, o.depth, o.one_thread, err) < 0)
        return err->code;
    if (!a && o.backend == AIO_URING)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "io_uring is not available here");
    if (!a && aio_sync_new(&a, err) < 0)
        return err->code;
    a->io = io;
    a->depth = o.depth;
    a->max_bytes = o.max_bytes ? o.max_bytes : DEFAULT_MAX_BYTES;
    a->eventfd = -1;
    a->stop = o.stop;
    queue_init(&a->queued);
    *out = a;
    return 0;
}

int aio_check_stop(const struct aio *a, struct qstill_error *err)
{
    return a->stop.asked && a->stop.asked(a->stop.user)
               ? err_set(err, QSTILL_E_CANCELLED, "cancelled")
               : 0;
}

static void finish(struct aio_op *op, int error)
{
    op->error = error;
    op->pending = false;
    if (op->done)
        op->done(op);
}

#define SETTLE_TRIES 1000u /* of a millisecond */

void aio_settle(struct aio *a)
{
    struct qstill_error scratch;
    unsigned tries = 0;

    while (a->queued.head)
        finish(queue_pop(&a->queued), ECANCELED);
    /* a `done` may have submitted again, hence the loop. What flies writes to
     * memory that the caller frees: one failure is no reason to leave it. */
    while (a->flying > 0 && tries < SETTLE_TRIES) {
        if (a->backend->reap(a, true, -1, &scratch) < 0) {
            tries++;
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        }
        while (a->queued.head)
            finish(queue_pop(&a->queued), ECANCELED);
    }
}

void aio_close(struct aio *a)
{
    if (!a)
        return;
    aio_settle(a);
    closep(&a->eventfd);
    a->backend->close(a);
}

void aio_closep(struct aio **a)
{
    aio_close(*a);
}

const char *aio_backend_name(const struct aio *a)
{
    return a->backend->name;
}

size_t aio_pending(const struct aio *a)
{
    return a->queued.count + a->flying;
}

void aio_submit(struct aio *a, struct aio_op *op)
{
    op->error = 0;
    op->moved = 0;
    op->pending = true;
    if (op->type == AIO_DATASYNC)
        op->len = 0;
    if (op->iov_count > 0) {
        op->len = 0;
        for (unsigned i = 0; i < op->iov_count; i++)
            op->len += op->iov[i].iov_len;
    }
    queue_push(&a->queued, op);
    if (a->eventfd >= 0)
        eventfd_write(a->eventfd, 1);
}

/* Drops `n` moved bytes from the front of the vector. */
static void iov_advance(struct aio_op *op, size_t n)
{
    while (op->iov_count > 0 && n >= op->iov->iov_len) {
        n -= op->iov->iov_len;
        op->iov++;
        op->iov_count--;
    }
    if (n > 0) {
        op->iov->iov_base = (char *)op->iov->iov_base + n;
        op->iov->iov_len -= n;
    }
}

void aio_moved(struct aio *a, struct aio_op *op, int64_t res)
{
    bool again = res == -EINTR || res == -EAGAIN;
    int error = 0;

    a->flying--;
    a->flying_bytes -= aio_left(op);
    if (res > 0) {
        op->moved += (size_t)res;
        if (op->iov_count > 0)
            iov_advance(op, (size_t)res);
        again = op->moved < op->len;
    } else if (res == 0 && op->type == AIO_WRITE && op->len > 0) {
        error = EIO; /* no progress: never a success */
    } else if (res < 0 && !again) {
        error = (int)-res;
    }
    if (again)
        queue_push_front(&a->queued, op);
    else
        finish(op, error);
}

static bool has_room(const struct aio *a, const struct aio_op *op)
{
    if (a->flying == 0)
        return true;
    return a->flying < a->depth &&
           a->flying_bytes + aio_left(op) <= a->max_bytes;
}

static int start_queued(struct aio *a, struct qstill_error *err)
{
    while (a->queued.head && has_room(a, a->queued.head)) {
        struct aio_op *op = queue_pop(&a->queued);

        if (op->begin && !op->data && !op->begin(op)) {
            finish(op, ENOMEM);
            continue;
        }
        a->flying++;
        a->flying_bytes += aio_left(op);
        if (a->backend->start(a, op, err) < 0) {
            a->flying--;
            a->flying_bytes -= aio_left(op);
            queue_push_front(&a->queued, op);
            return err->code;
        }
    }
    return 0;
}

/* Reading the eventfd before reaping: an event after it sets it again. */
static void eventfd_clear(struct aio *a)
{
    eventfd_t ignored;

    if (a->eventfd >= 0)
        eventfd_read(a->eventfd, &ignored);
}

int aio_poll(struct aio *a, struct qstill_error *err)
{
    eventfd_clear(a);
    if (start_queued(a, err) < 0 || a->backend->reap(a, false, 0, err) < 0)
        return err->code;
    /* what the callbacks submitted, and what has room now */
    if (!a->queued.head)
        return 0;
    if (start_queued(a, err) < 0)
        return err->code;
    return a->backend->reap(a, false, 0, err);
}

int aio_wait(struct aio *a, unsigned min, int timeout_ms,
             struct qstill_error *err)
{
    size_t pending = aio_pending(a);
    size_t until = pending > min ? pending - min : 0;

    if (aio_poll(a, err) < 0)
        return err->code;
    while (aio_pending(a) > until) {
        size_t before = aio_pending(a);

        if (a->backend->reap(a, true, timeout_ms, err) < 0 ||
            start_queued(a, err) < 0)
            return err->code;
        if (timeout_ms >= 0 && aio_pending(a) == before)
            return 0;
    }
    return a->queued.head ? aio_poll(a, err) : 0;
}

int aio_drain(struct aio *a, struct qstill_error *err)
{
    while (aio_pending(a) > 0)
        if (aio_wait(a, 1, -1, err) < 0) {
            aio_settle(a);
            return err->code;
        }
    return 0;
}

int aio_eventfd(struct aio *a, struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;

    if (a->eventfd >= 0)
        return a->eventfd;
    fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0)
        return err_errno(err, errno, "cannot make an eventfd");
    if (a->backend->use_eventfd(a, fd, err) < 0)
        return err->code;
    if (aio_pending(a) > 0)
        eventfd_write(fd, 1);
    a->eventfd = take_fd(&fd);
    return a->eventfd;
}

/* ----------------------------------------------------------- buffer pool */

#define HUGE_PAGE ((size_t)2 << 20)

struct aio_pool {
    void *map;
    size_t map_len;
    size_t size;
    unsigned free_count;
    void *free[]; /* a stack: the buffer used last is warm in the cache */
};

int aio_pool_open(struct aio_pool **out, struct aio *a, size_t size,
                  unsigned count, struct qstill_error *err)
{
    struct aio_pool *p;
    size_t total;
    uint8_t *first;

    if (mul_size(size, count, &total) || total > SIZE_MAX - HUGE_PAGE)
        return err_nomem(err);
    p = calloc(1, sizeof(*p) + count * sizeof(p->free[0]));
    if (!p)
        return err_nomem(err);
    p->size = size;
    p->map_len = total + HUGE_PAGE;
    p->map = mmap(NULL, p->map_len, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p->map == MAP_FAILED) {
        free(p);
        return err_nomem(err);
    }
    first = (uint8_t *)round_up_u64((uintptr_t)p->map, HUGE_PAGE);
    madvise(first, total, MADV_HUGEPAGE); /* fewer faults; a wish only */
    while (p->free_count < count) {
        unsigned i = count - 1 - p->free_count;

        p->free[p->free_count++] = first + i * size;
    }
    if (a && a->backend->register_region)
        a->backend->register_region(a, first, total);
    *out = p;
    return 0;
}

void aio_pool_free(struct aio_pool *pool)
{
    if (!pool)
        return;
    munmap(pool->map, pool->map_len);
    free(pool);
}

void aio_pool_freep(struct aio_pool **pool)
{
    aio_pool_free(*pool);
}

void *aio_pool_get(struct aio_pool *pool)
{
    return pool->free_count ? pool->free[--pool->free_count] : NULL;
}

void aio_pool_put(struct aio_pool *pool, void *data)
{
    pool->free[pool->free_count++] = data;
}

size_t aio_pool_buffer_size(const struct aio_pool *pool)
{
    return pool->size;
}
