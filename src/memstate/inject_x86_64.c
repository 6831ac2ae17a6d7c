/* SPDX-License-Identifier: MIT */
/*
 * The detour on x86-64. The thread's registers are set once, to
 *
 *     rip -> syscall; ret          (found in the C library)
 *     rsp -> | address of "mov $15, %eax; syscall"   (rt_sigreturn)
 *            | ucontext: all registers to go on with, signal mask
 *            | siginfo (not looked at)
 *            | XSAVE image: FPU, vector registers, PKRU
 *            | red zone, 128 bytes, not touched
 *            the thread's stack
 *
 * so that the call's `ret` leads into rt_sigreturn, which puts everything
 * back, with or without us. A system call that the thread was in, and that
 * the kernel would have restarted, is restarted: the context to go on with
 * stands on its `syscall` instruction again.
 */
#include "inject_arch.h"

#if !defined(__x86_64__)
#error "the injection knows x86-64 only: write an inject_ARCH.c"
#endif

#include <cpuid.h>
#include <elf.h>
#include <errno.h>
#include <linux/ptrace.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <ucontext.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "memstate/inject_tracee.h"
#include "memstate/regions.h"

#define USER_CS  0x33
#define RED_ZONE 128u
/* Below the frame: nothing of ours runs there, but a stack that is all but
 * used up is left alone. */
#define STACK_MARGIN 4096u

/* The kernel's own results, never seen by a program: restart the call. */
#define ERESTARTSYS           512
#define ERESTARTNOINTR        513
#define ERESTARTNOHAND        514
#define ERESTART_RESTARTBLOCK 516

/* The XSAVE image (Intel SDM 1, 13.4) and what Linux keeps in its bytes for
 * software (struct _fpx_sw_bytes). AMX makes it 11,008 bytes. */
#define XSAVE_SIZE_MAX    32768u
#define XSAVE_SW          464u /* ptrace: the features; a frame: sw_bytes */
#define XSAVE_BV          512u
#define XSAVE_MIN         576u /* FXSAVE area and header */
#define XFEATURE_LEGACY   3u   /* x87, SSE */
#define XFEATURE_PKRU_BIT 9

/* uc_flags of the kernel's <asm/ucontext.h>. */
#define UC_FP_XSTATE         1u
#define UC_SIGCONTEXT_SS     2u
#define UC_STRICT_RESTORE_SS 4u

/* <linux/ptrace.h> of older systems lacks it; Linux 6.4. */
#define GET_SYSCALL_USER_DISPATCH 0x4211

static bool read_target(pid_t tid, uint64_t addr, void *data, size_t len)
{
    struct iovec here = {data, len};
    struct iovec there = {(void *)(uintptr_t)addr, len};

    return process_vm_readv(tid, &here, 1, &there, 1, 0) == (ssize_t)len;
}

/* ---------------------------------------------------------------- context */

void inject_context_fini(struct inject_context *c)
{
    buf_fini(&c->fpu);
}

static int regs_get(pid_t tid, struct user_regs_struct *regs,
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

/* Calls that may wait with a signal mask of their own, and the register with
 * its address: their restart would not be the same (a signal that only this
 * mask lets in must end the wait). NULL mask: an ordinary wait. */
static const struct {
    long nr;
    size_t mask; /* offset in the registers; 0: always */
} masked_waits[] = {
    {SYS_rt_sigsuspend, 0},
    {SYS_rt_sigtimedwait, 0},
    {SYS_pselect6, offsetof(struct user_regs_struct, r9)},
    {SYS_ppoll, offsetof(struct user_regs_struct, r10)},
    {SYS_epoll_pwait, offsetof(struct user_regs_struct, r8)},
    {441 /* epoll_pwait2 */, offsetof(struct user_regs_struct, r8)},
    {333 /* io_pgetevents */, offsetof(struct user_regs_struct, r9)},
    {426 /* io_uring_enter */, offsetof(struct user_regs_struct, r8)},
};

static bool waits_with_mask(const struct user_regs_struct *regs)
{
    for (size_t i = 0; i < ARRAY_LEN(masked_waits); i++) {
        const char *base = (const char *)regs;
        unsigned long long mask = 1;

        if (masked_waits[i].nr != (long)regs->orig_rax)
            continue;
        if (masked_waits[i].mask)
            memcpy(&mask, base + masked_waits[i].mask, sizeof(mask));
        return mask != 0;
    }
    return false;
}

/* Where the thread goes on when it was in a system call: what the kernel does
 * on the way back to the program. */
static int resume_syscall(pid_t tid, struct user_regs_struct *regs,
                          struct qstill_error *err)
{
    static const uint8_t insn[2] = {0x0f, 0x05};
    uint8_t code[2];

    if (waits_with_mask(regs))
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
        if (!read_target(tid, regs->rip - 2, code, 2) ||
            memcmp(code, insn, 2) != 0)
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

    if (regs_get(tid, &out->regs, err) < 0 || fpu_get(tid, &out->fpu, err) < 0)
        return err->code;
    r = tracee_request(PTRACE_GETSIGMASK, tid, sizeof(out->sigmask),
                       &out->sigmask);
    if (r < 0)
        return err_errno(err, (int)-r,
                         "cannot read the signal mask of thread %d", tid);
    out->resume = out->regs;
    if (check_dispatch(tid, err) < 0)
        return err->code;
    if ((long)out->regs.orig_rax >= 0)
        return resume_syscall(tid, &out->resume, err);
    return check_rseq(tid, &out->regs, err);
}

/* ------------------------------------------------------------------ frame */

/* struct rt_sigframe: the kernel's struct ucontext is glibc's up to and with
 * the first 8 bytes of the signal mask. */
#define SIGFRAME_UC   8u
#define UC_SIZE       (offsetof(ucontext_t, uc_sigmask) + 8)
#define SIGFRAME_SIZE (SIGFRAME_UC + UC_SIZE + sizeof(siginfo_t))

static const struct {
    int greg;
    size_t reg;
} gregs_table[] = {
#define GREG(g, r)                                                             \
    {                                                                          \
        g, offsetof(struct user_regs_struct, r)                                \
    }
    GREG(REG_R8, r8),   GREG(REG_R9, r9),   GREG(REG_R10, r10),
    GREG(REG_R11, r11), GREG(REG_R12, r12), GREG(REG_R13, r13),
    GREG(REG_R14, r14), GREG(REG_R15, r15), GREG(REG_RDI, rdi),
    GREG(REG_RSI, rsi), GREG(REG_RBP, rbp), GREG(REG_RBX, rbx),
    GREG(REG_RDX, rdx), GREG(REG_RAX, rax), GREG(REG_RCX, rcx),
    GREG(REG_RSP, rsp), GREG(REG_RIP, rip), GREG(REG_EFL, eflags),
#undef GREG
};

static void fill_ucontext(const struct inject_context *c, uint64_t fpu_at,
                          ucontext_t *uc)
{
    const char *regs = (const char *)&c->resume;
    unsigned long long v;

    memset(uc, 0, sizeof(*uc));
    uc->uc_flags = UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS;
    /* No mode of sigaltstack(2): the kernel then leaves the thread's
     * alternate stack, which nobody outside can read, as it is. */
    uc->uc_stack.ss_flags = 4;
    for (size_t i = 0; i < ARRAY_LEN(gregs_table); i++) {
        memcpy(&v, regs + gregs_table[i].reg, sizeof(v));
        uc->uc_mcontext.gregs[gregs_table[i].greg] = (greg_t)v;
    }
    /* cs, gs, fs, ss: 16 bits each */
    uc->uc_mcontext.gregs[REG_CSGSFS] =
        (greg_t)(c->resume.cs | c->resume.ss << 48);
    uc->uc_mcontext.fpregs = (fpregset_t)(uintptr_t)fpu_at;
    memcpy(&uc->uc_sigmask, &c->sigmask, sizeof(c->sigmask));
}

/*
 * From ptrace's form of the XSAVE image to that of a signal frame. Components
 * that are in their initial state are left out, so that the image is never
 * larger than the thread's own limit (AMX is only for those who asked).
 */
static int fpu_to_frame(struct buf *fpu, struct qstill_error *err)
{
    uint64_t all = get_le64(fpu->data + XSAVE_SW);
    uint64_t in_use = get_le64(fpu->data + XSAVE_BV);
    uint64_t size = XSAVE_MIN;
    unsigned a, b, c, d;

    /* ptrace gives PKRU always, in use or not. */
    in_use = (in_use | (all & (uint64_t)1 << XFEATURE_PKRU_BIT)) & all;
    for (unsigned i = 2; i < 63; i++) {
        if (!(in_use >> i & 1))
            continue;
        if (!__get_cpuid_count(0xd, i, &a, &b, &c, &d) || a == 0)
            return err_set(err, QSTILL_E_PRECONDITION,
                           "unknown processor state %u is in use", i);
        size = max_u64(size, (uint64_t)b + a);
    }
    if (size > fpu->len)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "the XSAVE image is shorter than it should be");
    put_le64(fpu->data + XSAVE_BV, in_use);
    memset(fpu->data + XSAVE_SW, 0, 48);
    put_le64(fpu->data + XSAVE_SW, FP_XSTATE_MAGIC1 | (size + 4) << 32);
    put_le64(fpu->data + XSAVE_SW + 8, in_use | XFEATURE_LEGACY);
    put_le64(fpu->data + XSAVE_SW + 16, size);
    /* fpu_get() left room for it behind the largest image. */
    memcpy(fpu->data + size, &(uint32_t){FP_XSTATE_MAGIC2}, 4);
    return 0;
}

static int check_stack(pid_t tid, uint64_t from, uint64_t to,
                       struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf maps = BUF_INIT;
    struct region r;

    if (regions_read(tid, &maps, err) < 0)
        return err->code;
    if (!regions_find(&maps, to, &r) || !r.writable || r.shared ||
        from < r.start || from - r.start < STACK_MARGIN)
        return err_set(err, QSTILL_E_BUSY, "the stack of thread %d has no room",
                       tid);
    return 0;
}

int inject_frame_write(pid_t tid, const struct inject_context *c,
                       const struct inject_code *code,
                       const struct inject_call *call,
                       struct user_regs_struct *start, struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf fpu = BUF_INIT;
    uint64_t room = c->fpu.len + 4 + RED_ZONE + 64;
    uint8_t frame[SIGFRAME_SIZE] = {0};
    struct iovec here[2], there[2];
    uint64_t fpu_at, frame_at;
    ucontext_t uc;

    if (buf_append(&fpu, c->fpu.data, c->fpu.len) < 0 ||
        buf_reserve(&fpu, 4) < 0)
        return err_nomem(err);
    if (fpu_to_frame(&fpu, err) < 0)
        return err->code;
    fpu_at = round_down_u64(c->regs.rsp - room, 64);
    frame_at = round_down_u64(fpu_at - SIGFRAME_SIZE, 16) - 8;
    if (frame_at > c->regs.rsp)
        return err_set(err, QSTILL_E_BUSY, "thread %d has no stack", tid);
    if (check_stack(tid, frame_at, c->regs.rsp, err) < 0)
        return err->code;
    fill_ucontext(c, fpu_at, &uc);
    put_le64(frame, code->sigreturn);
    memcpy(frame + SIGFRAME_UC, &uc, UC_SIZE);
    here[0] = (struct iovec){frame, sizeof(frame)};
    here[1] = (struct iovec){fpu.data, fpu.len + 4};
    there[0] = (struct iovec){(void *)(uintptr_t)frame_at, sizeof(frame)};
    there[1] = (struct iovec){(void *)(uintptr_t)fpu_at, fpu.len + 4};
    if (process_vm_writev(tid, here, 2, there, 2, 0) !=
        (ssize_t)(sizeof(frame) + fpu.len + 4))
        return err_set(err, QSTILL_E_BUSY,
                       "cannot write to the stack of thread %d", tid);
    *start = c->regs;
    start->rsp = frame_at;
    start->rip = code->syscall_ret;
    start->orig_rax = (unsigned long long)-1;
    start->rax = (unsigned long long)call->nr;
    start->rdi = call->args[0];
    start->rsi = call->args[1];
    start->rdx = call->args[2];
    start->r10 = call->args[3];
    start->r8 = call->args[4];
    start->r9 = call->args[5];
    return 0;
}

/* ------------------------------------------------------------------ steps */

int inject_regs_set(pid_t tid, const struct user_regs_struct *regs,
                    struct qstill_error *err)
{
    /* Within one page: if we are killed in the middle and the page had been
     * swapped out, nothing is set instead of a half. */
    _Alignas(256) struct user_regs_struct copy = *regs;
    struct iovec iov = {&copy, sizeof(copy)};
    long r = tracee_request(PTRACE_SETREGSET, tid, NT_PRSTATUS, &iov);

    if (r < 0)
        return err_errno(err, (int)-r, "cannot set the registers of thread %d",
                         tid);
    return 0;
}

int inject_signals_hold(pid_t tid, struct qstill_error *err)
{
    uint64_t all = UINT64_MAX;
    long r = tracee_request(PTRACE_SETSIGMASK, tid, sizeof(all), &all);

    if (r < 0)
        return err_errno(err, (int)-r,
                         "cannot set the signal mask of thread %d", tid);
    return 0;
}

int inject_call_result(pid_t tid, long *out, struct qstill_error *err)
{
    struct user_regs_struct regs;

    if (regs_get(tid, &regs, err) < 0)
        return err->code;
    *out = (long)regs.rax;
    return 0;
}

int inject_call_again(pid_t tid, const struct inject_code *code,
                      const struct inject_call *call, struct qstill_error *err)
{
    struct user_regs_struct regs;

    if (regs_get(tid, &regs, err) < 0)
        return err->code;
    regs.rip = code->syscall_ret;
    regs.orig_rax = (unsigned long long)-1;
    regs.rax = (unsigned long long)call->nr;
    regs.rdi = call->args[0];
    regs.rsi = call->args[1];
    regs.rdx = call->args[2];
    return inject_regs_set(tid, &regs, err);
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

    if (regs_get(tid, &now.regs, err) < 0 || fpu_get(tid, &now.fpu, err) < 0)
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
