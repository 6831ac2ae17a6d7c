/* SPDX-License-Identifier: MIT */
#include "inject_seccomp.h"

#include <errno.h>
#include <linux/ptrace.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "memstate/inject_tracee.h"

/* The kernel stops at 32768 instructions for all filters of a thread, each
 * counted with four more. */
#define FILTERS_MAX 8192u

struct machine {
    uint32_t a;
    uint32_t x;
    uint32_t mem[BPF_MEMWORDS];
};

static bool run_load(struct machine *m, const struct sock_filter *in,
                     const struct seccomp_data *call)
{
    uint32_t *to = BPF_CLASS(in->code) == BPF_LD ? &m->a : &m->x;

    switch (BPF_MODE(in->code)) {
    case BPF_IMM:
        *to = in->k;
        return true;
    case BPF_LEN:
        *to = sizeof(*call);
        return true;
    case BPF_MEM:
        if (in->k >= BPF_MEMWORDS)
            return false;
        *to = m->mem[in->k];
        return true;
    case BPF_ABS:
        if (in->k > sizeof(*call) - 4 || in->k % 4 != 0 || to != &m->a)
            return false;
        memcpy(to, (const char *)call + in->k, 4);
        return true;
    default:
        return false;
    }
}

static bool run_alu(struct machine *m, const struct sock_filter *in)
{
    uint32_t v = BPF_SRC(in->code) == BPF_X ? m->x : in->k;

    switch (BPF_OP(in->code)) {
    case BPF_ADD:
        m->a += v;
        return true;
    case BPF_SUB:
        m->a -= v;
        return true;
    case BPF_MUL:
        m->a *= v;
        return true;
    case BPF_DIV:
        m->a = v ? m->a / v : 0;
        return v != 0;
    case BPF_AND:
        m->a &= v;
        return true;
    case BPF_OR:
        m->a |= v;
        return true;
    case BPF_XOR:
        m->a ^= v;
        return true;
    case BPF_LSH:
        m->a = v < 32 ? m->a << v : 0;
        return true;
    case BPF_RSH:
        m->a = v < 32 ? m->a >> v : 0;
        return true;
    case BPF_NEG:
        m->a = 0u - m->a;
        return true;
    default:
        return false;
    }
}

/* How many instructions to skip; false for a jump that there is not. */
static bool run_jump(const struct machine *m, const struct sock_filter *in,
                     size_t *skip)
{
    uint32_t v = BPF_SRC(in->code) == BPF_X ? m->x : in->k;
    bool taken;

    switch (BPF_OP(in->code)) {
    case BPF_JA:
        *skip = in->k;
        return true;
    case BPF_JEQ:
        taken = m->a == v;
        break;
    case BPF_JGT:
        taken = m->a > v;
        break;
    case BPF_JGE:
        taken = m->a >= v;
        break;
    case BPF_JSET:
        taken = (m->a & v) != 0;
        break;
    default:
        return false;
    }
    *skip = taken ? in->jt : in->jf;
    return true;
}

static bool run_store(struct machine *m, const struct sock_filter *in)
{
    if (in->k >= BPF_MEMWORDS)
        return false;
    m->mem[in->k] = BPF_CLASS(in->code) == BPF_ST ? m->a : m->x;
    return true;
}

uint32_t inject_seccomp_run(const struct sock_filter *insns, size_t count,
                            const struct seccomp_data *call)
{
    struct machine m = {0, 0, {0}};

    /* Jumps only lead forward, so this ends. */
    for (size_t pc = 0; pc < count; pc++) {
        const struct sock_filter *in = &insns[pc];
        size_t skip = 0;
        bool good = true;

        switch (BPF_CLASS(in->code)) {
        case BPF_RET:
            return BPF_RVAL(in->code) == BPF_A ? m.a : in->k;
        case BPF_LD:
        case BPF_LDX:
            good = run_load(&m, in, call);
            break;
        case BPF_ST:
        case BPF_STX:
            good = run_store(&m, in);
            break;
        case BPF_ALU:
            good = run_alu(&m, in);
            break;
        case BPF_JMP:
            good = run_jump(&m, in, &skip);
            break;
        case BPF_MISC:
            if (BPF_MISCOP(in->code) == BPF_TAX)
                m.x = m.a;
            else
                m.a = m.x;
            break;
        default:
            good = false;
        }
        if (!good || skip > count - pc)
            return SECCOMP_RET_KILL_PROCESS;
        pc += skip;
    }
    return SECCOMP_RET_KILL_PROCESS;
}

static int check_filter(pid_t tid, unsigned long index, long count,
                        const struct seccomp_data *call, const char *name,
                        struct qstill_error *err)
{
    CLEANUP(freep) struct sock_filter *insns = NULL;
    uint32_t action;

    if (count > BPF_MAXINSNS)
        return err_set(err, QSTILL_E_FAILED, "a filter has %ld instructions",
                       count);
    insns = calloc((size_t)count, sizeof(*insns));
    if (!insns)
        return err_nomem(err);
    if (tracee_request(PTRACE_SECCOMP_GET_FILTER, tid, index, insns) != count)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "a seccomp filter of thread %d cannot be read", tid);
    action = inject_seccomp_run(insns, (size_t)count, call) &
             SECCOMP_RET_ACTION_FULL;
    if (action == SECCOMP_RET_ALLOW || action == SECCOMP_RET_LOG)
        return 0;
    return err_set(err, QSTILL_E_PRECONDITION,
                   "a seccomp filter of the process does not allow %s", name);
}

int inject_seccomp_check(pid_t tid, const struct seccomp_data *call,
                         const char *name, struct qstill_error *err)
{
    long count;

    for (unsigned long i = 0; i < FILTERS_MAX; i++) {
        count = tracee_request(PTRACE_SECCOMP_GET_FILTER, tid, i, NULL);
        if (count == -ENOENT && i > 0)
            return 0; /* that was the last one */
        if (count <= 0)
            break;
        if (check_filter(tid, i, count, call, name, err) < 0)
            return err->code;
    }
    err_set(err, QSTILL_E_PRECONDITION,
            "the process has a seccomp filter that cannot be read");
    return err_hint(err, "run as root, outside of any container or sandbox");
}
