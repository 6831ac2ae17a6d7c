/* SPDX-License-Identifier: MIT */
/*
 * One thread doing one long piece of work, watched through a pollable fd: what
 * capture, restore and verify have in common. Held by value.
 *
 *   worker_init, worker_start, poll worker.event_fd, worker_poll, ...,
 *   worker_join (cancels), worker_fini
 *
 * The thread takes no signals: they are the embedder's.
 */
#ifndef QSTILL_MEMSTATE_WORKER_H
#define QSTILL_MEMSTATE_WORKER_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

struct worker {
    int event_fd;  /* readable: something has changed */
    int cancel_fd; /* readable, for good: cancelled */
    int (*run)(void *ctx, struct qstill_error *err);
    void *ctx;
    pthread_t thread;
    bool started;
    bool cancelled; /* these four by atomics only */
    bool complete;
    uint64_t done;
    uint64_t total;
    struct qstill_error error; /* of run; good once complete */
};

int worker_init(struct worker *w, struct qstill_error *err);
/* Runs run(ctx) on a new thread. */
int worker_start(struct worker *w, int (*run)(void *ctx, struct qstill_error *),
                 void *ctx, struct qstill_error *err);
/* Makes event_fd unreadable, tells where things stand. */
bool worker_poll(struct worker *w, uint64_t *done, uint64_t *total);
/* 0 or run's error; once complete. */
int worker_result(const struct worker *w, struct qstill_error *err);
void worker_cancel(struct worker *w); /* any thread */
void worker_join(struct worker *w);   /* cancels; again is fine */
void worker_fini(struct worker *w);

/* For the thread: */
void worker_signal(struct worker *w); /* makes event_fd readable */
void worker_set_total(struct worker *w, uint64_t bytes);
void worker_add_done(struct worker *w, uint64_t bytes);
bool worker_cancelled(const struct worker *w);
/* CANCELLED when cancelled. */
int worker_check(const struct worker *w, struct qstill_error *err);
/* Until `fd` has one of `events` (or an error), or cancelled: CANCELLED. */
int worker_wait(const struct worker *w, int fd, short events,
                struct qstill_error *err);
/* Sleeps; CANCELLED when cancelled. */
int worker_nap(const struct worker *w, uint64_t ns, struct qstill_error *err);

/*
 * A rate limit. pace_take() counts `bytes` that are about to move and returns
 * how long to wait before they do, in ns. What was not used in the last 100 ms
 * is not saved up.
 */
struct pace {
    uint64_t rate;    /* bytes per second; 0: none */
    uint64_t free_ns; /* when all that was taken will have been paid for */
};
void pace_init(struct pace *p, uint64_t rate);
uint64_t pace_take(struct pace *p, uint64_t bytes, uint64_t now_ns);
/* Counts and waits; CANCELLED when cancelled. */
int worker_pace(const struct worker *w, struct pace *p, uint64_t bytes,
                struct qstill_error *err);

uint64_t worker_now_ns(void); /* CLOCK_MONOTONIC */

#endif
