/* SPDX-License-Identifier: MIT */
/*
 * From tables to extents: the tables are forgotten once they are extents. For
 * raw files the filesystem is asked for data and holes, once.
 */
#include "image.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "claims.h"
#include "l2.h"
#include "l2walk.h"

struct loader {
    struct image *img;
    const struct qcow2_header *h;
    struct claims claims;
};

static void loader_finip(struct loader *l)
{
    claims_fini(&l->claims);
}

static int corrupt(const struct loader *l, uint64_t guest, const char *why,
                   struct qstill_error *err)
{
    return err_set(err, QSTILL_E_CORRUPT, "%s: at guest offset %llu %s",
                   l->img->path, (unsigned long long)guest, why);
}

int image_check_extents(const struct extents *x, const char *path,
                        struct qstill_error *err)
{
    if (x->n <= IMAGE_MAX_EXTENTS)
        return 0;
    err_set(err, QSTILL_E_PRECONDITION,
            "what %s holds lies in more than %u pieces", path,
            IMAGE_MAX_EXTENTS);
    return err_hint(err, "qemu-img convert makes an image in fewer of it");
}

/* ---------------------------------------------------------------- metadata */

static int claim_table(struct loader *l, const char *what, uint64_t off,
                       uint64_t bytes, struct qstill_error *err)
{
    uint64_t cs = l->img->cluster_size;

    for (uint64_t c = off / cs; c < div_up_u64(off + bytes, cs); c++)
        if (!claims_take(&l->claims, c))
            return err_set(err, QSTILL_E_CORRUPT,
                           "%s: the %s lies outside the file or over other "
                           "metadata",
                           l->img->path, what);
    return 0;
}

static int claim_refblocks(struct loader *l, struct qstill_error *err)
{
    size_t bytes = (size_t)l->h->reftable_clusters << l->h->cluster_bits, got;
    CLEANUP(freep) uint8_t *table = malloc(bytes);

    if (!table)
        return err_nomem(err);
    if (io_read_upto(l->img->io, l->img->fd, table, bytes,
                     l->h->reftable_offset, &got, err) < 0)
        return err_wrap(err, "%s: refcount table", l->img->path);
    for (size_t i = 0; i + 8 <= got; i += 8) {
        uint64_t off = get_be64(table + i) & QCOW2_REFTABLE_MASK;

        if (off % l->img->cluster_size)
            return err_set(err, QSTILL_E_CORRUPT,
                           "%s: a refcount block is not aligned", l->img->path);
        if (off && claim_table(l, "refcount block", off, l->img->cluster_size,
                               err) < 0)
            return err->code;
    }
    return 0;
}

static int claim_metadata(struct loader *l, struct qstill_error *err)
{
    const struct qcow2_header *h = l->h;
    uint64_t cs = l->img->cluster_size;

    if (claim_table(l, "header", 0, 1, err) < 0 ||
        claim_table(l, "refcount table", h->reftable_offset,
                    h->reftable_clusters * cs, err) < 0 ||
        claim_table(l, "L1 table", h->l1_offset, 8ull * h->l1_size, err) < 0 ||
        claim_table(l, "snapshot table", h->snapshots_offset,
                    h->nb_snapshots ? 1 : 0, err) < 0 ||
        claim_refblocks(l, err) < 0)
        return err->code;
    if (h->has_bitmaps &&
        claim_table(l, "bitmap directory", h->bitmap_dir_offset,
                    h->bitmap_dir_size, err) < 0)
        return err->code;
    /* also those past the virtual size, which hold a VM's state */
    for (size_t i = 0; i < h->l1_size; i++) {
        uint64_t off = l->img->l1[i] & QCOW2_L1_OFFSET_MASK;

        if (off && claim_table(l, "L2 table", off, cs, err) < 0)
            return err->code;
    }
    return 0;
}

/* -------------------------------------------------------------- L2 entries */

static int check_cluster(struct loader *l, uint64_t guest, uint64_t host,
                         struct qstill_error *err)
{
    if (claims_is_free(&l->claims, host / l->img->cluster_size))
        return 0;
    return corrupt(l, guest, "a cluster lies outside the file or over metadata",
                   err);
}

static int check_compressed(struct loader *l, uint64_t guest,
                            const struct l2_entry *e, struct qstill_error *err)
{
    uint64_t cs = l->img->cluster_size;
    /* the stated length is an upper bound that may reach past the end */
    uint64_t end = min_u64(e->host + e->clen, l->img->info.file_size);

    if (e->host >= end)
        return corrupt(l, guest, "compressed data lies outside the file", err);
    for (uint64_t c = e->host / cs; c <= (end - 1) / cs; c++)
        if (!claims_is_free(&l->claims, c))
            return corrupt(l, guest, "compressed data lies over metadata", err);
    return 0;
}

static int push(struct loader *l, enum extent_kind kind, uint64_t guest,
                uint64_t len, uint64_t host, uint32_t clen,
                struct qstill_error *err)
{
    struct extent e = {.guest = guest,
                       .len = min_u64(len, l->img->size - guest),
                       .host = host,
                       .kind = kind,
                       .clen = clen};

    return extents_push(&l->img->map, &e) < 0
               ? err_nomem(err)
               : image_check_extents(&l->img->map, l->img->path, err);
}

/* The subclusters of one entry, those of the same state together. */
static int add_subclusters(struct loader *l, uint64_t guest,
                           const struct l2_entry *e, struct qstill_error *err)
{
    uint64_t sub = l->img->cluster_size / QCOW2_SUBCLUSTERS;

    for (unsigned i = 0; i < QCOW2_SUBCLUSTERS; i++) {
        uint64_t at = guest + i * sub, host = e->host + i * sub;
        enum extent_kind kind = EXTENT_OWNED;

        if (at >= l->img->size)
            break;
        if (e->has & 1u << i)
            kind = EXTENT_DATA;
        else if (e->zeros & 1u << i)
            kind = e->host ? EXTENT_ZERO_OWNED : EXTENT_ZERO;
        else if (!e->host)
            continue;
        if (push(l, kind, at, sub, kind == EXTENT_ZERO ? 0 : host, 0, err) < 0)
            return err->code;
    }
    return 0;
}

static int add_entry(struct loader *l, uint64_t guest, const struct l2_entry *e,
                     struct qstill_error *err)
{
    uint64_t cs = l->img->cluster_size;

    if (e->kind == L2_BAD)
        return corrupt(l, guest, e->why, err);
    if (e->kind != L2_COMPRESSED && e->host &&
        check_cluster(l, guest, e->host, err) < 0)
        return err->code;
    switch (e->kind) {
    case L2_DATA:
        return push(l, EXTENT_DATA, guest, cs, e->host, 0, err);
    case L2_ZERO:
        return push(l, EXTENT_ZERO, guest, cs, 0, 0, err);
    case L2_ZERO_OWNED:
        return push(l, EXTENT_ZERO_OWNED, guest, cs, e->host, 0, err);
    case L2_COMPRESSED:
        if (check_compressed(l, guest, e, err) < 0)
            return err->code;
        return push(l, EXTENT_COMPRESSED, guest, cs, e->host, e->clen, err);
    case L2_MIXED:
        return add_subclusters(l, guest, e, err);
    default:
        return 0;
    }
}

static int add_entries(void *user, uint64_t l1_index, size_t from,
                       const uint8_t *entries, size_t len,
                       struct qstill_error *err)
{
    struct loader *l = user;
    uint64_t cs = l->img->cluster_size;
    bool extended = qcow2_has_extl2(l->h);
    size_t step = extended ? 16 : 8;
    uint64_t guest = (l1_index * image_l2_entries(l->img) + from / step) * cs;

    for (size_t i = 0; i < len && guest < l->img->size;
         i += step, guest += cs) {
        uint64_t v = get_be64(entries + i);
        struct l2_entry e;

        if (extended)
            e = l2_decode_ext(l->h, v, get_be64(entries + i + 8));
        else if (v == 0)
            continue;
        else
            e = l2_decode(l->h, v);
        if (e.kind != L2_NONE && add_entry(l, guest, &e, err) < 0)
            return err->code;
    }
    return 0;
}

static int load_qcow2(struct image *img, struct aio *aio,
                      struct qstill_error *err)
{
    CLEANUP(loader_finip)
    struct loader l = {.img = img, .h = &img->info.header};
    struct l2walk walk = {.img = img, .aio = aio, .visit = add_entries};

    if (image_load_l1(img, err) < 0)
        return err->code;
    if (claims_init(&l.claims, image_clusters(img)) < 0)
        return err_nomem(err);
    if (claim_metadata(&l, err) < 0)
        return err->code;
    walk.l1 = img->l1;
    walk.l1_size = qcow2_l1_needed(l.h, img->size);
    walk.user = &l;
    return l2walk(&walk, err);
}

/* --------------------------------------------------------------------- raw */

static int push_raw(struct image *img, enum extent_kind kind, uint64_t from,
                    uint64_t to, struct qstill_error *err)
{
    struct extent e = {.guest = from, .len = to - from, .kind = kind};

    if (from >= to)
        return 0;
    if (kind == EXTENT_DATA)
        e.host = from;
    return extents_push(&img->map, &e) < 0
               ? err_nomem(err)
               : image_check_extents(&img->map, img->path, err);
}

/* Data in whole sectors. A filesystem that cannot tell holes has only data. */
static int load_raw(struct image *img, struct qstill_error *err)
{
    uint64_t pos = 0;

    while (pos < img->size) {
        off_t data = lseek(img->fd, (off_t)pos, SEEK_DATA), hole;
        uint64_t from, to;

        if (data < 0 && errno == ENXIO)
            break;
        hole = data < 0 ? (off_t)img->size : lseek(img->fd, data, SEEK_HOLE);
        from = data < 0 ? pos : round_down_u64((uint64_t)data, QCOW2_SECTOR);
        to = hole < 0 ? img->size : round_up_u64((uint64_t)hole, QCOW2_SECTOR);
        from = max_u64(from, pos);
        to = min_u64(to, img->size);
        if (to <= from) /* an answer that makes no sense: all may be data */
            return push_raw(img, EXTENT_DATA, pos, img->size, err);
        if (push_raw(img, EXTENT_ZERO, pos, from, err) < 0 ||
            push_raw(img, EXTENT_DATA, from, to, err) < 0)
            return err->code;
        pos = to;
    }
    return push_raw(img, EXTENT_ZERO, pos, img->size, err);
}

int image_load_map(struct image *img, struct aio *aio, struct qstill_error *err)
{
    int r;

    if (img->mapped)
        return 0;
    if (image_check_readable(img, err) < 0)
        return err->code;
    r = image_is_qcow2(img) ? load_qcow2(img, aio, err) : load_raw(img, err);
    if (r < 0) {
        extents_fini(&img->map);
        return r;
    }
    img->mapped = true;
    return 0;
}

void image_forget_map(struct image *img)
{
    extents_fini(&img->map);
    img->mapped = false;
}
