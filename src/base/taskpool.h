/* SPDX-License-Identifier: MIT */
/*
 * A few threads for work on memory (compression): tasks go in, finished ones
 * come out, in any order. The threads do no I/O, call nobody's callback and
 * take no signals.
 */
#ifndef QSTILL_BASE_TASKPOOL_H
#define QSTILL_BASE_TASKPOOL_H

#include "error.h"

/* The caller's; must stay where it is until taskpool_take() returns it. */
struct task {
    void (*run)(struct task *t); /* on one of the threads */
    struct task *next;           /* the pool's own */
};

struct taskpool;

/* Threads for the CPUs this process may use, at most `max`. `event_fd` gets a
 * 1 written for each finished task; it stays the caller's. */
int taskpool_open(struct taskpool **out, unsigned max, int event_fd,
                  struct qstill_error *err);
/* Waits for what runs; tasks that have not begun never do. NULL is fine. */
void taskpool_close(struct taskpool *p);
unsigned taskpool_threads(const struct taskpool *p);

void taskpool_submit(struct taskpool *p, struct task *t);
/* A finished task, or NULL; never sleeps. */
struct task *taskpool_take(struct taskpool *p);

#endif
