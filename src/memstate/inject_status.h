/* SPDX-License-Identifier: MIT */
/* What /proc tells about a process and its threads, before one is traced. */
#ifndef QSTILL_MEMSTATE_INJECT_STATUS_H
#define QSTILL_MEMSTATE_INJECT_STATUS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/error.h"

struct inject_status {
    char state;        /* 'R', 'S', 'D', 'T' (stopped), 't' (traced), 'Z' */
    pid_t tracer;      /* 0: none */
    int seccomp;       /* 0 none, 1 strict, 2 filters */
    bool shadow_stack; /* return addresses are checked (CET) */
};

/* Of thread `tid` of process `pid`. UNREACHABLE when it is gone. */
int inject_status_read(pid_t pid, pid_t tid, struct inject_status *out,
                       struct qstill_error *err);
/* PRECONDITION: it has a tracer, and there can be but one. (That a single
 * thread has shows at the injection.) */
int inject_status_untraced(pid_t pid, struct qstill_error *err);
/* From the text of /proc/PID/status, terminated; no I/O. */
void inject_status_parse(const char *text, struct inject_status *out);

/*
 * How well a thread is suited to be borrowed, best first. Nothing rests on
 * it but the order in which threads are tried, or whether: it may have changed
 * by then.
 */
enum inject_rank {
    INJECT_RANK_WAITS, /* in a call that is restarted whole */
    INJECT_RANK_RUNS,  /* in code of its own */
    INJECT_RANK_OTHER, /* in a call that may end with EINTR */
    INJECT_RANK_BAD,   /* in a call that is never restarted whole */
    INJECT_RANK_NEVER, /* it would be of no use, and see EINTR: left out */
};
enum inject_rank inject_rank(pid_t pid, pid_t tid);
/* From the text of /proc/PID/task/TID/syscall; no I/O. */
enum inject_rank inject_rank_parse(const char *text);

#define INJECT_THREADS_MAX 4096u

/* The threads of a process, the best suited ones first, those that are to be
 * left out now not among them; malloc'ed. UNREACHABLE when there are none at
 * all. */
int inject_threads(pid_t pid, pid_t **out, size_t *count,
                   struct qstill_error *err);

#endif
