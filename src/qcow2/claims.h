/* SPDX-License-Identifier: MIT */
/* Who owns which cluster of a file: finds the first overlap. */
#ifndef QSTILL_QCOW2_CLAIMS_H
#define QSTILL_QCOW2_CLAIMS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

enum claim {
    CLAIM_ALONE = 1,  /* one owner: metadata or a data cluster */
    CLAIM_SHARED = 2, /* compressed data, which may share clusters */
};

/* Two bits per cluster; calloc leaves untouched pages unbacked. */
struct claims {
    uint8_t *bits;
    uint64_t n;
};

static inline int claims_init(struct claims *c, uint64_t clusters)
{
    c->n = clusters;
    c->bits = calloc(clusters / 4 + 1, 1);
    return c->bits ? 0 : -1;
}

static inline void claims_fini(struct claims *c)
{
    free(c->bits);
}

/* False: outside of the file, or somebody else's. */
static inline bool claims_take(struct claims *c, uint64_t cluster,
                               enum claim how)
{
    unsigned shift = 2 * (cluster % 4), now;

    if (cluster >= c->n)
        return false;
    now = c->bits[cluster / 4] >> shift & 3;
    if (now != 0 && (now != CLAIM_SHARED || how != CLAIM_SHARED))
        return false;
    c->bits[cluster / 4] |= (uint8_t)(how << shift);
    return true;
}

#endif
