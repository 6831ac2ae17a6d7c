/* SPDX-License-Identifier: MIT */
#include "bench_guest.h"

#include <errno.h>
#include <math.h>
#include <sched.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>

enum { WATCH_STEP_NS = 100 * 1000, WATCH_GAP_NS = 200 * 1000 };

_Static_assert(sizeof(struct guest_page) <= 4096, "one page");

#if defined(__x86_64__)
/* Real mode at 0x7c00 to flat 32-bit mode; then for ever: time the rewriting
 * of page ebx modulo 4096, count the time's bucket, tell the beat. */
__asm__(".pushsection .rodata, \"a\"\n"
        ".code16\n"
        "bench_boot:\n"
        "    cli\n"
        "    cld\n"
        "    xorw %ax, %ax\n"
        "    movw %ax, %ds\n"
        "    lgdtl 0x7c00 + bench_gdtr - bench_boot\n"
        "    movl %cr0, %eax\n"
        "    orb $1, %al\n"
        "    movl %eax, %cr0\n"
        "    ljmpl $8, $(0x7c00 + bench_flat - bench_boot)\n"
        ".code32\n"
        "bench_flat:\n"
        "    movw $16, %ax\n"
        "    movw %ax, %ds\n"
        "    movw %ax, %es\n"
        "    xorl %ebx, %ebx\n"
        "bench_next:\n"
        "    movl %ebx, %edi\n"
        "    andl $4095, %edi\n"
        "    shll $12, %edi\n"
        "    addl $0x2000000, %edi\n"
        "    rdtsc\n"
        "    movl %eax, %esi\n"
        "    movl %edx, %ebp\n"
        "    movl %ebx, %eax\n"
        "    movl $1024, %ecx\n"
        "    rep stosl\n"
        "    rdtsc\n"
        "    movl %eax, 0x100008\n"
        "    movl %edx, 0x10000c\n"
        "    subl %esi, %eax\n"
        "    sbbl %ebp, %edx\n"
        "    jz 1f\n"
        "    movl $-1, %eax\n" /* over 2^32 ticks: the last bucket */
        "1:  orl $16, %eax\n"
        "    bsrl %eax, %ecx\n"
        "    movl %ecx, %edx\n"
        "    shll $4, %edx\n"
        "    subl $4, %ecx\n"
        "    shrl %cl, %eax\n"
        "    andl $15, %eax\n"
        "    addl %edx, %eax\n"
        "    incl 0x100040(, %eax, 4)\n"
        "    incl %ebx\n"
        "    movl %ebx, 0x100000\n"
        "    jmp bench_next\n"
        ".balign 8\n"
        "bench_gdt:\n"
        "    .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff\n"
        "bench_gdtr:\n"
        "    .word 23\n"
        "    .long 0x7c00 + bench_gdt - bench_boot\n"
        "    .org bench_boot + 510\n"
        "    .word 0xaa55\n"
        ".code64\n"
        ".popsection\n");
extern const char bench_boot[];

const void *guest_boot_sector(void)
{
    return bench_boot;
}
#else
const void *guest_boot_sector(void)
{
    return NULL;
}
#endif

/* -------------------------------------------------------------- histogram */

int guest_read(pid_t pid, uint64_t address, struct guest_page *out,
               struct qstill_error *err)
{
    struct iovec to = {out, sizeof(*out)};
    struct iovec from = {(void *)(uintptr_t)address, sizeof(*out)};

    if (process_vm_readv(pid, &to, 1, &from, 1, 0) == sizeof(*out))
        return 0;
    return cli_fail(err,
                    errno == EPERM ? QSTILL_E_PERMISSION : QSTILL_E_UNREACHABLE,
                    "reading the memory of QEMU: %s", strerror(errno));
}

void guest_took_add(struct guest_took *t, const struct guest_page *before,
                    const struct guest_page *after)
{
    for (size_t i = 0; i < GUEST_BUCKETS; i++)
        t->counts[i] += after->took[i] - before->took[i];
}

static double upper_ms(const struct guest_took *t, size_t bucket)
{
    return 1e3 *
           ldexp(1 + (double)(bucket % GUEST_SUB + 1) / GUEST_SUB,
                 (int)(bucket / GUEST_SUB)) /
           t->hz;
}

double guest_slowest_ms(const struct guest_took *t, uint64_t n, double quantile)
{
    uint64_t rank = n - (uint64_t)((double)n * quantile), seen = 0;
    double ms = 0;

    for (size_t b = GUEST_BUCKETS; b-- > 0;) {
        if (t->counts[b] == 0)
            continue;
        seen += t->counts[b];
        ms = upper_ms(t, b);
        if (seen >= rank)
            break;
    }
    return ms;
}

uint64_t guest_count(const struct guest_took *t, double from_ms, double to_ms)
{
    uint64_t n = 0;

    for (size_t b = 0; b < GUEST_BUCKETS; b++)
        if (upper_ms(t, b) >= from_ms && upper_ms(t, b) < to_ms)
            n += t->counts[b];
    return n;
}

/* ------------------------------------------------------------------ watch */

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void add_gap(struct guest_watch *w, uint64_t from, uint64_t to)
{
    if (to - from < WATCH_GAP_NS || w->count >= WATCH_GAPS_MAX)
        return;
    w->gaps[w->count].from = (double)from / 1e9;
    w->gaps[w->count++].to = (double)to / 1e9;
}

static void *watch_run(void *arg)
{
    struct guest_watch *w = arg;
    struct timespec step = {0, WATCH_STEP_NS};
    uint32_t beat = 0, seen = 0;
    struct iovec to = {&seen, sizeof(seen)};
    struct iovec from = {(void *)(uintptr_t)w->address, sizeof(seen)};
    uint64_t moved = now_ns();

    while (!atomic_load(&w->end)) {
        /* a QEMU that is gone stands still */
        if (process_vm_readv(w->pid, &to, 1, &from, 1, 0) == sizeof(seen) &&
            seen != beat) {
            add_gap(w, moved, now_ns());
            moved = now_ns();
            beat = seen;
        }
        nanosleep(&step, NULL);
    }
    add_gap(w, moved, now_ns());
    return NULL;
}

int guest_watch_begin(struct guest_watch *w, pid_t pid, uint64_t address,
                      struct qstill_error *err)
{
    struct sched_param first = {.sched_priority = 10};

    w->pid = pid;
    w->address = address;
    w->count = 0;
    atomic_init(&w->end, false);
    if (pthread_create(&w->thread, NULL, watch_run, w) != 0)
        return cli_fail(err, QSTILL_E_FAILED, "cannot start a thread");
    /* So that it is not what stands still; without the right it may be. */
    pthread_setschedparam(w->thread, SCHED_FIFO, &first);
    return 0;
}

void guest_watch_end(struct guest_watch *w)
{
    atomic_store(&w->end, true);
    pthread_join(w->thread, NULL);
}

double guest_watch_pause_ms(const struct guest_watch *w, double from, double to)
{
    double longest = 0;

    for (size_t i = 0; i < w->count; i++) {
        double gap = w->gaps[i].to - w->gaps[i].from;

        if (w->gaps[i].from <= to && w->gaps[i].to >= from && gap > longest)
            longest = gap;
    }
    return 1e3 * (longest > 0 ? longest : to - from);
}
