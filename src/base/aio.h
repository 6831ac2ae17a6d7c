/* SPDX-License-Identifier: MIT */
/*
 * Bulk I/O: many reads and writes in flight, bounded by number and by bytes.
 *
 *     aio_submit(a, &op);      queue; starts at once or when there is room
 *     aio_wait(a, 1, -1, err); start, sleep until one is done, call `done`
 *     aio_drain(a, err);       until nothing is pending
 *
 * Ops belong to the caller and must stay where they are until `done` is called,
 * which happens inside aio_poll(), aio_wait(), aio_drain() or aio_close(), on
 * the calling thread; `done` may submit again (the same op, too). Short
 * transfers are continued inside. The calls' own result is about the ring: the
 * result of an op is in op->error.
 *
 * aio_uring.c is the fast one; aio_sync.c is its twin where io_uring is
 * refused (seccomp, sysctl) and over every I/O table but io_real().
 */
#ifndef QSTILL_BASE_AIO_H
#define QSTILL_BASE_AIO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "error.h"
#include "io.h"

struct aio;

enum aio_type {
    AIO_READ,
    AIO_WRITE,
    /* fdatasync: covers the writes that are done before it is submitted, so
     * drain first. data, len and off are ignored. */
    AIO_DATASYNC,
};

struct aio_op {
    enum aio_type type;
    int fd;
    uint64_t off;
    void *data; /* not changed by a write */
    size_t len; /* at most AIO_MAX_LEN */
    /* Instead of data when iov_count > 0 (len is then the sum and filled in
     * by aio_submit), at most 1024. The array is used up: entries change. */
    struct iovec *iov;
    unsigned iov_count;
    /* For `data` that takes memory only while the op is in flight: called when
     * it starts, sets that; false: out of memory (ENOMEM). NULL: data is set.
     * What of the ops' data has no other bound has aio_options.max_bytes. */
    bool (*begin)(struct aio_op *op);
    void (*done)(struct aio_op *op); /* NULL: the caller looks at `pending` */
    void *user;

    /* Results, valid when `done` is called. */
    int error;    /* 0 or a positive errno */
    size_t moved; /* bytes; < len without an error only for a read at EOF */
    bool pending; /* between submit and done */

    struct aio_op *next; /* aio's own */
};

#define AIO_MAX_LEN (1u << 30)

enum aio_backend { AIO_ANY, AIO_URING, AIO_SYNC };

/* What takes long while nothing is changed yet asks now and then whether it is
 * to go on. `asked` NULL: it is. */
struct aio_stop {
    bool (*asked)(void *user);
    void *user;
};

struct aio_options {
    unsigned depth;   /* ops in flight; 0: 64 */
    size_t max_bytes; /* in flight; 0: 64 MiB. One op may always run. */
    /* Only the thread that opens the aio will ever call it: lets the ring use
     * SINGLE_ISSUER and DEFER_TASKRUN where the kernel has them. */
    bool one_thread;
    enum aio_backend backend; /* AIO_URING fails where it is refused */
    struct aio_stop stop;     /* for aio_check_stop() */
};

/* `options` may be NULL. `io` must outlive the aio. */
int aio_open(struct aio **out, const struct io *io,
             const struct aio_options *options, struct qstill_error *err);
/* Waits for what is in flight, whatever fails meanwhile; queued ops not yet
 * started end with ECANCELED. For who frees ops of an aio that goes on. */
void aio_settle(struct aio *a);
/* Settles first. NULL is fine. */
void aio_close(struct aio *a);
void aio_closep(struct aio **a);
/* CANCELLED when it has been asked for. */
int aio_check_stop(const struct aio *a, struct qstill_error *err);
/* "io_uring" or "sync" */
const char *aio_backend_name(const struct aio *a);

void aio_submit(struct aio *a, struct aio_op *op);

/* Starts what is queued and finishes what is ready; never sleeps. */
int aio_poll(struct aio *a, struct qstill_error *err);
/* As aio_poll, but sleeps until `min` ops (or all pending ones) are done or
 * timeout_ms (-1: none) are over, which is no error. */
int aio_wait(struct aio *a, unsigned min, int timeout_ms,
             struct qstill_error *err);
/* Nothing is pending afterwards, also when it fails. */
int aio_drain(struct aio *a, struct qstill_error *err);

/* Ops queued or in flight. */
size_t aio_pending(const struct aio *a);
/* Readable when aio_poll() has something to do. Read it empty by
 * aio_poll(). Call it before the first submit. */
int aio_eventfd(struct aio *a, struct qstill_error *err);

/* ----------------------------------------------------------- buffer pool */

/*
 * `count` buffers of `size` bytes (a multiple of 4096) in one mapping, 2 MiB
 * aligned, registered with the ring where the memlock limit allows: ops whose
 * data lies in it then need no page pinning each time. At most one pool per
 * aio is registered; the pool must be freed after aio_close().
 */
struct aio_pool;
int aio_pool_open(struct aio_pool **out, struct aio *a, size_t size,
                  unsigned count, struct qstill_error *err);
void aio_pool_free(struct aio_pool *pool);
void aio_pool_freep(struct aio_pool **pool);
void *aio_pool_get(struct aio_pool *pool); /* NULL when all are out */
void aio_pool_put(struct aio_pool *pool, void *data);
size_t aio_pool_buffer_size(const struct aio_pool *pool);

#endif
