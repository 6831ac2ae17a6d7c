/* SPDX-License-Identifier: MIT */
/*
 * One system call run inside another process. Where its result is a new file
 * descriptor, that is brought over here and closed there.
 *
 * The target is left as it was: registers, floating point state, signal mask,
 * pending signals, the system call it was in. It stays well when we are killed
 * at any instant of it (SIGKILL included): one single ptrace request moves a
 * thread to `syscall; ret` with a signal frame below its stack, so that the
 * thread goes back to where it was by itself, through rt_sigreturn, whether
 * there is still a tracer or not. What is lost then is at most a descriptor
 * that stays open in the target.
 *
 * Refused, with nothing changed: a 32-bit process, shadow stacks, a seccomp
 * filter that would not allow the call (or cannot be read), a process that is
 * traced or stopped by a signal, no rights; and when, for the whole of the
 * time allowed, each thread is in a place from which it cannot go on exactly
 * (a restartable sequence, a system call whose restart is kept in the kernel,
 * a wait with a signal mask of its own).
 */
#ifndef QSTILL_MEMSTATE_INJECT_H
#define QSTILL_MEMSTATE_INJECT_H

#include <stdbool.h>
#include <sys/types.h>

#include "base/error.h"

struct inject_call {
    const char *name; /* for messages: "userfaultfd" */
    long nr;
    unsigned long args[6]; /* plain numbers: nothing is copied over */
    bool number;           /* its result is no descriptor to be fetched */
};

struct inject_options {
    unsigned timeout_ms; /* of the whole; 0: INJECT_TIMEOUT_MS */
    /* Called between any two steps, on the injecting thread; for tests that
     * die there. May be NULL. */
    void (*hook)(void *user, const char *step);
    void *user;
};
#define INJECT_TIMEOUT_MS 2000u

struct inject_result {
    int fd;           /* ours, close-on-exec; -1 when there is none */
    int remote_errno; /* what the call said in the target; 0: it worked */
    pid_t tid;        /* the thread that was used */
    double held_ms;   /* how long that thread was kept */
};

/*
 * Runs `call` in process `pid`. 0 also when the call itself failed there:
 * result->fd is -1 then, and remote_errno says why. Errors: UNREACHABLE (no
 * such process), PERMISSION (no rights to trace it), PRECONDITION (refused,
 * with the reason), FAILED. `options` may be NULL.
 */
int inject_fd(pid_t pid, const struct inject_call *call,
              const struct inject_options *options,
              struct inject_result *result, struct qstill_error *err);

#endif
