/* SPDX-License-Identifier: MIT */
/*
 * A limit on bytes per second. Time in which nothing was begun (a host that was
 * suspended, a server that hung, work of another kind) is not made up for: no
 * more than RATELIMIT_SAVED_MS of it is left for later.
 */
#ifndef QSTILL_QCOW2_RATELIMIT_H
#define QSTILL_QCOW2_RATELIMIT_H

#include <stddef.h>
#include <stdint.h>

#include "base/clock.h"

#define RATELIMIT_SAVED_MS 200.0 /* a step that comes late is */
#define RATELIMIT_PIECES   8     /* a second, at least, where they can be cut */
#define RATELIMIT_SMALLEST ((size_t)4096)

struct ratelimit {
    uint64_t rate;  /* 0: none */
    double next_ms; /* when more may begin */
};

static inline void ratelimit_init(struct ratelimit *l, uint64_t rate)
{
    l->rate = rate;
    l->next_ms = clock_ms();
}

static inline void ratelimit_begin(struct ratelimit *l, uint64_t bytes)
{
    double saved = clock_ms() - RATELIMIT_SAVED_MS;

    if (l->rate == 0)
        return;
    if (l->next_ms < saved)
        l->next_ms = saved;
    l->next_ms += (double)bytes * 1e3 / (double)l->rate;
}

/* Milliseconds until more may begin, at most `most`; 0: now. */
static inline int ratelimit_wait_ms(const struct ratelimit *l, int most)
{
    double due;

    if (l->rate == 0)
        return 0;
    due = l->next_ms - clock_ms();
    return due <= 0 ? 0 : due >= most ? most : (int)due + 1;
}

/* How much to begin at once: a power of two, at most `most`, which is one. */
static inline size_t ratelimit_piece(uint64_t rate, size_t most)
{
    while (rate && most > RATELIMIT_SMALLEST && most > rate / RATELIMIT_PIECES)
        most /= 2;
    return most;
}

#endif
