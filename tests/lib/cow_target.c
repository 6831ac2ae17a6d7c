/* SPDX-License-Identifier: MIT */
#include "cow_target.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sem.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cow_spin.h"

struct self {
    volatile struct cow_report *report;
    int fd; /* to read from */
};

static void add(volatile uint64_t *v)
{
    __atomic_fetch_add(v, 1, __ATOMIC_SEQ_CST);
}

static double now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec * 1e3 + (double)ts.tv_nsec / 1e6;
}

static void *run_spin(void *arg)
{
    const struct self *s = arg;

    add(&s->report->ready);
    for (;;) {
        if (cow_spin(20000) != 0)
            add(&s->report->faults);
        add(&s->report->loops);
    }
    return NULL;
}

/* A byte each 2 ms or so from the parent, or none at all. */
static void *run_ppoll(void *arg)
{
    const struct self *s = arg;
    struct pollfd p = {s->fd, POLLIN, 0};
    char c;

    add(&s->report->ready);
    for (;;) {
        if (ppoll(&p, 1, NULL, NULL) != 1)
            add(&s->report->faults);
        else if (read(s->fd, &c, 1) != 1 || c != 'x')
            add(&s->report->faults);
        add(&s->report->loops);
    }
    return NULL;
}

static void *run_read(void *arg)
{
    const struct self *s = arg;
    char c;

    add(&s->report->ready);
    for (;;) {
        if (read(s->fd, &c, 1) != 1 || c != 'x')
            add(&s->report->faults);
        add(&s->report->loops);
    }
    return NULL;
}

static void *run_futex(void *arg)
{
    const struct self *s = arg;
    static uint32_t word = 7;

    add(&s->report->ready);
    for (;;) {
        syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 7, NULL, NULL, 0);
        add(&s->report->faults); /* nobody ever wakes it */
    }
    return NULL;
}

static void *run_sleep(void *arg)
{
    const struct self *s = arg;

    add(&s->report->ready);
    for (;;) {
        struct timespec ts = {0, 3000000};

        if (nanosleep(&ts, NULL) != 0)
            add(&s->report->faults);
        add(&s->report->loops);
    }
    return NULL;
}

static void main_sleep(const struct self *s)
{
    struct timespec ts = {0, 600000000};
    double begun = now_ms();

    add(&s->report->ready);
    if (nanosleep(&ts, NULL) != 0)
        add(&s->report->faults);
    s->report->value = (uint64_t)(now_ms() - begun);
    add(&s->report->done);
    pause();
}

static void main_ppoll_time(const struct self *s)
{
    struct timespec ts = {0, 400000000};
    struct pollfd p = {s->fd, POLLIN, 0};
    double begun = now_ms();

    add(&s->report->ready);
    if (ppoll(&p, 1, &ts, NULL) != 0)
        add(&s->report->faults);
    s->report->value = (uint64_t)(now_ms() - begun);
    add(&s->report->done);
    pause();
}

static volatile struct cow_report *handler_report;

static void count_signal(int sig)
{
    (void)sig;
    add(&handler_report->signals);
}

static void catch (int sig)
{
    struct sigaction sa = {.sa_handler = count_signal};

    if (sigaction(sig, &sa, NULL) < 0)
        _exit(3);
}

static void main_suspend(const struct self *s)
{
    sigset_t block, wait;

    handler_report = s->report;
    sigemptyset(&block);
    sigaddset(&block, SIGUSR1);
    sigprocmask(SIG_BLOCK, &block, NULL);
    catch (SIGUSR1);
    sigemptyset(&wait);
    add(&s->report->ready);
    for (;;) {
        uint64_t before = s->report->signals;

        sigsuspend(&wait);
        if (s->report->signals == before)
            add(&s->report->faults);
        add(&s->report->loops);
    }
}

static void main_altstack(const struct self *s)
{
    stack_t want = {.ss_sp = malloc(65536), .ss_size = 65536}, now;
    sigset_t mask, mask_now;
    char c;

    sigaltstack(&want, NULL);
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR2);
    sigaddset(&mask, SIGRTMIN + 3);
    sigprocmask(SIG_SETMASK, &mask, NULL);
    add(&s->report->ready);
    for (;;) {
        if (read(s->fd, &c, 1) != 1)
            add(&s->report->faults);
        sigaltstack(NULL, &now);
        sigprocmask(SIG_SETMASK, NULL, &mask_now);
        if (now.ss_sp != want.ss_sp || now.ss_size != want.ss_size ||
            now.ss_flags != 0 || memcmp(&mask, &mask_now, 8) != 0)
            add(&s->report->faults);
        add(&s->report->loops);
    }
}

static void main_count(const struct self *s)
{
    handler_report = s->report;
    catch (SIGRTMIN);
    add(&s->report->ready);
    for (;;)
        add(&s->report->loops);
}

/* As run_ppoll. */
static void main_epoll(const struct self *s, bool mask, int limit)
{
    struct epoll_event e = {.events = EPOLLIN};
    sigset_t none;
    int fd = epoll_create1(0);
    char c;

    sigemptyset(&none);
    if (epoll_ctl(fd, EPOLL_CTL_ADD, s->fd, &e) < 0)
        _exit(3);
    add(&s->report->ready);
    for (;;) {
        /* Not by glibc's functions: which call they make is theirs. */
        long r = mask ? syscall(SYS_epoll_pwait, fd, &e, 1, limit, &none, 8)
                      : syscall(SYS_epoll_wait, fd, &e, 1, limit);

        if (r != 1 || read(s->fd, &c, 1) != 1 || c != 'x')
            add(&s->report->faults);
        add(&s->report->loops);
    }
}

static void main_semop(const struct self *s)
{
    struct sembuf down = {0, -1, 0};
    int id = semget(IPC_PRIVATE, 1, 0600);

    if (id < 0)
        _exit(3);
    s->report->value = (uint64_t)id;
    add(&s->report->ready);
    for (;;) {
        if (semop(id, &down, 1) != 0)
            add(&s->report->faults);
        add(&s->report->loops);
    }
}

static void main_sigwait(const struct self *s, bool limited)
{
    struct timespec limit = {60, 0};
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    add(&s->report->ready);
    for (;;) {
        int r = sigtimedwait(&set, NULL, limited ? &limit : NULL);

        if (r != SIGUSR1)
            add(&s->report->faults);
        add(&s->report->loops);
    }
}

/* Each signal must end the wait, whenever it comes. */
static void main_epoll_signal(const struct self *s)
{
    struct epoll_event e;
    int fd = epoll_create1(0);

    handler_report = s->report;
    catch (SIGUSR1);
    add(&s->report->ready);
    for (;;) {
        if (syscall(SYS_epoll_wait, fd, &e, 1, -1) != -1 || errno != EINTR)
            add(&s->report->faults);
        add(&s->report->loops);
    }
}

static void main_many(const struct self *s)
{
    static void *(*const threads[])(void *) = {
        run_spin, run_spin, run_spin, run_futex, run_futex, run_sleep, run_read,
    };
    pthread_t t;

    for (size_t i = 0; i < sizeof(threads) / sizeof(threads[0]); i++)
        if (pthread_create(&t, NULL, threads[i], (void *)(uintptr_t)s) != 0)
            _exit(3);
    while (s->report->ready < sizeof(threads) / sizeof(threads[0]))
        usleep(1000);
    run_spin((void *)(uintptr_t)s);
}

static void target_main(struct self *s, enum cow_kind kind)
{
    switch (kind) {
    case COW_SPIN:
        run_spin(s);
        break;
    case COW_PPOLL:
        run_ppoll(s);
        break;
    case COW_PPOLL_TIME:
        main_ppoll_time(s);
        break;
    case COW_READ:
        run_read(s);
        break;
    case COW_FUTEX:
        run_futex(s);
        break;
    case COW_SLEEP:
        main_sleep(s);
        break;
    case COW_EPOLL:
        main_epoll(s, false, -1);
        break;
    case COW_EPOLL_MASK:
        main_epoll(s, true, -1);
        break;
    case COW_EPOLL_MASK_TIME:
        main_epoll(s, true, 60000);
        break;
    case COW_SEMOP:
        main_semop(s);
        break;
    case COW_SIGWAIT:
        main_sigwait(s, false);
        break;
    case COW_SIGWAIT_TIME:
        main_sigwait(s, true);
        break;
    case COW_EPOLL_SIGNAL:
        main_epoll_signal(s);
        break;
    case COW_SUSPEND:
        main_suspend(s);
        break;
    case COW_ALTSTACK:
        main_altstack(s);
        break;
    case COW_COUNT:
        main_count(s);
        break;
    case COW_MANY:
        main_many(s);
        break;
    }
}

void cow_target_start_with(struct cow_target *t, enum cow_kind kind,
                           void (*prepare)(void))
{
    uint64_t want = kind == COW_MANY ? 8 : 1;
    struct self s;
    int fds[2];

    t->report = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(t->report != MAP_FAILED);
    assert_int_equal(pipe(fds), 0);
    t->pid = fork();
    assert_true(t->pid >= 0);
    if (t->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
        close(fds[1]);
        s = (struct self){t->report, fds[0]};
        if (prepare)
            prepare();
        target_main(&s, kind);
        _exit(4);
    }
    close(fds[0]);
    t->write_fd = fds[1];
    for (int i = 0; i < 5000 && t->report->ready < want; i++)
        usleep(1000);
    assert_true(t->report->ready >= want);
    usleep(5000); /* into its call */
}

void cow_target_start(struct cow_target *t, enum cow_kind kind)
{
    cow_target_start_with(t, kind, NULL);
}

void cow_target_goes_on(const struct cow_target *t)
{
    uint64_t before = t->report->loops;

    assert_int_equal(write(t->write_fd, "x", 1), 1);
    for (int i = 0; i < 5000 && t->report->loops == before; i++)
        usleep(1000);
    assert_true(t->report->loops > before);
}

unsigned cow_target_fds(const struct cow_target *t)
{
    char path[64];
    unsigned n = 0;
    DIR *dir;

    snprintf(path, sizeof(path), "/proc/%d/fd", t->pid);
    dir = opendir(path);
    assert_non_null(dir);
    while (readdir(dir))
        n++;
    closedir(dir);
    return n - 2;
}

void cow_target_stop(struct cow_target *t)
{
    int status;

    assert_int_equal(waitpid(t->pid, &status, WNOHANG), 0);
    assert_int_equal(t->report->faults, 0);
    kill(t->pid, SIGKILL);
    assert_int_equal(waitpid(t->pid, &status, 0), t->pid);
    close(t->write_fd);
    munmap((void *)(uintptr_t)t->report, 4096);
}
