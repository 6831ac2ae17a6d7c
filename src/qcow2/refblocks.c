/* SPDX-License-Identifier: MIT */
/* Refcounts as they are stored: blocks of small integers, and their table. */
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
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
    for (size_t i = 0; b->block && i < b->table_len; i++)
        free(b->block[i]);
    free(b->block);
    free(b->table);
    *b = (struct refblocks){0};
}

static int load_block(const struct image *img, struct refblocks *b, size_t i,
                      struct qstill_error *err)
{
    size_t got, len = (size_t)img->cluster_size;

    b->block[i] = malloc(len);
    if (!b->block[i])
        return err_nomem(err);
    if (io_read_upto(img->io, img->fd, b->block[i], len, b->table[i], &got,
                     err) < 0)
        return err_wrap(err, "%s: refcount block", img->path);
    memset(b->block[i] + got, 0, len - got);
    return 0;
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
    if (!b->table || !b->block)
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
        if (b->table[i] && load_block(img, b, i, err) < 0)
            return err->code;
    }
    return 0;
}

uint64_t refblocks_get(const struct refblocks *b, uint64_t cluster)
{
    unsigned shift = b->h->cluster_bits + 3 - b->h->refcount_order;
    uint64_t i = cluster >> shift;

    if (i >= b->table_len || !b->block[i])
        return 0;
    return refcount_get(b->block[i], b->h->refcount_order,
                        cluster & ((1ull << shift) - 1));
}
