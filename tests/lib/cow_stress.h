/* SPDX-License-Identifier: MIT */
/*
 * Memory that is written without pause by threads, in this process or in
 * another, to be captured: no VM, but harder on the capture than one. Each
 * write is of the next number of one global sequence. The writers can be
 * paused, so that a reference can be taken, and measure how long each of
 * their writes takes.
 */
#ifndef QSTILL_TESTS_COW_STRESS_H
#define QSTILL_TESTS_COW_STRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum cow_memory {
    COW_PRIVATE, /* anonymous, small pages */
    COW_THP,     /* anonymous, transparent huge pages */
    COW_MEMFD,   /* shared */
    COW_HUGE,    /* a memfd of huge pages of 2 MiB */
};

#define COW_STALLS 32

struct cow_control {
    uint64_t pause;  /* asked for */
    uint64_t paused; /* threads that are */
    uint64_t stop;
    uint64_t up;
    uint64_t sequence;           /* the next number */
    uint64_t worst_ns;           /* the longest write */
    uint64_t forked;             /* children that came and went */
    uint64_t stalls[COW_STALLS]; /* bucket: bits of the us it took */
};

struct cow_stress {
    pid_t pid; /* our own for threads of this process */
    uint8_t *ram;
    size_t size;
    unsigned threads;
    unsigned hot_mib; /* what the first thread rewrites without end; 0: as
                         the others */
    unsigned pace_us; /* the others sleep so long after 64 writes */
    /* One more thread forks without end. The child writes to what it has of
     * private memory, at once and again later, when the capture may be over. */
    bool forks;
    bool children_write; /* set by start */
    struct cow_control *control;
    int fd; /* of the memory, or -1 */
    void *thread_ids;
};

/* The first half is filled with numbers, the rest left alone; about every
 * eighth page of the first half is zero. False when the machine has no memory
 * of that kind. Fill in size, threads, hot_mib and pace_us before. */
bool cow_stress_start(struct cow_stress *s, enum cow_memory kind,
                      bool other_process);
void cow_stress_pause(struct cow_stress *s);
void cow_stress_resume(struct cow_stress *s);
/* Asserts that writes go on. */
void cow_stress_goes_on(const struct cow_stress *s);
/* A copy of the memory, while paused; to be freed. */
uint8_t *cow_stress_copy(const struct cow_stress *s);
/* The share p of the writes took less than this; see stalls. */
double cow_stress_stall_ms(const struct cow_stress *s, double p);
void cow_stress_stop(struct cow_stress *s);

#endif
