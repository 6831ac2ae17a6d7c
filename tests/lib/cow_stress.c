/* SPDX-License-Identifier: MIT */
#include "cow_stress.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096u
#define HUGE ((size_t)2 << 20)

struct writer {
    struct cow_stress *s;
    unsigned number;
};

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void note(struct cow_control *c, uint64_t ns)
{
    uint64_t us = ns / 1000;
    unsigned bucket = us ? 64u - (unsigned)__builtin_clzll(us) : 0;
    uint64_t worst = __atomic_load_n(&c->worst_ns, __ATOMIC_RELAXED);

    if (bucket >= COW_STALLS)
        bucket = COW_STALLS - 1;
    __atomic_fetch_add(&c->stalls[bucket], 1, __ATOMIC_RELAXED);
    while (ns > worst &&
           !__atomic_compare_exchange_n(&c->worst_ns, &worst, ns, true,
                                        __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        ;
}

static void write_number(struct cow_stress *s, size_t offset)
{
    uint64_t begun = now_ns();
    uint64_t n = __atomic_fetch_add(&s->control->sequence, 1, __ATOMIC_SEQ_CST);

    __atomic_store_n((uint64_t *)(void *)(s->ram + offset), n,
                     __ATOMIC_RELAXED);
    note(s->control, now_ns() - begun);
}

/* One write by the kernel, as KVM, vhost and read(2) make them. */
static void write_by_kernel(struct cow_stress *s, size_t offset)
{
    uint64_t n = __atomic_fetch_add(&s->control->sequence, 1, __ATOMIC_SEQ_CST);
    struct iovec from = {&n, 8}, to = {s->ram + offset, 8};

    /* Not by the function: ThreadSanitizer would take it for a race. */
    if (syscall(SYS_process_vm_readv, getpid(), &to, 1, &from, 1, 0) != 8)
        abort();
}

static void park(struct cow_control *c)
{
    if (!__atomic_load_n(&c->pause, __ATOMIC_SEQ_CST))
        return;
    __atomic_fetch_add(&c->paused, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&c->pause, __ATOMIC_SEQ_CST))
        usleep(200);
    __atomic_fetch_sub(&c->paused, 1, __ATOMIC_SEQ_CST);
}

static uint64_t random_next(uint64_t *x)
{
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    return *x;
}

/* Single writes anywhere, and runs of pages one after the other. */
static void some_writes(struct cow_stress *s, uint64_t *seed, uint64_t round)
{
    /* The last quarter stays as it is. */
    size_t at = random_next(seed) % (s->size / 4 * 3) & ~(size_t)7;

    if (round % 16 != 0) {
        write_number(s, at);
    } else if (round % 32 == 0) {
        write_by_kernel(s, at);
    } else {
        for (size_t i = 0; i < 40 && at + i * PAGE + 8 <= s->size; i++)
            write_number(s, at + i * PAGE);
    }
}

static void *writer_main(void *arg)
{
    struct writer w = *(struct writer *)arg;
    struct cow_stress *s = w.s;
    size_t hot = w.number == 0 ? (size_t)s->hot_mib << 20 : 0, at = 0;
    uint64_t seed = 88172645463325252u + w.number * 7919u;

    __atomic_fetch_add(&s->control->up, 1, __ATOMIC_SEQ_CST);
    for (uint64_t i = 0; !__atomic_load_n(&s->control->stop, __ATOMIC_RELAXED);
         i++) {
        park(s->control);
        if (hot) {
            write_number(s, s->size / 4 + at);
            at = (at + 512) % hot;
            continue;
        }
        some_writes(s, &seed, i);
        if (s->pace_us && i % 64 == 63)
            usleep(s->pace_us);
    }
    return NULL;
}

#define CHILD_STEP ((size_t)29 * PAGE)

static _Noreturn void child_main(const struct cow_stress *s)
{
    static const useconds_t later[] = {0, 15000, 60000};

    for (size_t i = 0; i < sizeof(later) / sizeof(later[0]); i++) {
        usleep(later[i]);
        for (size_t at = i * PAGE; at < s->size && s->children_write;
             at += CHILD_STEP)
            s->ram[at] ^= 0xff;
    }
    _exit(0);
}

/* Two children at a time, so that one is always there. */
static void *forker_main(void *arg)
{
    struct cow_stress *s = arg;
    pid_t older = 0;
    int status;

    while (!__atomic_load_n(&s->control->stop, __ATOMIC_RELAXED)) {
        pid_t child = fork();

        if (child < 0)
            abort();
        if (child == 0)
            child_main(s);
        if (older && (waitpid(older, &status, 0) != older || status))
            abort();
        older = child;
        __atomic_fetch_add(&s->control->forked, 1, __ATOMIC_SEQ_CST);
    }
    waitpid(older, &status, 0);
    return NULL;
}

static void start_threads(struct cow_stress *s)
{
    struct writer *writers = calloc(s->threads, sizeof(*writers));
    pthread_t *ids = calloc(s->threads + 1, sizeof(*ids));

    if (!writers || !ids)
        abort();
    for (unsigned i = 0; i < s->threads; i++) {
        writers[i] = (struct writer){s, i};
        if (pthread_create(&ids[i], NULL, writer_main, &writers[i]) != 0)
            abort();
    }
    while (__atomic_load_n(&s->control->up, __ATOMIC_SEQ_CST) < s->threads)
        usleep(500);
    if (s->forks && pthread_create(&ids[s->threads], NULL, forker_main, s))
        abort();
    free(writers);
    s->thread_ids = ids;
}

static uint8_t *map_memory(struct cow_stress *s, enum cow_memory kind)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    uint8_t *p;

    s->fd = -1;
    if (kind == COW_MEMFD || kind == COW_HUGE) {
        s->fd = memfd_create(
            "stress", MFD_CLOEXEC | (kind == COW_HUGE ? MFD_HUGETLB : 0));
        if (s->fd < 0 || ftruncate(s->fd, (off_t)s->size) < 0)
            return NULL;
        p = mmap(NULL, s->size, PROT_READ | PROT_WRITE, MAP_SHARED, s->fd, 0);
        return p == MAP_FAILED ? NULL : p;
    }
    p = mmap(NULL, s->size + HUGE, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    p += -(uintptr_t)p % HUGE;
    madvise(p, s->size, kind == COW_THP ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    return p;
}

static void fill(struct cow_stress *s)
{
    for (size_t at = 0; at < s->size / 2; at += PAGE) {
        uint64_t *page = (uint64_t *)(void *)(s->ram + at);

        if (at / PAGE % 8 == 3)
            continue;
        for (size_t i = 0; i < PAGE / 8; i++)
            page[i] = at * 1000003u + i * 0x9e3779b97f4a7c15u;
    }
}

bool cow_stress_start(struct cow_stress *s, enum cow_memory kind,
                      bool other_process)
{
    s->control = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(s->control != MAP_FAILED);
    s->ram = map_memory(s, kind);
    if (!s->ram)
        return false;
    s->children_write = kind == COW_PRIVATE || kind == COW_THP;
    s->pid = getpid();
    if (!other_process) {
        fill(s);
        start_threads(s);
        return true;
    }
    s->pid = fork();
    assert_true(s->pid >= 0);
    if (s->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
        fill(s);
        start_threads(s);
        for (;;)
            pause();
    }
    for (int i = 0; i < 20000 && s->control->up < s->threads; i++)
        usleep(1000);
    assert_int_equal(s->control->up, s->threads);
    return true;
}

void cow_stress_pause(struct cow_stress *s)
{
    __atomic_store_n(&s->control->pause, 1, __ATOMIC_SEQ_CST);
    for (int i = 0; i < 100000; i++) {
        if (__atomic_load_n(&s->control->paused, __ATOMIC_SEQ_CST) ==
            s->threads)
            return;
        usleep(100);
    }
    fail_msg("the writers do not pause");
}

void cow_stress_resume(struct cow_stress *s)
{
    __atomic_store_n(&s->control->pause, 0, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&s->control->paused, __ATOMIC_SEQ_CST) > 0)
        usleep(50);
}

void cow_stress_goes_on(const struct cow_stress *s)
{
    uint64_t before = __atomic_load_n(&s->control->sequence, __ATOMIC_SEQ_CST);

    for (int i = 0; i < 5000; i++) {
        if (__atomic_load_n(&s->control->sequence, __ATOMIC_SEQ_CST) >
            before + 200)
            return;
        usleep(1000);
    }
    fail_msg("the writers do not go on");
}

uint8_t *cow_stress_copy(const struct cow_stress *s)
{
    uint8_t *copy = malloc(s->size);

    assert_non_null(copy);
    for (size_t at = 0; at < s->size; at += HUGE) {
        size_t len = s->size - at < HUGE ? s->size - at : HUGE;
        struct iovec here = {copy + at, len}, there = {s->ram + at, len};

        assert_int_equal(process_vm_readv(s->pid, &here, 1, &there, 1, 0), len);
    }
    return copy;
}

double cow_stress_stall_ms(const struct cow_stress *s, double p)
{
    double longest = (double)s->control->worst_ns / 1e6;
    uint64_t all = 0, seen = 0;

    for (unsigned i = 0; i < COW_STALLS; i++)
        all += s->control->stalls[i];
    for (unsigned i = 0; i < COW_STALLS; i++) {
        seen += s->control->stalls[i];
        if ((double)seen >= p * (double)all)
            return (double)((uint64_t)1 << i) / 1e3;
    }
    return longest;
}

void cow_stress_stop(struct cow_stress *s)
{
    pthread_t *ids = s->thread_ids;
    int status;

    if (s->pid != getpid()) {
        assert_int_equal(waitpid(s->pid, &status, WNOHANG), 0);
        kill(s->pid, SIGKILL);
        assert_int_equal(waitpid(s->pid, &status, 0), s->pid);
    } else {
        __atomic_store_n(&s->control->stop, 1, __ATOMIC_SEQ_CST);
        for (unsigned i = 0; i < s->threads + s->forks; i++)
            pthread_join(ids[i], NULL);
        free(ids);
    }
    s->pid = 0;
    munmap(s->ram, s->size);
    munmap(s->control, PAGE);
    if (s->fd >= 0)
        close(s->fd);
}
