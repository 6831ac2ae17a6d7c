/* SPDX-License-Identifier: MIT */
/*
 * The machine behind struct qstill_job: a table of phases, run in order by
 * qstill_job_step(). A phase is entered once, then stepped until it says it is
 * done. When anything fails, or the caller cancels, the undo functions of all
 * phases entered so far run in reverse; undo may run twice and never replaces
 * the first error. A phase without `step` is done when `enter` returns 0.
 */
#ifndef QSTILL_ENGINE_JOB_H
#define QSTILL_ENGINE_JOB_H

#include "base/aio.h"
#include "base/buf.h"
#include "base/error.h"

struct job_phase {
    const char *name;
    int (*enter)(void *ctx, struct qstill_error *err);
    int (*step)(void *ctx, bool *done, struct qstill_error *err);
    /* Says in `err` (a scratch one) what it could not undo; it may be NULL. */
    void (*undo)(void *ctx, struct qstill_error *err);
};

struct job_ops {
    const struct job_phase *phases; /* ends with a NULL name */
    void (*free)(void *ctx);
};

/* The job takes `ctx` over, on failure too (ops->free is called). */
int job_new(struct qstill_job **out, const struct job_ops *ops, void *ctx,
            struct qstill_error *err);
void *job_ctx(const struct qstill_job *job, const struct job_ops *ops);

/* For use by phases: */
bool job_cancelled(const struct qstill_job *job);
/* For what reads long before anything is changed. NULL: never. */
struct aio_stop job_stop(struct qstill_job *job);
/* All that was asked for is done: from here on a cancel comes too late. */
void job_is_done(struct qstill_job *job);
/* The text for people, shown by qstill_job_text(). */
struct buf *job_text(struct qstill_job *job);
void job_measure(struct qstill_job *job, uint64_t done, uint64_t total);
/* Inside a step that takes long: notes how far it has come, calls the tick of
 * qstill_job_run(), and fails with CANCELLED when that is wanted. Without a job
 * (NULL) nothing happens. */
int job_pulse(struct qstill_job *job, uint64_t done, uint64_t total,
              struct qstill_error *err);
/* Polls `fd` (readable) together with the job's own fd while the phase has
 * nothing to do until then; -1: step again at once. */
int job_wait_on(struct qstill_job *job, int fd, struct qstill_error *err);

#endif
