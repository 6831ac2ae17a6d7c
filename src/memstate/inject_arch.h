/* SPDX-License-Identifier: MIT */
/*
 * The part of the injection that knows the processor: one file per
 * architecture (inject_x86_64.c). The thread is stopped in all of these.
 */
#ifndef QSTILL_MEMSTATE_INJECT_ARCH_H
#define QSTILL_MEMSTATE_INJECT_ARCH_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/user.h>

#include "base/buf.h"
#include "memstate/inject.h"

/* Code of the target that we make use of. */
struct inject_code {
    uint64_t syscall_ret; /* a system call instruction, then a return */
    uint64_t sigreturn;   /* loads the number of rt_sigreturn and calls it */
};

/* Looks through the executable mappings, the C library's first. NOT_FOUND
 * when there is no such code. */
int inject_find_code(pid_t pid, struct inject_code *out,
                     struct qstill_error *err);

/* Everything that the detour must give back. */
struct inject_context {
    struct user_regs_struct regs;   /* as the thread was stopped */
    struct user_regs_struct resume; /* as it shall go on: a system call that
                                       the kernel would restart is restarted */
    uint64_t sigmask;
    struct buf fpu; /* the XSAVE image, in the form of ptrace */
};
void inject_context_fini(struct inject_context *c);

/* Reads it; a wait that the stop has ended for good is made one that goes on
 * (inject_wait.h). BUSY with the reason when the thread cannot go on exactly
 * from where it is: then choose another one. PRECONDITION when none can. */
int inject_context_read(pid_t tid, struct inject_context *out,
                        struct qstill_error *err);

/*
 * Writes the signal frame below the thread's stack: it changes nothing yet.
 * *start gets the registers with which the thread will run `call` and then
 * restore the context by itself. BUSY when the stack has no room.
 */
int inject_frame_write(pid_t tid, const struct inject_context *c,
                       const struct inject_code *code,
                       const struct inject_call *call,
                       struct user_regs_struct *start,
                       struct qstill_error *err);

/* The one request that moves the thread. */
int inject_regs_set(pid_t tid, const struct user_regs_struct *regs,
                    struct qstill_error *err);
/* Holds back all signals but SIGKILL and SIGSTOP; the frame lets them come
 * again. */
int inject_signals_hold(pid_t tid, struct qstill_error *err);

/* At the exit of a call: what it returned (negative: errno). */
int inject_call_result(pid_t tid, long *out, struct qstill_error *err);
/* At the exit of a call: the same instruction again, with another call. */
int inject_call_again(pid_t tid, const struct inject_code *code,
                      const struct inject_call *call, struct qstill_error *err);

/* Is the thread as it shall go on? When it is not, sets it right, and says
 * what differed. */
int inject_context_check(pid_t tid, const struct inject_context *c,
                         struct qstill_error *err);

/* Was the thread in a system call that the kernel starts again? */
static inline bool inject_context_restarts(const struct inject_context *c)
{
    return c->regs.rip != c->resume.rip;
}
/* Of a thread that has come back and is stopped as in the beginning: makes it
 * stand at the end of the call that was interrupted, so that the kernel itself
 * starts that again, or, when a signal has come meanwhile, ends it. */
int inject_context_settle(pid_t tid, const struct inject_context *c,
                          struct qstill_error *err);

#endif
