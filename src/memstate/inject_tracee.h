/* SPDX-License-Identifier: MIT */
/*
 * A thread of another process under ptrace: attach, wait for a stop with a
 * deadline, go on. Stops are told apart by PTRACE_GETSIGINFO and not by the
 * status of waitpid(), which another thread of our process may have taken.
 * All calls on the thread that attached; when that thread ends, the kernel
 * detaches by itself.
 */
#ifndef QSTILL_MEMSTATE_INJECT_TRACEE_H
#define QSTILL_MEMSTATE_INJECT_TRACEE_H

#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

enum tracee_stop {
    TRACEE_TRAP,    /* what tracee_attach() asked for: free to be used */
    TRACEE_GROUP,   /* stopped by SIGSTOP and its kin */
    TRACEE_SIGNAL,  /* a signal is about to be delivered: `signal` */
    TRACEE_ENTRY,   /* at the entry of a system call: `nr` */
    TRACEE_EXIT,    /* at its exit */
    TRACEE_OTHER,   /* something we did not ask for */
    TRACEE_TIMEOUT, /* still running at the deadline */
    TRACEE_GONE     /* the thread has ended */
};

struct tracee {
    pid_t tid;
    uint64_t deadline_ns; /* CLOCK_MONOTONIC */
    int signal;           /* of TRACEE_SIGNAL, TRACEE_GROUP */
    uint64_t nr;          /* of TRACEE_ENTRY */
};

uint64_t tracee_now_ns(void);

/* ptrace(2) as the kernel has it: the result, or a negative errno. */
long tracee_request(int what, pid_t tid, unsigned long addr, void *data);

/* Seizes the thread and asks it to stop; use tracee_wait_trap() next. */
int tracee_attach(struct tracee *t, pid_t tid, uint64_t deadline_ns,
                  struct qstill_error *err);

/* Until the stop that tracee_attach() asked for: signals that come first are
 * delivered. Any result but TRACEE_TRAP means that it did not work. */
enum tracee_stop tracee_wait_trap(struct tracee *t);

/*
 * Lets the thread go on to its next system call entry or exit, and waits for
 * that; signals in between are delivered, a stop by a signal is waited for.
 * Any result but TRACEE_ENTRY and TRACEE_EXIT means that it did not work.
 */
enum tracee_stop tracee_next_syscall(struct tracee *t);

/* From the exit of a system call to a stop as tracee_attach() asked for, before
 * any instruction of the thread's own. TRACEE_TRAP when it worked. */
enum tracee_stop tracee_stop_again(struct tracee *t);

/* Lets a stopped thread go. */
void tracee_detach(const struct tracee *t);

#endif
