/* SPDX-License-Identifier: MIT */
/*
 * Folding into a raw base. Raw has no tables that could flip: the base is
 * written over where the layers above mask it, so what is seen through them
 * stays right at every moment, while the base alone is torn until it is done.
 * The journal therefore says: only forward, from the start if need be.
 */
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "merge_impl.h"
#include "rewrite_impl.h"

#define ZERO_BYTES ((size_t)1 << 20)

int raw_plan(struct merge_group *g, struct qstill_error *err)
{
    if (image_lock(g->target->fd, g->target->path, IMAGE_LOCK_EXCLUSIVE, err) <
        0)
        return err->code;
    g->rw.moves.block = g->zeros.block = MOVES_TOGETHER;
    for (struct extent_walk w = extents_walk(&g->view, 0); w.on;
         extents_next(&w)) {
        const struct extent *e = &w.e;
        struct move m = {.from = e->guest,
                         .dst = e->guest,
                         .len = e->len,
                         .layer = MOVE_GUEST};

        if (e->layer == g->t && e->kind != EXTENT_PAST_END)
            continue;
        if (moves_push(extent_has_bytes(e) ? &g->rw.moves : &g->zeros, &m) < 0)
            return err_nomem(err);
        if (extent_has_bytes(e))
            g->bytes += e->len;
    }
    return 0;
}

static int write_zeros(struct merge_group *g, uint64_t off, uint64_t len,
                       struct qstill_error *err)
{
    CLEANUP(freep) uint8_t *zeros = calloc(1, ZERO_BYTES);

    if (!zeros)
        return err_nomem(err);
    while (len > 0) {
        size_t n = (size_t)min_u64(len, ZERO_BYTES);

        if (io_write_full(g->m->io, g->target->wfd, zeros, n, off, err) < 0)
            return err_wrap(err, "%s", g->target->path);
        off += n;
        len -= n;
    }
    return 0;
}

/* Holes read as zeros; where there are none, zeros are written. */
int raw_zero(struct merge_group *g, struct qstill_error *err)
{
    const struct io *io = g->m->io;

    for (struct move_walk w = moves_walk(&g->zeros); w.on; moves_next(&w)) {
        const struct move *z = &w.m;

        if (io->ops->fallocate(io, g->target->wfd,
                               FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                               z->dst, z->len) < 0 &&
            write_zeros(g, z->dst, z->len, err) < 0)
            return err->code;
    }
    return 0;
}
