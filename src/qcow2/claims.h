/* SPDX-License-Identifier: MIT */
/*
 * Which clusters of a file are metadata: no two tables may share one, and no
 * guest data may lie over one. (Data over data is the refcounts' business:
 * with a count of two it is legal, and reading it does no harm.)
 */
#ifndef QSTILL_QCOW2_CLAIMS_H
#define QSTILL_QCOW2_CLAIMS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

/* One bit per cluster; calloc leaves untouched pages unbacked. */
struct claims {
    uint8_t *bits;
    uint64_t n;
};

static inline int claims_init(struct claims *c, uint64_t clusters)
{
    c->n = clusters;
    c->bits = calloc(clusters / 8 + 1, 1);
    return c->bits ? 0 : -1;
}

static inline void claims_fini(struct claims *c)
{
    free(c->bits);
}

/* In the file, and no table's. */
static inline bool claims_is_free(const struct claims *c, uint64_t cluster)
{
    return cluster < c->n && !(c->bits[cluster / 8] >> (cluster % 8) & 1);
}

static inline bool claims_take(struct claims *c, uint64_t cluster)
{
    if (!claims_is_free(c, cluster))
        return false;
    c->bits[cluster / 8] |= (uint8_t)(1u << (cluster % 8));
    return true;
}

#endif
