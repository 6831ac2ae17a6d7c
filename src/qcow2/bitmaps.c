/* SPDX-License-Identifier: MIT */
#include "bitmaps.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"

/* QEMU's limit of the clusters of one bitmap; its table then has at most 2^20
 * entries. */
#define MAX_BITMAP_BYTES (512ull << 20)
/* Ours, of all tables of an image: they are held in memory at once. At 64 KiB
 * clusters that is over a thousand of the largest bitmaps. */
#define MAX_TABLES_BYTES (64ull << 20)
#define MAX_NAME         1023u

enum { FIXED = 24 };

void bitmaps_fini(struct bitmaps *b)
{
    for (size_t i = 0; i < b->n; i++) {
        free(b->v[i].name);
        free(b->v[i].extra);
        free(b->v[i].table);
    }
    free(b->v);
    *b = (struct bitmaps){0};
}

static int bad(const struct image *img, const char *why,
               struct qstill_error *err)
{
    return err_set(err, QSTILL_E_CORRUPT, "%s: bitmap directory: %s", img->path,
                   why);
}

static int parse_one(const struct image *img, const uint8_t *p, size_t left,
                     struct bitmap *b, size_t *used, struct qstill_error *err)
{
    size_t name, extra;

    if (left < FIXED)
        return bad(img, "an entry is cut off", err);
    b->table_offset = get_be64(p);
    b->table_entries = get_be32(p + 8);
    b->flags = get_be32(p + 12);
    b->type = p[16];
    b->granularity_bits = p[17];
    name = get_be16(p + 18);
    extra = get_be32(p + 20);
    if (extra > left - FIXED || name > left - FIXED - extra)
        return bad(img, "an entry is cut off", err);
    if (name == 0 || name > MAX_NAME || b->type != 1 ||
        b->flags & ~BITMAP_KNOWN_FLAGS ||
        b->granularity_bits < BITMAP_MIN_GRANULARITY ||
        b->granularity_bits > BITMAP_MAX_GRANULARITY ||
        memchr(p + FIXED + extra, 0, name) ||
        b->table_entries * img->cluster_size > MAX_BITMAP_BYTES ||
        b->table_offset % img->cluster_size || b->table_offset == 0)
        return bad(img, "an entry holds impossible values", err);
    b->extra_len = (uint32_t)extra;
    b->extra = malloc(extra + 1);
    b->name = strndup((const char *)p + FIXED + extra, name);
    if (!b->extra || !b->name)
        return err_nomem(err);
    memcpy(b->extra, p + FIXED, extra);
    *used = (size_t)round_up_u64(FIXED + extra + name, 8);
    return 0;
}

static int load_table(const struct image *img, struct bitmap *b,
                      struct qstill_error *err)
{
    size_t bytes = 8 * (size_t)b->table_entries;

    b->table = malloc(bytes + 1);
    if (!b->table)
        return err_nomem(err);
    if (io_read_full(img->io, img->fd, b->table, bytes, b->table_offset, err) <
        0)
        return err_wrap(err, "%s: table of bitmap %s", img->path, b->name);
    for (size_t i = 0; i < b->table_entries; i++) {
        b->table[i] = get_be64((const uint8_t *)&b->table[i]);
        if (b->table[i] & BITMAP_RESERVED ||
            (b->table[i] & BITMAP_OFFSET_MASK) % img->cluster_size ||
            ((b->table[i] & BITMAP_OFFSET_MASK) && (b->table[i] & 1)))
            return bad(img, "a table entry holds impossible values", err);
    }
    return 0;
}

int bitmaps_load(const struct image *img, struct bitmaps *out,
                 struct qstill_error *err)
{
    const struct qcow2_header *h = &img->info.header;
    CLEANUP(freep) uint8_t *dir = NULL;
    uint64_t tables = 0;
    size_t at = 0;

    if (!image_is_qcow2(img) || !h->has_bitmaps)
        return 0;
    dir = malloc(h->bitmap_dir_size);
    out->v = calloc(h->nb_bitmaps, sizeof(*out->v));
    if (!dir || !out->v)
        return err_nomem(err);
    if (io_read_full(img->io, img->fd, dir, h->bitmap_dir_size,
                     h->bitmap_dir_offset, err) < 0)
        return err_wrap(err, "%s: bitmap directory", img->path);
    while (out->n < h->nb_bitmaps) {
        struct bitmap *b = &out->v[out->n++];
        size_t used = 0;

        if (parse_one(img, dir + at, h->bitmap_dir_size - at, b, &used, err) <
            0)
            return err->code;
        tables += 8 * (uint64_t)b->table_entries;
        if (tables > MAX_TABLES_BYTES)
            return bad(img, "its tables are larger than all of them can be",
                       err);
        if (load_table(img, b, err) < 0)
            return err->code;
        at = min_u64(at + used, h->bitmap_dir_size);
    }
    return at == h->bitmap_dir_size
               ? 0
               : bad(img, "it is longer than its entries", err);
}
