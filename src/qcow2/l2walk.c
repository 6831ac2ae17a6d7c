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
/* Shorter holes are read: a table of 2 MiB has 32 pieces at most. */
#define SHORTEST_HOLE ((uint64_t)64 << 10)

struct piece {
    uint64_t index; /* of its table */
    size_t from;    /* in the table */
    size_t len;
    uint8_t *entries;
};

struct batch {
    const struct l2walk *w;
    uint8_t *tables;
    struct aio_op *ops;
    struct piece *pieces;
    size_t max;   /* of both */
    size_t bytes; /* of tables */
    size_t count;
    size_t op_count;
    size_t used;
    uint64_t hole_from, hole_to, data_from, data_to; /* known last */
};

static void batch_finip(struct batch *b)
{
    free(b->tables);
    free(b->ops);
    free(b->pieces);
}

static uint64_t table_offset(const struct batch *b, uint64_t i)
{
    return b->w->l1[i] & QCOW2_L1_OFFSET_MASK;
}

/* Where the data from `off` on begins and ends; UINT64_MAX: there is none. A
 * filesystem that cannot tell has no holes. */
static uint64_t find_data(struct batch *b, uint64_t off, uint64_t *to)
{
    off_t data, hole;

    if (off >= b->hole_from && off < b->hole_to)
        off = b->hole_to;
    if (off >= b->data_from && off < b->data_to) {
        *to = b->data_to;
        return off;
    }
    if (off == UINT64_MAX)
        return off;
    data = lseek(b->w->img->fd, (off_t)off, SEEK_DATA);
    if (data < 0 && errno != ENXIO)
        data = (off_t)off;
    b->hole_from = off;
    b->hole_to = data < 0 ? UINT64_MAX : (uint64_t)data;
    if (data < 0)
        return UINT64_MAX;
    hole = lseek(b->w->img->fd, data, SEEK_HOLE);
    b->data_from = (uint64_t)data;
    b->data_to = hole <= data ? UINT64_MAX : (uint64_t)hole;
    *to = b->data_to;
    return b->data_from;
}

/* The next piece of [off, end): where its data begins, and in *to where it ends
 * but for holes that are not worth a read of their own. `end`: there is none.
 */
static uint64_t find_piece(struct batch *b, uint64_t off, uint64_t end,
                           uint64_t *to)
{
    uint64_t from = find_data(b, off, to), next, next_to;

    if (from >= end)
        return end;
    while (*to < end) {
        next = find_data(b, *to, &next_to);
        if (next >= end || next - *to >= SHORTEST_HOLE)
            break;
        *to = next_to;
    }
    *to = min_u64(*to, end);
    return from;
}

/* Neighbours in the file are read together. */
static void add_piece(struct batch *b, uint64_t i, uint64_t from, uint64_t to)
{
    struct aio_op *last = b->op_count ? &b->ops[b->op_count - 1] : NULL;
    struct piece *p = &b->pieces[b->count++];

    *p = (struct piece){.index = i,
                        .from = (size_t)(from - table_offset(b, i)),
                        .len = (size_t)(to - from),
                        .entries = b->tables + b->used};
    b->used += p->len;
    if (last && last->off + last->len == from)
        last->len += p->len;
    else
        b->ops[b->op_count++] = (struct aio_op){.type = AIO_READ,
                                                .fd = b->w->img->fd,
                                                .off = from,
                                                .data = p->entries,
                                                .len = p->len};
}

static void add_table(struct batch *b, uint64_t i)
{
    uint64_t cs = b->w->img->cluster_size, off = table_offset(b, i);
    uint64_t pos = off, end = off + cs, to;
    bool whole = b->w->whole || cs <= SHORTEST_HOLE;

    while ((pos = find_piece(b, pos, end, &to)) < end) {
        if (whole) {
            add_piece(b, i, off, end);
            return;
        }
        add_piece(b, i, round_down_u64(pos, QCOW2_SECTOR),
                  round_up_u64(to, QCOW2_SECTOR));
        pos = b->pieces[b->count - 1].from + off + b->pieces[b->count - 1].len;
    }
}

static bool has_room(const struct batch *b)
{
    uint64_t cs = b->w->img->cluster_size;

    return b->used + cs <= b->bytes &&
           b->count + max_u64(cs / SHORTEST_HOLE, 1) <= b->max;
}

/* Queues reads for the tables of entries from `i` on. Returns the first entry
 * not taken. */
static uint64_t batch_read(struct batch *b, uint64_t i)
{
    uint64_t end = min_u64(b->w->l1_size, i + BATCH_ENTRIES);

    b->op_count = b->count = b->used = 0;
    for (; i < end && has_room(b); i++)
        if (table_offset(b, i))
            add_table(b, i);
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
        for (size_t k = 0; k < b->count; k++) {
            const struct piece *p = &b->pieces[k];

            if (b->w->visit(b->w->user, p->index, p->from, p->entries, p->len,
                            err) < 0)
                return err->code;
        }
    }
    return 0;
}

int l2walk(const struct l2walk *w, struct qstill_error *err)
{
    CLEANUP(batch_finip) struct batch b = {.w = w};
    uint64_t cs = w->img->cluster_size, used = 0;

    if (aio_check_stop(w->aio, err) < 0)
        return err->code;
    for (uint64_t i = 0; i < w->l1_size; i++)
        used += (w->l1[i] & QCOW2_L1_OFFSET_MASK) != 0;
    if (used == 0)
        return 0;
    b.bytes = min_u64(used, BATCH_BYTES / cs) * cs;
    b.max = min_u64(used, BATCH_BYTES / cs) * max_u64(cs / SHORTEST_HOLE, 1);
    b.tables = malloc(b.bytes);
    b.ops = calloc(b.max, sizeof(*b.ops));
    b.pieces = calloc(b.max, sizeof(*b.pieces));
    if (!b.tables || !b.ops || !b.pieces)
        return err_nomem(err);
    return visit_all(&b, err);
}
