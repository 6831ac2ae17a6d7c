/* SPDX-License-Identifier: MIT */
#include "l2walk.h"

#include <stdlib.h>
#include <string.h>

/* Tables in memory at a time; 128 GiB of guest at 64 KiB clusters are one. */
#define BATCH_BYTES ((size_t)16 << 20)

struct batch {
    const struct l2walk *w;
    uint8_t *tables;
    struct aio_op *ops;
    size_t max; /* tables */
    size_t op_count;
};

static void batch_finip(struct batch *b)
{
    free(b->tables);
    free(b->ops);
}

static uint64_t table_offset(const struct batch *b, uint64_t i)
{
    return b->w->l1[i] & QCOW2_L1_OFFSET_MASK;
}

/* Queues reads for the tables of entries from `i` on, tables that follow each
 * other in one read. Returns the first entry not taken. */
static uint64_t batch_read(struct batch *b, uint64_t i)
{
    uint64_t cs = b->w->img->cluster_size;
    size_t slot = 0;

    b->op_count = 0;
    for (; i < b->w->l1_size && slot < b->max; i++) {
        uint64_t off = table_offset(b, i);
        struct aio_op *last = b->op_count ? &b->ops[b->op_count - 1] : NULL;

        if (!off)
            continue;
        if (last && last->off + last->len == off)
            last->len += cs;
        else
            b->ops[b->op_count++] =
                (struct aio_op){.type = AIO_READ,
                                .fd = b->w->img->fd,
                                .off = off,
                                .data = b->tables + slot * cs,
                                .len = cs};
        slot++;
    }
    for (size_t k = 0; k < b->op_count; k++)
        aio_submit(b->w->aio, &b->ops[k]);
    return i;
}

static int batch_finish(struct batch *b, struct qstill_error *err)
{
    if (aio_drain(b->w->aio, err) < 0)
        return err->code;
    for (size_t k = 0; k < b->op_count; k++) {
        struct aio_op *op = &b->ops[k];

        if (op->error)
            return err_errno(err, op->error, "%s: reading L2 tables",
                             b->w->img->path);
        memset((uint8_t *)op->data + op->moved, 0, op->len - op->moved);
    }
    return 0;
}

static int visit_all(struct batch *b, struct qstill_error *err)
{
    for (uint64_t i = 0; i < b->w->l1_size;) {
        uint64_t next = batch_read(b, i);
        size_t slot = 0;

        if (batch_finish(b, err) < 0)
            return err->code;
        for (; i < next; i++) {
            if (!table_offset(b, i))
                continue;
            if (b->w->visit(b->w->user, i,
                            b->tables + slot++ * b->w->img->cluster_size,
                            err) < 0)
                return err->code;
        }
    }
    return 0;
}

int l2walk(const struct l2walk *w, struct qstill_error *err)
{
    CLEANUP(batch_finip) struct batch b = {.w = w};
    size_t used = 0;

    for (uint64_t i = 0; i < w->l1_size; i++)
        used += (w->l1[i] & QCOW2_L1_OFFSET_MASK) != 0;
    if (used == 0)
        return 0;
    b.max = BATCH_BYTES / w->img->cluster_size;
    b.max = used < b.max ? used : b.max;
    b.tables = malloc(b.max * w->img->cluster_size);
    b.ops = calloc(b.max, sizeof(*b.ops));
    if (!b.tables || !b.ops)
        return err_nomem(err);
    return visit_all(&b, err);
}
