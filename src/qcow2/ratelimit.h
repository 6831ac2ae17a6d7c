/* SPDX-License-Identifier: MIT */
/* A limit on bytes per second, from the start of the work on. */
#ifndef QSTILL_QCOW2_RATELIMIT_H
#define QSTILL_QCOW2_RATELIMIT_H

#include <stdint.h>
#include <time.h>

struct ratelimit {
    uint64_t rate; /* 0: none */
    uint64_t begun;
    struct timespec start;
};

static inline void ratelimit_init(struct ratelimit *l, uint64_t rate)
{
    l->rate = rate;
    l->begun = 0;
    clock_gettime(CLOCK_MONOTONIC, &l->start);
}

static inline void ratelimit_begin(struct ratelimit *l, uint64_t bytes)
{
    l->begun += bytes;
}

/* Milliseconds until more may begin, at most `most`; 0: now. */
static inline int ratelimit_wait_ms(const struct ratelimit *l, int most)
{
    struct timespec now;
    double due, passed;

    if (l->rate == 0)
        return 0;
    clock_gettime(CLOCK_MONOTONIC, &now);
    passed = (double)(now.tv_sec - l->start.tv_sec) * 1e3 +
             (double)(now.tv_nsec - l->start.tv_nsec) / 1e6;
    due = (double)l->begun * 1e3 / (double)l->rate - passed;
    return due <= 0 ? 0 : due >= most ? most : (int)due + 1;
}

#endif
