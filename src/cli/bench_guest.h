/* SPDX-License-Identifier: MIT */
/*
 * The guest of `qstill bench`: a boot sector that rewrites 16 MiB of its RAM
 * without end, page by page, and keeps at a fixed place how many pages it has
 * rewritten and how long each took. And the host's looks at that place.
 */
#ifndef QSTILL_CLI_BENCH_GUEST_H
#define QSTILL_CLI_BENCH_GUEST_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "cli.h"

enum {
    GUEST_PAGES = 4096, /* that it rewrites */
    GUEST_SUB = 16,     /* buckets per power of two */
    GUEST_BUCKETS = 32 * GUEST_SUB,
    GUEST_SECTOR = 512,
    GUEST_METER = 1 << 20,     /* where its page is, physical */
    GUEST_USED_END = 48 << 20, /* it touches nothing from here on */
    WATCH_GAPS_MAX = 16 << 10,
};

/* The boot sector, or NULL where we cannot make one (no x86-64). */
const void *guest_boot_sector(void);

/* Its page. The guest alone writes it. */
struct guest_page {
    uint32_t beat; /* pages rewritten, wraps around */
    uint32_t spare;
    uint32_t tsc[2]; /* its clock at the last beat: low and high half */
    uint32_t spare2[12];
    /* Ticks that a page took: bucket 16 * n + s holds 2^n * (1 + s / 16). */
    uint32_t took[GUEST_BUCKETS];
};

/* How long pages took, over some time. */
struct guest_took {
    double hz; /* of the guest's clock */
    uint64_t counts[GUEST_BUCKETS];
};

int guest_read(pid_t pid, uint64_t address, struct guest_page *out,
               struct qstill_error *err);
/* Adds what happened between two looks. */
void guest_took_add(struct guest_took *t, const struct guest_page *before,
                    const struct guest_page *after);
/* The quantile among the n slowest (or all there are) in ms: never told
 * shorter. */
double guest_slowest_ms(const struct guest_took *t, uint64_t n,
                        double quantile);
/* Of all pages whose time is at least from_ms and less than to_ms. */
uint64_t guest_count(const struct guest_took *t, double from_ms, double to_ms);

/* A thread that looks at the beat ten thousand times a second. */
struct guest_watch {
    pid_t pid;
    uint64_t address;
    pthread_t thread;
    atomic_bool end;
    size_t count;
    struct {
        double from, to; /* seconds of the epoch: it stood still */
    } gaps[WATCH_GAPS_MAX];
};
int guest_watch_begin(struct guest_watch *w, pid_t pid, uint64_t address,
                      struct qstill_error *err);
void guest_watch_end(struct guest_watch *w);
/* The longest standstill between these instants, in ms: the watch may see the
 * last beat a little after the stop. */
double guest_watch_pause_ms(const struct guest_watch *w, double from,
                            double to);

#endif
