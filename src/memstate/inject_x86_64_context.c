/* SPDX-License-Identifier: MIT */
/* What a stopped thread is in the middle of, and how it goes on from there. */
#include <elf.h>
#include <errno.h>
#include <linux/ptrace.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "inject_x86_64.h"
#include "memstate/inject_wait.h"
#include "memstate/inject_tracee.h"

#define USER_CS 0x33

/* The kernel's own results, never seen by a program: restart the call. */
#define ERESTARTSYS           512
#define ERESTARTNOINTR        513
#define ERESTARTNOHAND        514
#define ERESTART_RESTARTBLOCK 516

/* <linux/ptrace.h> of older systems lacks it; Linux 6.4. */
#define GET_SYSCALL_USER_DISPATCH 0x4211

static bool read_target(pid_t tid, uint64_t addr, void *data, size_t len)
{
    struct iovec here = {data, len};
    struct iovec there = {(void *)(uintptr_t)addr, len};

    return process_vm_readv(tid, &here, 1, &there, 1, 0) == (ssize_t)len;
}

void inject_context_fini(struct inject_context *c)
{
    buf_fini(&c->fpu);
}

int inject_regs_get(pid_t tid, struct user_regs_struct *regs,
                    struct qstill_error *err)
{
    struct iovec iov = {regs, sizeof(*regs)};
    long r = tracee_request(PTRACE_GETREGSET, tid, NT_PRSTATUS, &iov);

    if (r < 0)
        return err_errno(err, (int)-r, "cannot read the registers of thread %d",
                         tid);
    if (iov.iov_len != sizeof(*regs) || regs->cs != USER_CS)
        return err_set(err, QSTILL_E_PRECONDITION, "thread %d runs 32-bit code",
                       tid);
    return 0;
}

static int fpu_get(pid_t tid, struct buf *fpu, struct qstill_error *err)
{
    struct iovec iov;
    long r;

    fpu->len = 0;
    if (buf_reserve(fpu, XSAVE_SIZE_MAX) < 0)
        return err_nomem(err);
    iov = (struct iovec){fpu->data, XSAVE_SIZE_MAX};
    r = tracee_request(PTRACE_GETREGSET, tid, NT_X86_XSTATE, &iov);
    if (r < 0)
        return err_errno(err, (int)-r,
                         "cannot read the vector registers of thread %d", tid);
    if (iov.iov_len < XSAVE_MIN || iov.iov_len >= XSAVE_SIZE_MAX)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "thread %d has an XSAVE image of %zu bytes", tid,
                       iov.iov_len);
    fpu->len = iov.iov_len;
    return 0;
}

static bool is_syscall(pid_t tid, uint64_t addr)
{
    static const uint8_t insn[2] = {0x0f, 0x05};
    uint8_t code[2];

    return read_target(tid, addr, code, 2) && memcmp(code, insn, 2) == 0;
}

static struct inject_wait wait_of(const struct user_regs_struct *regs)
{
    return (struct inject_wait){
        (long)regs->orig_rax,
        {regs->rdi, regs->rsi, regs->rdx, regs->r10, regs->r8, regs->r9}};
}

/*
 * A wait that the kernel has ended for our stop, and would not start again:
 * its result becomes that of the waits which it does start again. So it is
 * the kernel that decides when the thread goes on, whoever lets it go: a
 * signal that is handled then still ends the wait with EINTR.
 */
static int undo_eintr(pid_t tid, struct user_regs_struct *regs,
                      struct qstill_error *err)
{
    struct inject_wait w = wait_of(regs);

    if (w.nr < 0 || (long)regs->rax != -EINTR ||
        inject_wait_eintr(&w) != INJECT_EINTR_ENDLESS ||
        !is_syscall(tid, regs->rip - 2))
        return 0;
    regs->rax = (unsigned long long)-ERESTARTNOHAND;
    return inject_regs_set(tid, regs, err);
}

/* Where the thread goes on when it was in a system call: what the kernel does
 * on the way back to the program. */
static int resume_syscall(pid_t tid, struct user_regs_struct *regs,
                          struct qstill_error *err)
{
    struct inject_wait w = wait_of(regs);

    if (inject_wait_masked(&w))
        return err_set(err, QSTILL_E_BUSY,
                       "thread %d waits with a signal mask of its own", tid);
    switch (-(long)regs->rax) {
    case ERESTART_RESTARTBLOCK:
        return err_set(err, QSTILL_E_BUSY,
                       "thread %d waits for a time that the kernel counts",
                       tid);
    case ERESTARTSYS:
    case ERESTARTNOINTR:
    case ERESTARTNOHAND:
        if (!is_syscall(tid, regs->rip - 2))
            return err_set(err, QSTILL_E_BUSY,
                           "thread %d is in a system call of an unknown form",
                           tid);
        regs->rax = regs->orig_rax;
        regs->rip -= 2;
        break;
    default:
        break;
    }
    regs->orig_rax = (unsigned long long)-1;
    return 0;
}

/* Stopped again on its way back into a wait whose time the kernel counts: that
 * knowledge would not outlive the signal frame. */
static int check_sleep(pid_t tid, const struct user_regs_struct *regs,
                       struct qstill_error *err)
{
    if (regs->rax == SYS_restart_syscall && is_syscall(tid, regs->rip))
        return err_set(err, QSTILL_E_BUSY,
                       "thread %d waits for a time that the kernel counts",
                       tid);
    return 0;
}

/* A restartable sequence that is left and entered again by us would not be
 * aborted by the kernel, as it must be. */
static int check_rseq(pid_t tid, const struct user_regs_struct *regs,
                      struct qstill_error *err)
{
    struct ptrace_rseq_configuration conf;
    struct {
        uint32_t version, flags;
        uint64_t start, length, abort;
    } cs;
    uint64_t pointer;

    if (tracee_request(PTRACE_GET_RSEQ_CONFIGURATION, tid, sizeof(conf),
                       &conf) != (long)sizeof(conf))
        return err_set(err, QSTILL_E_BUSY,
                       "the kernel does not tell whether thread %d is in a "
                       "restartable sequence",
                       tid);
    if (conf.rseq_abi_pointer == 0)
        return 0;
    if (!read_target(tid, conf.rseq_abi_pointer + 8, &pointer, 8) ||
        (pointer && !read_target(tid, pointer, &cs, sizeof(cs))) ||
        (pointer && regs->rip - cs.start < cs.length))
        return err_set(err, QSTILL_E_BUSY,
                       "thread %d is in a restartable sequence", tid);
    return 0;
}

static int check_dispatch(pid_t tid, struct qstill_error *err)
{
    uint64_t conf[4] = {0};

    if (tracee_request(GET_SYSCALL_USER_DISPATCH, tid, sizeof(conf), conf) ==
            0 &&
        conf[0] != 0)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "thread %d handles its system calls by itself", tid);
    return 0;
}

int inject_context_read(pid_t tid, struct inject_context *out,
                        struct qstill_error *err)
{
    long r;

    if (inject_regs_get(tid, &out->regs, err) < 0 ||
        undo_eintr(tid, &out->regs, err) < 0 ||
        fpu_get(tid, &out->fpu, err) < 0)
        return err->code;
    r = tracee_request(PTRACE_GETSIGMASK, tid, sizeof(out->sigmask),
                       &out->sigmask);
    if (r < 0)
        return err_errno(err, (int)-r,
                         "cannot read the signal mask of thread %d", tid);
    out->resume = out->regs;
    if (check_dispatch(tid, err) < 0 || check_sleep(tid, &out->regs, err) < 0)
        return err->code;
    if ((long)out->regs.orig_rax >= 0)
        return resume_syscall(tid, &out->resume, err);
    return check_rseq(tid, &out->regs, err);
}

/* The FPU image but what ptrace does not keep: the bits "in use" of a
 * component that stands in its initial state either way. */
static bool fpu_differs(const struct buf *a, const struct buf *b)
{
    return a->len != b->len || memcmp(a->data, b->data, XSAVE_BV) != 0 ||
           memcmp(a->data + XSAVE_MIN, b->data + XSAVE_MIN,
                  a->len - XSAVE_MIN) != 0;
}

static void put_back(pid_t tid, const struct inject_context *c,
                     struct qstill_error *err)
{
    struct iovec iov = {c->fpu.data, c->fpu.len};
    uint64_t mask = c->sigmask;

    inject_regs_set(tid, &c->resume, err);
    tracee_request(PTRACE_SETREGSET, tid, NT_X86_XSTATE, &iov);
    tracee_request(PTRACE_SETSIGMASK, tid, sizeof(mask), &mask);
}

int inject_context_check(pid_t tid, const struct inject_context *c,
                         struct qstill_error *err)
{
    CLEANUP(inject_context_fini) struct inject_context now = {.fpu = BUF_INIT};
    struct user_regs_struct want = c->resume;
    const char *what = NULL;
    long r;

    if (inject_regs_get(tid, &now.regs, err) < 0 ||
        fpu_get(tid, &now.fpu, err) < 0)
        return err->code;
    r = tracee_request(PTRACE_GETSIGMASK, tid, sizeof(now.sigmask),
                       &now.sigmask);
    want.orig_rax = now.regs.orig_rax;
    if (memcmp(&want, &now.regs, sizeof(want)) != 0)
        what = "registers";
    else if (fpu_differs(&c->fpu, &now.fpu))
        what = "vector registers";
    else if (r < 0 || now.sigmask != c->sigmask)
        what = "signal mask";
    if (!what)
        return 0;
    put_back(tid, c, err);
    return err_set(err, QSTILL_E_PRECONDITION,
                   "this kernel did not give thread %d its %s back (they were "
                   "set right)",
                   tid, what);
}

int inject_context_settle(pid_t tid, const struct inject_context *c,
                          struct qstill_error *err)
{
    struct user_regs_struct now;

    if (inject_regs_get(tid, &now, err) < 0)
        return err->code;
    /* In a signal handler by now: the wait begins again after it. */
    if ((long)now.orig_rax >= 0 || now.rip != c->resume.rip ||
        now.rsp != c->resume.rsp || now.rax != c->resume.rax)
        return 0;
    return inject_regs_set(tid, &c->regs, err);
}
