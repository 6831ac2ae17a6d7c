/* SPDX-License-Identifier: MIT */
/*
 * Bitmaps in the target's file: those that are joined get new places, as all
 * else that changes, and the old ones are given up.
 */
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "rewrite_impl.h"

enum { ENTRY = 24 }; /* bytes of a directory entry before its name */

static int give_up(struct rewrite *rw, uint64_t off, uint64_t bytes,
                   struct qstill_error *err)
{
    uint64_t cs = rw->target->cluster_size;

    return bytes && runs_push(&rw->freed, off / cs, div_up_u64(bytes, cs)) < 0
               ? err_nomem(err)
               : 0;
}

static int give_up_old(struct rewrite *rw, struct qstill_error *err)
{
    CLEANUP(bitmaps_fini) struct bitmaps maps = {0};
    const struct image *t = rw->target;
    const struct qcow2_header *h = &t->info.header;

    if (!h->has_bitmaps)
        return 0;
    if (bitmaps_load(t, &maps, err) < 0 ||
        give_up(rw, h->bitmap_dir_offset, h->bitmap_dir_size, err) < 0)
        return err->code;
    for (size_t i = 0; i < maps.n; i++) {
        const struct bitmap *b = &maps.v[i];

        if (give_up(rw, b->table_offset, 8ull * b->table_entries, err) < 0)
            return err->code;
        for (size_t k = 0; k < b->table_entries; k++)
            if ((b->table[k] & BITMAP_OFFSET_MASK) &&
                give_up(rw, b->table[k] & BITMAP_OFFSET_MASK, t->cluster_size,
                        err) < 0)
                return err->code;
    }
    return 0;
}

/* Some bytes, in whole clusters behind the end. */
static int place(struct rewrite *rw, const uint8_t *bytes, size_t len,
                 uint64_t *off, struct qstill_error *err)
{
    size_t cs = (size_t)rw->target->cluster_size;
    uint64_t n = div_up_u64(len, cs), first;

    if (alloc_tail(&rw->alloc, n, &first, err) < 0)
        return err->code;
    *off = first * cs;
    for (uint64_t i = 0; i < n; i++) {
        struct new_table *t = new_tables_add(&rw->bitmaps, i, cs);

        if (!t)
            return err_nomem(err);
        t->host = (first + i) * cs;
        memcpy(t->bytes, bytes + i * cs, min_u64(cs, len - i * cs));
    }
    return 0;
}

static bool is_all(const uint8_t *p, size_t len, uint8_t value)
{
    return len == 0 || (p[0] == value && memcmp(p, p + 1, len - 1) == 0);
}

/* One table entry: the bits of a cluster, or what they all are. */
static int place_bits(struct rewrite *rw, const struct joined_bitmap *b,
                      uint64_t i, uint64_t *entry, struct qstill_error *err)
{
    uint64_t cs = rw->target->cluster_size;
    uint64_t bits = min_u64(b->bit_count - i * cs * 8, cs * 8);
    const uint8_t *p = b->bits + i * cs;
    size_t whole = (size_t)(bits / 8);
    uint8_t rest = (uint8_t)((1u << bits % 8) - 1);

    if (is_all(p, whole, 0) && (!rest || p[whole] == 0)) {
        *entry = 0;
        return 0;
    }
    if (is_all(p, whole, 0xff) && (!rest || p[whole] == rest)) {
        *entry = BITMAP_ALL_ONES;
        return 0;
    }
    return place(rw, p, (size_t)div_up_u64(bits, 8), entry, err);
}

static int place_one(struct rewrite *rw, const struct joined_bitmap *b,
                     struct buf *dir, struct qstill_error *err)
{
    uint64_t n = div_up_u64(b->bit_count, rw->target->cluster_size * 8);
    CLEANUP(freep) uint8_t *table = malloc((size_t)(8 * n + 1));
    size_t name = strlen(b->name), end = dir->len + ENTRY + name;
    uint64_t entry, off = 0;

    if (!table)
        return err_nomem(err);
    for (uint64_t i = 0; i < n; i++) {
        if (place_bits(rw, b, i, &entry, err) < 0)
            return err->code;
        put_be64(table + 8 * i, entry);
    }
    if (place(rw, table, (size_t)(8 * n), &off, err) < 0)
        return err->code;
    if (buf_append_be64(dir, off) || buf_append_be32(dir, (uint32_t)n) ||
        buf_append_be32(dir, b->flags) || buf_append_u8(dir, 1) ||
        buf_append_u8(dir, b->granularity_bits) ||
        buf_append_be16(dir, (uint16_t)name) || buf_append_be32(dir, 0) ||
        buf_append(dir, b->name, name) ||
        buf_append(dir, "\0\0\0\0\0\0\0", (8 - end % 8) % 8))
        return err_nomem(err);
    return 0;
}

int rewrite_place_bitmaps(struct rewrite *rw, struct qstill_error *err)
{
    const struct bitmap_join *j = rw->join;
    CLEANUP(buf_fini) struct buf dir = BUF_INIT;

    if (!j || !j->needed || (j->n == 0 && !rw->target->info.header.has_bitmaps))
        return 0;
    rw->tables = true;
    if (give_up_old(rw, err) < 0)
        return err->code;
    for (size_t i = 0; i < j->n; i++)
        if (place_one(rw, &j->v[i], &dir, err) < 0)
            return err->code;
    if (dir.len > QCOW2_MAX_BITMAP_DIR || j->n > QCOW2_MAX_BITMAPS)
        return err_set(err, QSTILL_E_PRECONDITION, "%s cannot hold %zu bitmaps",
                       rw->target->path, j->n);
    rw->bitmap_dir_size = dir.len;
    return dir.len ? place(rw, dir.data, dir.len, &rw->bitmap_dir_offset, err)
                   : 0;
}

void rewrite_bitmaps_header(const struct rewrite *rw, struct qcow2_header *h)
{
    const struct bitmap_join *j = rw->join;

    if (!j || !j->needed)
        return;
    h->has_bitmaps = j->n > 0;
    h->nb_bitmaps = (uint32_t)j->n;
    h->bitmap_dir_size = rw->bitmap_dir_size;
    h->bitmap_dir_offset = rw->bitmap_dir_offset;
    h->autoclear &= ~QCOW2_AUTOCLEAR_BITMAPS;
    if (j->n > 0)
        h->autoclear |= QCOW2_AUTOCLEAR_BITMAPS;
}
