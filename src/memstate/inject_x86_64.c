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
#include "inject_x86_64.h"

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

#define RED_ZONE 128u
/* Below the frame: nothing of ours runs there, but a stack that is all but
 * used up is left alone. */
#define STACK_MARGIN 4096u

/* What Linux keeps in the XSAVE image's bytes for software (struct
 * _fpx_sw_bytes). */
#define XSAVE_SW          464u /* ptrace: the features; a frame: sw_bytes */
#define XFEATURE_LEGACY   3u   /* x87, SSE */
#define XFEATURE_PKRU_BIT 9

/* uc_flags of the kernel's <asm/ucontext.h>. */
#define UC_FP_XSTATE         1u
#define UC_SIGCONTEXT_SS     2u
#define UC_STRICT_RESTORE_SS 4u

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

    if (inject_regs_get(tid, &regs, err) < 0)
        return err->code;
    *out = (long)regs.rax;
    return 0;
}

int inject_call_again(pid_t tid, const struct inject_code *code,
                      const struct inject_call *call, struct qstill_error *err)
{
    struct user_regs_struct regs;

    if (inject_regs_get(tid, &regs, err) < 0)
        return err->code;
    regs.rip = code->syscall_ret;
    regs.orig_rax = (unsigned long long)-1;
    regs.rax = (unsigned long long)call->nr;
    regs.rdi = call->args[0];
    regs.rsi = call->args[1];
    regs.rdx = call->args[2];
    return inject_regs_set(tid, &regs, err);
}
