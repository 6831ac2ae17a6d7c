/* SPDX-License-Identifier: MIT */
/* Shared by mover.c (copies) and mover_share.c (blocks that two files share).
 */
#ifndef QSTILL_QCOW2_MOVER_IMPL_H
#define QSTILL_QCOW2_MOVER_IMPL_H

#include "base/taskpool.h"
#include "mover.h"
#include "ratelimit.h"
#include "share.h"

struct unit {
    struct task task; /* first */
    struct mover *m;
    struct fill fill;
    struct aio_op write;
    uint8_t *data;
    uint64_t dst;
    size_t at;               /* written, or found to be zeros */
    uint64_t zeros;          /* threaded: a bit per block of zeros */
    struct qstill_error why; /* threaded: */
    int error;
    bool busy;
};

struct mover {
    struct mover_options o;
    struct aio *aio;
    struct aio_pool *pool;
    struct taskpool *threads; /* NULL: by the aio */
    int event_fd;             /* theirs */
    struct filler filler;
    size_t buffer;
    struct unit *units;
    size_t unit_count;
    struct move_walk next;
    uint64_t at;     /* bytes of it begun */
    size_t busy;     /* units */
    bool *shareable; /* by layer, until the filesystem refuses */
    struct share_ask ask;
    struct mover_count count;
    struct ratelimit limit; /* of bytes copied */
    int failed;
    struct qstill_error why;
};

/* mover.c: so many bytes of the current move are done, or on the way. */
void mover_advance(struct mover *m, uint64_t len);

void mover_share_init(struct mover *m);

/* Shares what comes next. How many pieces, 0: it must be copied; some of it may
 * be shared already, and is then written over. */
size_t mover_share(struct mover *m);

/* Whether what comes next is to be tried so. */
bool mover_may_share(const struct mover *m);

#endif
