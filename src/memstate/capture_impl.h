/* SPDX-License-Identifier: MIT */
/*
 * What the kinds of capture share (capture.c): the thread, the events, the
 * file set, the result. Only capture_*.c and cow*.c include this.
 *
 * A kind embeds nothing: it gives ops and a context. `run` is the thread's
 * body; when it returns 0 the base copies the device state given by the
 * owner (if any), commits the file set and completes.
 */
#ifndef QSTILL_MEMSTATE_CAPTURE_IMPL_H
#define QSTILL_MEMSTATE_CAPTURE_IMPL_H

#include "memstate/capture.h"
#include "memstate/worker.h"

struct capture_ops {
    /* Needs capture_device_state() and capture_instant() by the owner. */
    bool stopped_by_owner;
    /* The thread's body. Everything it started is joined when it returns. */
    int (*run)(void *ctx, struct capture *c, struct qstill_error *err);
    /* Frees the context; the thread has ended, or never started. */
    void (*free)(void *ctx);
};

/* Takes ctx over, on failure too; creates the file set's writer. The thread
 * is not yet running: add blocks first, then capture_start(). */
int capture_new(struct capture **out, const struct capture_ops *ops, void *ctx,
                const struct capture_options *options,
                struct qstill_error *err);
int capture_start(struct capture *c, struct qstill_error *err);

struct ramset_writer *capture_writer(struct capture *c);
const struct capture_options *capture_get_options(const struct capture *c);

/* For the thread(s): */
void capture_set_ready(struct capture *c);
void capture_set_instant_taken(struct capture *c);
void capture_set_total(struct capture *c, uint64_t bytes);
void capture_add_done(struct capture *c, uint64_t bytes);
bool capture_was_resumed(const struct capture *c);
bool capture_cancelled(const struct capture *c);
/* Readable for good once the capture is cancelled: to be polled along. */
int capture_cancel_fd(const struct capture *c);
/* Until `fd` has one of poll's `events`; CANCELLED when cancelled. */
int capture_wait_fd(struct capture *c, int fd, short events,
                    struct qstill_error *err);
/* Readable for good once the owner called capture_instant(). */
int capture_instant_fd(const struct capture *c);
/* Blocks until then; CANCELLED when the capture is cancelled. */
int capture_wait_instant(struct capture *c, struct qstill_error *err);

/* The figures; written by `run`, read by capture_finish(). The base fills
 * blocks, memory_bytes, zero_bytes, disk_bytes and device_bytes. */
struct capture_result *capture_figures(struct capture *c);

/* Sleeps; CANCELLED when cancelled. */
int capture_nap(struct capture *c, uint64_t ns, struct qstill_error *err);
/* Counts and waits (worker.h); CANCELLED when cancelled. */
int capture_pace(struct capture *c, struct pace *p, uint64_t bytes,
                 struct qstill_error *err);

#endif
