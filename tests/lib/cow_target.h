/* SPDX-License-Identifier: MIT */
/*
 * Processes to be injected into: each is forked, does one thing for ever, and
 * counts in shared memory what it did and what was not as it must be.
 */
#ifndef QSTILL_TESTS_COW_TARGET_H
#define QSTILL_TESTS_COW_TARGET_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct cow_report {
    uint64_t ready;  /* the threads that are up */
    uint64_t loops;  /* rounds without a fault */
    uint64_t faults; /* what must never happen */
    uint64_t signals;
    uint64_t done; /* the target has ended what it was about */
    uint64_t value;
};

struct cow_target {
    pid_t pid;
    volatile struct cow_report *report; /* written by the target */
    int write_fd;                       /* what the target reads from */
};

enum cow_kind {
    COW_SPIN,       /* all registers, flags, x87, vectors, red zone */
    COW_PPOLL,      /* waits without a limit for a byte, again and again */
    COW_PPOLL_TIME, /* one ppoll of 400 ms; value: how many ms it took */
    COW_READ,       /* a blocking read */
    COW_FUTEX,      /* waits on a futex for ever */
    COW_SLEEP,      /* one nanosleep of 600 ms; value: how many ms */
    COW_EPOLL,      /* epoll_wait without a limit, a byte again and again */
    COW_EPOLL_MASK, /* the same with a signal mask of its own */
    COW_EPOLL_MASK_TIME, /* and with a limit of a minute */
    COW_SEMOP,           /* waits for a semaphore that its parent raises */
    COW_SIGWAIT,         /* rt_sigtimedwait for SIGUSR1, no limit */
    COW_SIGWAIT_TIME,    /* with a limit of a minute */
    COW_EPOLL_SIGNAL,    /* epoll_wait that only a handled signal ends */
    COW_SUSPEND,         /* sigsuspend, again and again */
    COW_ALTSTACK,        /* reads; checks its alternate stack and signal mask */
    COW_COUNT,           /* spins in C and counts SIGRTMIN */
    COW_MANY,            /* eight threads: spin, read, ppoll, futex, sleep */
};

/* Waits until it is in its loop. Asserts. */
void cow_target_start(struct cow_target *t, enum cow_kind kind);
/* As above, but `prepare` runs in the child first. */
void cow_target_start_with(struct cow_target *t, enum cow_kind kind,
                           void (*prepare)(void));
/* Gives it a byte to read, asserts that `loops` grows within 5 s. */
void cow_target_goes_on(const struct cow_target *t);
/* How many descriptors it has. */
unsigned cow_target_fds(const struct cow_target *t);
/* Kills and reaps it, asserts that it was still there and had no faults. */
void cow_target_stop(struct cow_target *t);

#endif
