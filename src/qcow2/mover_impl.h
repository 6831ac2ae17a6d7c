/* SPDX-License-Identifier: MIT */
/* Shared by mover.c (copies) and mover_share.c (blocks that two files share).
 */
#ifndef QSTILL_QCOW2_MOVER_IMPL_H
#define QSTILL_QCOW2_MOVER_IMPL_H

#include "base/taskpool.h"
#include "mover.h"
#include "ratelimit.h"

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
    size_t next;       /* move */
    uint64_t at;       /* bytes of it begun */
    size_t busy;       /* units */
    bool *unshareable; /* by layer */
    uint64_t share_unit;
    struct mover_count count;
    struct ratelimit limit; /* of bytes copied */
    int failed;
    struct qstill_error why;
};

/* A whole move made of whole pieces of files. False: it must be copied; what
 * was shared already is then written over. */
bool mover_share(struct mover *m);

/* Whether the next move is one to be tried so. */
bool mover_may_share(struct mover *m);

#endif
