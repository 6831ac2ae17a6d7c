/* SPDX-License-Identifier: MIT */
/* Refcounts as they are stored: blocks of small integers, and their table. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "claims.h"
#include "refs.h"

uint64_t refcount_get(const uint8_t *block, unsigned order, uint64_t i)
{
    switch (order) {
    case 3:
        return block[i];
    case 4:
        return get_be16(block + 2 * i);
    case 5:
        return get_be32(block + 4 * i);
    case 6:
        return get_be64(block + 8 * i);
    default: {
        unsigned bits = 1u << order, per_byte = 8 / bits;

        return block[i / per_byte] >> (i % per_byte * bits) &
               ((1u << bits) - 1);
    }
    }
}

void refcount_set(uint8_t *block, unsigned order, uint64_t i, uint64_t v)
{
    switch (order) {
    case 3:
        block[i] = (uint8_t)v;
        return;
    case 4:
        put_be16(block + 2 * i, (uint16_t)v);
        return;
    case 5:
        put_be32(block + 4 * i, (uint32_t)v);
        return;
    case 6:
        put_be64(block + 8 * i, v);
        return;
    default: {
        unsigned bits = 1u << order, per_byte = 8 / bits;
        unsigned shift = (unsigned)(i % per_byte) * bits;
        unsigned mask = ((1u << bits) - 1) << shift;

        block[i / per_byte] = (uint8_t)((block[i / per_byte] & ~mask) |
                                        ((unsigned)v << shift & mask));
        return;
    }
    }
}

void refblocks_fini(struct refblocks *b)
{
    for (size_t i = 0; i < b->owned_count; i++)
        free(b->owned[i]);
    free(b->owned);
    free(b->block);
    free(b->table);
    *b = (struct refblocks){0};
}

static bool is_hole(const struct image *img, uint64_t off)
{
    off_t data = lseek(img->fd, (off_t)off, SEEK_DATA);

    return data < 0 ? errno == ENXIO
                    : (uint64_t)data >= off + img->cluster_size;
}

static int load_block(const struct image *img, struct refblocks *b, size_t i,
                      struct qstill_error *err)
{
    size_t got, len = (size_t)img->cluster_size;
    CLEANUP(freep) uint8_t *block = NULL;

    if (is_hole(img, b->table[i]))
        return 0;
    block = malloc(len);
    if (!block)
        return err_nomem(err);
    if (io_read_upto(img->io, img->fd, block, len, b->table[i], &got, err) < 0)
        return err_wrap(err, "%s: refcount block", img->path);
    if (bytes_are_zero(block, got))
        return 0;
    memset(block + got, 0, len - got);
    b->block[i] = block;
    b->owned[b->owned_count++] = take_ptr(&block);
    return 0;
}

struct entry {
    uint64_t offset;
    size_t i;
};

static int compare_entries(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;

    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    return (x->i > y->i) - (x->i < y->i);
}

/* Entries that name the block of an earlier one get what that has. */
static int find_twins(struct refblocks *b, struct qstill_error *err)
{
    CLEANUP(freep) struct entry *v = calloc(b->table_len, sizeof(*v));
    size_t n = 0;

    if (!v)
        return err_nomem(err);
    for (size_t i = 0; i < b->table_len; i++)
        if (b->table[i])
            v[n++] = (struct entry){b->table[i], i};
    qsort(v, n, sizeof(*v), compare_entries);
    for (size_t i = 1; i < n; i++)
        if (v[i].offset == v[i - 1].offset)
            b->block[v[i].i] = b->block[v[i - 1].i];
    return 0;
}

static int load_blocks(const struct image *img, struct refblocks *b,
                       struct qstill_error *err)
{
    CLEANUP(claims_fini) struct claims seen = {0};
    bool twins = false;

    if (claims_init(&seen, image_clusters(img)) < 0)
        return err_nomem(err);
    for (size_t i = 0; i < b->table_len; i++) {
        if (!b->table[i])
            continue;
        if (!claims_take(&seen, b->table[i] / img->cluster_size))
            twins = true;
        else if (load_block(img, b, i, err) < 0)
            return err->code;
    }
    return twins ? find_twins(b, err) : 0;
}

int refblocks_load(const struct image *img, struct refblocks *b,
                   struct refs_report *report, struct qstill_error *err)
{
    const struct qcow2_header *h = &img->info.header;
    size_t bytes = (size_t)h->reftable_clusters << h->cluster_bits, got;

    b->h = h;
    b->table_len = bytes / 8;
    b->table = malloc(bytes);
    b->block = calloc(b->table_len, sizeof(*b->block));
    b->owned = calloc(b->table_len, sizeof(*b->owned));
    if (!b->table || !b->block || !b->owned)
        return err_nomem(err);
    if (io_read_upto(img->io, img->fd, b->table, bytes, h->reftable_offset,
                     &got, err) < 0)
        return err_wrap(err, "%s: refcount table", img->path);
    memset((uint8_t *)b->table + got, 0, bytes - got);
    for (size_t i = 0; i < b->table_len; i++) {
        uint64_t v = get_be64((const uint8_t *)&b->table[i]);

        b->table[i] = v & QCOW2_REFTABLE_MASK;
        if (v & ~QCOW2_REFTABLE_MASK) {
            report->corruptions++;
            refs_say(report, "refcount table entry %zu has reserved bits set",
                     i);
        }
        if (b->table[i] % img->cluster_size ||
            (b->table[i] && b->table[i] >= img->info.file_size)) {
            report->corruptions++;
            refs_say(report, "refcount block %zu lies outside the file", i);
            b->table[i] = 0;
        }
    }
    return load_blocks(img, b, err);
}

/* Of the number of clusters in a block. */
static unsigned block_shift(const struct refblocks *b)
{
    return b->h->cluster_bits + 3 - b->h->refcount_order;
}

uint64_t refblocks_seek(const struct refblocks *b, uint64_t cluster)
{
    uint64_t i = cluster >> block_shift(b);

    if (i < b->table_len && b->block[i])
        return cluster;
    for (i++; i < b->table_len; i++)
        if (b->block[i])
            return i << block_shift(b);
    return UINT64_MAX;
}

uint64_t refblocks_get(const struct refblocks *b, uint64_t cluster)
{
    unsigned shift = block_shift(b);
    uint64_t i = cluster >> shift;

    if (i >= b->table_len || !b->block[i])
        return 0;
    return refcount_get(b->block[i], b->h->refcount_order,
                        cluster & ((1ull << shift) - 1));
}
