/* SPDX-License-Identifier: MIT */
/* What aio.c shares with its two backends; nobody else includes this. */
#ifndef QSTILL_BASE_AIO_IMPL_H
#define QSTILL_BASE_AIO_IMPL_H

#include "aio.h"

struct aio_queue {
    struct aio_op *head;
    struct aio_op **tail;
    size_t count;
};

struct aio {
    const struct io *io;
    unsigned depth;
    size_t max_bytes;
    const struct aio_backend_ops *backend;
    struct aio_queue queued;
    unsigned flying;
    size_t flying_bytes;
    int eventfd;
    struct aio_stop stop;
};

struct aio_backend_ops {
    const char *name;
    void (*close)(struct aio *a);
    /* Takes one op over; it ends in aio_finished(), perhaps right here. A
     * negative result is about the ring; the op was then not taken. */
    int (*start)(struct aio *a, struct aio_op *op, struct qstill_error *err);
    /* Hands started ops to the kernel and finishes what is ready; sleeps for
     * one when `sleep` says so, at most timeout_ms. */
    int (*reap)(struct aio *a, bool sleep, int timeout_ms,
                struct qstill_error *err);
    int (*use_eventfd)(struct aio *a, int fd, struct qstill_error *err);
    /* Best effort. */
    void (*register_region)(struct aio *a, void *data, size_t len);
};

extern const struct aio_backend_ops aio_uring_ops;
extern const struct aio_backend_ops aio_sync_ops;

/* NULL without an error: refused by the kernel, take the twin. */
int aio_uring_new(struct aio **out, unsigned depth, bool one_thread,
                  struct qstill_error *err);
int aio_sync_new(struct aio **out, struct qstill_error *err);

/* For the backends: `res` is the bytes moved or a negative errno. Continues
 * a short transfer or finishes the op and calls `done`. */
void aio_moved(struct aio *a, struct aio_op *op, int64_t res);

/* The rest of the op that is still to be moved. */
static inline size_t aio_left(const struct aio_op *op)
{
    return op->len - op->moved;
}

#endif
