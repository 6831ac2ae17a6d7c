/* SPDX-License-Identifier: MIT */
/*
 * New refcounts. Blocks whose counts change are written to new places, which
 * changes counts, too: the rounds end because a block moves only once. Blocks
 * that say something wrong (leaks) are made right in passing.
 */
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "rewrite_impl.h"

struct round {
    struct rewrite *rw;
    uint64_t cs;
    unsigned order;
    uint64_t per_block;
    uint64_t capacity; /* blocks that the new table can name */
    bool *moved;       /* by block: it has (or has lost) its place */
};

static uint64_t count_of(const struct rewrite *rw, uint64_t cluster)
{
    return cluster < rw->refs.n ? rw->refs.count[cluster] : 0;
}

static bool block_is_empty(const struct round *r, uint64_t block)
{
    const struct refs *refs = &r->rw->refs;
    uint64_t from = block * r->per_block;
    uint64_t to = min_u64(from + r->per_block, refs->n);

    /* a table may have room for many times more clusters than there are */
    for (uint64_t i = from; i < to; i++)
        if (refs->count[i])
            return false;
    return true;
}

static bool block_differs(const struct round *r, uint64_t block)
{
    const struct refblocks *s = &r->rw->stored;
    const uint8_t *old = block < s->table_len ? s->block[block] : NULL;

    if (!old)
        return !block_is_empty(r, block);
    for (uint64_t i = 0; i < r->per_block; i++)
        if (refcount_get(old, r->order, i) !=
            count_of(r->rw, block * r->per_block + i))
            return true;
    return false;
}

static int move_block(struct round *r, uint64_t block, struct qstill_error *err)
{
    struct rewrite *rw = r->rw;
    uint64_t old = block < rw->stored.table_len ? rw->stored.table[block] : 0;
    struct new_table *t;
    uint64_t first;

    r->moved[block] = true;
    if (old) {
        alloc_unref(&rw->alloc, old / r->cs, 1);
        if (runs_push(&rw->freed, old / r->cs, 1) < 0)
            return err_nomem(err);
        /* given up: from now on it is compared with nothing */
        rw->stored.table[block] = 0;
        rw->stored.block[block] = NULL;
    }
    rw->reftable[block] = 0;
    if (block_is_empty(r, block))
        return 0;
    t = new_tables_add(&rw->refblocks, block, r->cs);
    if (!t)
        return err_nomem(err);
    if (alloc_tail(&rw->alloc, 1, &first, err) < 0)
        return err->code;
    t->host = first * r->cs;
    rw->reftable[block] = t->host;
    return 0;
}

/* Rounds until no block differs from what is counted. */
static int move_blocks(struct round *r, struct qstill_error *err)
{
    bool again = true;

    while (again) {
        uint64_t blocks = div_up_u64(r->rw->alloc.end, r->per_block);

        if (blocks > r->capacity)
            return err_set(err, QSTILL_E_FAILED,
                           "%s: the refcount table was planned too small",
                           r->rw->target->path);
        blocks = max_u64(blocks, r->rw->stored.table_len);
        again = false;
        for (uint64_t i = 0; i < min_u64(blocks, r->capacity); i++) {
            if (r->moved[i] || !block_differs(r, i))
                continue;
            if (move_block(r, i, err) < 0)
                return err->code;
            again = true;
        }
    }
    return 0;
}

/* An emptied block may come to hold its own kind again: one that was found
 * empty and then got a cluster counted in it. */
static int revive_blocks(struct round *r, struct qstill_error *err)
{
    bool again = true;

    while (again) {
        again = false;
        for (uint64_t i = 0; i < r->capacity; i++) {
            if (!r->moved[i] || r->rw->reftable[i] || block_is_empty(r, i))
                continue;
            r->moved[i] = false;
            again = true;
        }
        if (again && move_blocks(r, err) < 0)
            return err->code;
    }
    return 0;
}

static int fill_blocks(struct round *r, struct qstill_error *err)
{
    struct rewrite *rw = r->rw;
    uint64_t max = qcow2_refcount_max(&rw->target->info.header);

    for (size_t k = 0; k < rw->refblocks.n; k++) {
        struct new_table *t = &rw->refblocks.v[k];

        for (uint64_t i = 0; i < r->per_block; i++) {
            uint64_t v = count_of(rw, t->index * r->per_block + i);

            if (v > max)
                return err_set(err, QSTILL_E_PRECONDITION,
                               "%s: a cluster would have more references than "
                               "its refcounts of %u bits can tell",
                               rw->target->path, 1u << r->order);
            refcount_set(t->bytes, r->order, i, v);
        }
    }
    return 0;
}

/* A table in one piece, large enough for itself and for all blocks, were they
 * all to move. */
static int place_reftable(struct round *r, struct qstill_error *err)
{
    struct rewrite *rw = r->rw;
    const struct qcow2_header *h = &rw->target->info.header;
    uint64_t per_cluster = r->cs / 8, table = 0, blocks, first;

    do {
        table++;
        blocks = div_up_u64(rw->alloc.end + table, r->per_block);
        /* the blocks' own clusters need blocks, at most one per 256 */
        blocks =
            div_up_u64(rw->alloc.end + table + 2 * blocks + 2, r->per_block);
    } while (table * per_cluster < blocks);
    if (table * r->cs > QCOW2_MAX_REFTABLE_BYTES)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "%s would need a refcount table of more than 8 MiB",
                       rw->target->path);
    if (alloc_tail(&rw->alloc, table, &first, err) < 0)
        return err->code;
    rw->reftable_offset = first * r->cs;
    rw->reftable_clusters = (uint32_t)table;
    r->capacity = table * per_cluster;
    rw->reftable = calloc(r->capacity, sizeof(*rw->reftable));
    r->moved = calloc(r->capacity, sizeof(*r->moved));
    if (!rw->reftable || !r->moved)
        return err_nomem(err);
    for (size_t i = 0; i < rw->stored.table_len && i < r->capacity; i++)
        rw->reftable[i] = rw->stored.table[i];
    /* blocks behind the end of the file count nothing that is left */
    for (size_t i = r->capacity; i < rw->stored.table_len; i++)
        if (rw->stored.table[i]) {
            alloc_unref(&rw->alloc, rw->stored.table[i] / r->cs, 1);
            if (runs_push(&rw->freed, rw->stored.table[i] / r->cs, 1) < 0)
                return err_nomem(err);
        }
    return runs_push(&rw->freed, h->reftable_offset / r->cs,
                     h->reftable_clusters) < 0
               ? err_nomem(err)
               : 0;
}

static void round_finip(struct round *r)
{
    free(r->moved);
}

int rewrite_refcounts(struct rewrite *rw, struct qstill_error *err)
{
    const struct qcow2_header *h = &rw->target->info.header;
    CLEANUP(round_finip)
    struct round r = {
        .rw = rw, .cs = rw->target->cluster_size, .order = h->refcount_order};
    size_t freed;

    r.per_block = r.cs * 8 >> r.order;
    for (freed = 0; freed < rw->freed.n; freed++)
        alloc_unref(&rw->alloc, rw->freed.v[freed].first,
                    rw->freed.v[freed].count);
    if (place_reftable(&r, err) < 0)
        return err->code;
    alloc_unref(&rw->alloc, h->reftable_offset / r.cs, h->reftable_clusters);
    if (move_blocks(&r, err) < 0 || revive_blocks(&r, err) < 0)
        return err->code;
    rw->end = rw->alloc.end * r.cs;
    return fill_blocks(&r, err);
}
