/* SPDX-License-Identifier: MIT */
/* Points in time on the monotonic clock, in milliseconds. */
#ifndef QSTILL_QMP_DEADLINE_H
#define QSTILL_QMP_DEADLINE_H

#include <limits.h>
#include <stdint.h>
#include <time.h>

#define DEADLINE_PAST 0 /* poll once, do not wait */

static inline uint64_t deadline_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static inline uint64_t deadline_in(uint32_t ms)
{
    return deadline_now() + ms;
}

/* What is left, as poll() wants it: 0 when it is over. */
static inline int deadline_left(uint64_t deadline)
{
    uint64_t now = deadline ? deadline_now() : 0;

    if (deadline <= now)
        return 0;
    return deadline - now > INT_MAX ? INT_MAX : (int)(deadline - now);
}

#endif
