/* SPDX-License-Identifier: MIT */
#include "l2walk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"

/* Tables in memory at a time; 128 GiB of guest at 64 KiB clusters are one. */
#define BATCH_BYTES ((size_t)16 << 20)
/* Entries between two looks at whether to go on. */
#define BATCH_ENTRIES 65536u

struct batch {
    const struct l2walk *w;
    uint8_t *tables;
    struct aio_op *ops;
    uint64_t *index; /* of the table in each slot */
    size_t max;      /* tables */
    size_t count;
    size_t op_count;
    uint64_t hole_from, hole_to, data_from, data_to; /* known last */
};

static void batch_finip(struct batch *b)
{
    free(b->tables);
    free(b->ops);
    free(b->index);
}

static uint64_t table_offset(const struct batch *b, uint64_t i)
{
    return b->w->l1[i] & QCOW2_L1_OFFSET_MASK;
}

/* A filesystem that cannot tell has no holes. */
static bool is_hole(struct batch *b, uint64_t off)
{
    uint64_t end = off + b->w->img->cluster_size;
    off_t data, hole;

    if (off >= b->data_from && off < b->data_to)
        return false;
    if (off >= b->hole_from && end <= b->hole_to)
        return true;
    data = lseek(b->w->img->fd, (off_t)off, SEEK_DATA);
    if (data < 0 && errno != ENXIO)
        return false;
    if (data < 0 || (uint64_t)data > off) {
        b->hole_from = off;
        b->hole_to = data < 0 ? UINT64_MAX : (uint64_t)data;
        return end <= b->hole_to;
    }
    hole = lseek(b->w->img->fd, data, SEEK_HOLE);
    b->data_from = off;
    b->data_to = hole < 0 ? UINT64_MAX : (uint64_t)hole;
    return false;
}

/* Queues reads for the tables of entries from `i` on, tables that follow each
 * other in one read. Returns the first entry not taken. */
static uint64_t batch_read(struct batch *b, uint64_t i)
{
    uint64_t cs = b->w->img->cluster_size;
    uint64_t end = min_u64(b->w->l1_size, i + BATCH_ENTRIES);

    b->op_count = b->count = 0;
    for (; i < end && b->count < b->max; i++) {
        uint64_t off = table_offset(b, i);
        struct aio_op *last = b->op_count ? &b->ops[b->op_count - 1] : NULL;

        if (!off || is_hole(b, off))
            continue;
        if (last && last->off + last->len == off)
            last->len += cs;
        else
            b->ops[b->op_count++] =
                (struct aio_op){.type = AIO_READ,
                                .fd = b->w->img->fd,
                                .off = off,
                                .data = b->tables + b->count * cs,
                                .len = cs};
        b->index[b->count++] = i;
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
        i = batch_read(b, i);
        if (batch_finish(b, err) < 0 || aio_check_stop(b->w->aio, err) < 0)
            return err->code;
        for (size_t k = 0; k < b->count; k++)
            if (b->w->visit(b->w->user, b->index[k],
                            b->tables + k * b->w->img->cluster_size, err) < 0)
                return err->code;
    }
    return 0;
}

int l2walk(const struct l2walk *w, struct qstill_error *err)
{
    CLEANUP(batch_finip) struct batch b = {.w = w};
    size_t used = 0;

    if (aio_check_stop(w->aio, err) < 0)
        return err->code;
    for (uint64_t i = 0; i < w->l1_size; i++)
        used += (w->l1[i] & QCOW2_L1_OFFSET_MASK) != 0;
    if (used == 0)
        return 0;
    b.max = BATCH_BYTES / w->img->cluster_size;
    b.max = used < b.max ? used : b.max;
    b.tables = malloc(b.max * w->img->cluster_size);
    b.ops = calloc(b.max, sizeof(*b.ops));
    b.index = calloc(b.max, sizeof(*b.index));
    if (!b.tables || !b.ops || !b.index)
        return err_nomem(err);
    return visit_all(&b, err);
}
