/* SPDX-License-Identifier: MIT */
/* Time with its unit in the name. */
#ifndef QSTILL_BASE_CLOCK_H
#define QSTILL_BASE_CLOCK_H

#include <stdint.h>
#include <stdio.h>
#include <time.h>

static inline double clock_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

/* Since 1970: what other processes' time stamps are compared with. */
static inline double clock_unix_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static inline void clock_sleep_ms(unsigned ms)
{
    struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};

    nanosleep(&t, NULL);
}

/* RFC 3339 in UTC: "2026-11-22T22:02:20Z"; *ns is the same in nanoseconds. */
#define CLOCK_STAMP_LEN 40
static inline void clock_stamp(char out[CLOCK_STAMP_LEN], uint64_t *ns)
{
    struct timespec now;
    struct tm tm;

    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &tm);
    snprintf(out, CLOCK_STAMP_LEN, "%04d-%02d-%02dT%02d:%02d:%02dZ",
             (tm.tm_year + 1900) % 10000, tm.tm_mon + 1, tm.tm_mday, tm.tm_hour,
             tm.tm_min, tm.tm_sec);
    *ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

#endif
