/* SPDX-License-Identifier: MIT */
/* The public functions on images that only read: info, map, check. */
#include "image.h"

#include <fcntl.h>
#include <string.h>

#include "base/arena.h"
#include "base/bytes.h"
#include "qcow2/bitmaps.h"
#include "qcow2/check.h"
#include "qcow2/luks.h"
#include "qcow2/snaps.h"
#include "qcow2/status.h"

int image_format_of(const char *path, const char *format,
                    enum qcow2_format *out, struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;
    uint8_t magic[4] = {0};
    size_t got;

    if (format)
        return qcow2_format_parse(format, out, err);
    if (io_openat(io_real(), AT_FDCWD, path, O_RDONLY, 0, &fd, err) < 0 ||
        io_read_upto(io_real(), fd, magic, sizeof(magic), 0, &got, err) < 0)
        return err->code;
    *out =
        get_be32(magic) == QCOW2_MAGIC ? QCOW2_FORMAT_QCOW2 : QCOW2_FORMAT_RAW;
    return 0;
}

/* -------------------------------------------------------------------- info */

struct info {
    struct qstill_image_info pub; /* first: the caller frees by it */
    struct arena arena;
};

static void info_free(struct info *info)
{
    if (!info)
        return;
    arena_fini(&info->arena);
    free(info);
}

static void info_freep(struct info **info)
{
    info_free(*info);
}

static int fill_header(struct info *info, const struct image *img,
                       struct qstill_error *err)
{
    const struct qcow2_header *h = &img->info.header;
    struct qstill_image_info *p = &info->pub;

    p->version = h->version;
    p->cluster_size = qcow2_cluster_size(h);
    p->refcount_bits = 1u << h->refcount_order;
    p->compression =
        h->compression_type == QCOW2_COMPRESSION_ZSTD ? "zstd" : "zlib";
    p->dirty = (h->incompatible & QCOW2_INCOMPAT_DIRTY) != 0;
    p->corrupt = (h->incompatible & QCOW2_INCOMPAT_CORRUPT) != 0;
    p->lazy_refcounts = (h->compatible & QCOW2_COMPAT_LAZY) != 0;
    p->extended_l2 = qcow2_has_extl2(h);
    p->encrypted = h->crypt_method != 0;
    p->encryption = h->crypt_method == 0   ? NULL
                    : h->crypt_method == 1 ? "aes"
                                           : "luks";
    p->external_data = (h->incompatible & QCOW2_INCOMPAT_DATA_FILE) != 0;
    p->data_file_raw =
        p->external_data && (h->autoclear & QCOW2_AUTOCLEAR_RAW_DATA);
    if (p->external_data && h->data_file[0] &&
        !(p->data_file = arena_strdup(&info->arena, h->data_file)))
        return err_nomem(err);
    if (h->has_backing &&
        !(p->backing = arena_strdup(&info->arena, h->backing)))
        return err_nomem(err);
    if (h->has_format &&
        !(p->backing_format = arena_strdup(&info->arena, h->backing_format)))
        return err_nomem(err);
    return 0;
}

/* A name that we refuse is no error here: it is shown as it stands. */
static int fill_backing_path(struct info *info, struct qstill_error *err)
{
    CLEANUP(freep) char *path = NULL;

    if (!info->pub.backing ||
        chain_resolve(info->pub.path, info->pub.backing, &path, err) < 0)
        return 0;
    info->pub.backing_path = arena_strdup(&info->arena, path);
    return info->pub.backing_path ? 0 : err_nomem(err);
}

static int fill_snapshots(struct info *info, const struct image *img,
                          struct qstill_error *err)
{
    CLEANUP(snaps_fini) struct snaps snaps = {0};
    struct qstill_image_snapshot *v;

    if (snaps_load(img, &snaps, err) < 0)
        return err->code;
    v = arena_array(&info->arena, snaps.n + 1, sizeof(*v));
    if (!v)
        return err_nomem(err);
    for (size_t i = 0; i < snaps.n; i++) {
        const struct snap *s = &snaps.v[i];

        v[i] = (struct qstill_image_snapshot){
            .id = arena_strdup(&info->arena, s->id),
            .name = arena_strdup(&info->arena, s->name),
            .vm_state_size = s->vm_state_size,
            .disk_size = s->disk_size,
            .date_sec = s->date_sec,
            .date_nsec = s->date_nsec,
            .vm_clock_ns = s->vm_clock_ns,
            .icount = s->icount};
        if (!v[i].id || !v[i].name)
            return err_nomem(err);
    }
    info->pub.snapshots = v;
    info->pub.snapshot_count = snaps.n;
    return 0;
}

static int fill_bitmaps(struct info *info, const struct image *img,
                        struct qstill_error *err)
{
    CLEANUP(bitmaps_fini) struct bitmaps maps = {0};
    struct qstill_image_bitmap *v;

    if (bitmaps_load(img, &maps, err) < 0)
        return err->code;
    v = arena_array(&info->arena, maps.n + 1, sizeof(*v));
    if (!v)
        return err_nomem(err);
    for (size_t i = 0; i < maps.n; i++) {
        const struct bitmap *b = &maps.v[i];

        v[i] = (struct qstill_image_bitmap){
            .name = arena_strdup(&info->arena, b->name),
            .granularity = 1ull << b->granularity_bits,
            .in_use = (b->flags & BITMAP_IN_USE) != 0,
            .enabled = (b->flags & BITMAP_AUTO) != 0};
        if (!v[i].name)
            return err_nomem(err);
    }
    info->pub.bitmaps = v;
    info->pub.bitmap_count = maps.n;
    return 0;
}

static int fill_luks(struct info *info, const struct image *img,
                     struct qstill_error *err)
{
    struct qstill_image_luks_slot *slots;
    struct qstill_image_luks *v;
    struct luks l;
    bool found;

    if (luks_read(img, &found, &l, err) < 0)
        return err->code;
    if (!found)
        return 0;
    v = arena_array(&info->arena, 1, sizeof(*v));
    slots = arena_array(&info->arena, LUKS_SLOTS, sizeof(*slots));
    if (!v || !slots)
        return err_nomem(err);
    for (size_t i = 0; i < LUKS_SLOTS; i++)
        slots[i] =
            (struct qstill_image_luks_slot){.active = l.slots[i].active,
                                            .key_offset = l.slots[i].key_offset,
                                            .iters = l.slots[i].iters,
                                            .stripes = l.slots[i].stripes};
    *v = (struct qstill_image_luks){.cipher_alg = l.cipher,
                                    .cipher_mode = l.mode,
                                    .ivgen_alg = l.ivgen,
                                    .ivgen_hash_alg = l.ivgen_hash,
                                    .hash_alg = l.hash,
                                    .uuid = arena_strdup(&info->arena, l.uuid),
                                    .payload_offset = l.payload_offset,
                                    .master_key_iters = l.master_key_iters,
                                    .slot_count = LUKS_SLOTS,
                                    .slots = slots};
    info->pub.luks = v;
    return v->uuid ? 0 : err_nomem(err);
}

static int fill(struct info *info, const struct image *img,
                struct qstill_error *err)
{
    struct qstill_image_info *p = &info->pub;

    p->path = arena_strdup(&info->arena, img->path);
    if (!p->path)
        return err_nomem(err);
    p->format = qcow2_format_name(img->info.format);
    p->virtual_size = img->info.virtual_size;
    p->file_size = img->info.file_size;
    p->actual_size = img->info.allocated;
    if (!image_is_qcow2(img))
        return 0;
    if (fill_header(info, img, err) < 0 || fill_backing_path(info, err) < 0 ||
        fill_snapshots(info, img, err) < 0 ||
        fill_bitmaps(info, img, err) < 0 || fill_luks(info, img, err) < 0)
        return err->code;
    return 0;
}

QSTILL_PUBLIC
int qstill_image_info(const char *path, const char *format,
                      struct qstill_image_info **out,
                      struct qstill_error *caller)
{
    struct qstill_error scratch, *err = err_door(caller, &scratch);
    CLEANUP(image_closep) struct image *img = NULL;
    CLEANUP(info_freep) struct info *info = NULL;
    enum qcow2_format f;

    if (image_format_of(path, format, &f, err) < 0 ||
        image_open(&img, io_real(), path, f, err) < 0)
        return err->code;
    info = calloc(1, sizeof(*info));
    if (!info)
        return err_nomem(err);
    if (fill(info, img, err) < 0)
        return err->code;
    *out = &take_ptr(&info)->pub;
    *err = (struct qstill_error){0};
    return 0;
}

QSTILL_PUBLIC
void qstill_image_info_free(struct qstill_image_info *info)
{
    info_free((struct info *)info);
}

/* --------------------------------------------------------------------- map */

struct teller {
    qstill_image_extent_fn *fn;
    void *user;
    int stopped; /* the callback's number */
};

static int tell(void *user, const struct block_status *s)
{
    struct teller *t = user;
    struct qstill_image_extent e = {.start = s->start,
                                    .length = s->length,
                                    .depth = s->depth,
                                    .present = s->present,
                                    .zero = s->zero,
                                    .data = s->data,
                                    .compressed = s->compressed,
                                    .has_offset = s->has_offset,
                                    .offset = s->offset};

    t->stopped = t->fn(t->user, &e);
    return t->stopped;
}

QSTILL_PUBLIC
int qstill_image_map(const char *path, const char *format,
                     qstill_image_extent_fn *fn, void *user,
                     struct qstill_error *caller)
{
    struct qstill_error scratch, *err = err_door(caller, &scratch);
    CLEANUP(chain_closep) struct chain *c = NULL;
    struct teller t = {fn, user, 0};
    enum qcow2_format f;

    if (image_format_of(path, format, &f, err) < 0 ||
        chain_open(&c, io_real(), path, f, CHAIN_LOCKED, err) < 0)
        return err->code;
    return block_status(c, tell, &t, err);
}

/* ------------------------------------------------------------------- check */

struct check {
    struct qstill_image_check pub;
    struct refs_report report;
};

static void check_free(struct check *check)
{
    if (!check)
        return;
    refs_report_fini(&check->report);
    free(check);
}

static void check_freep(struct check **check)
{
    check_free(*check);
}

QSTILL_PUBLIC
int qstill_image_check(const char *path, const char *format,
                       struct qstill_image_check **out,
                       struct qstill_error *caller)
{
    struct qstill_error scratch, *err = err_door(caller, &scratch);
    CLEANUP(check_freep) struct check *check = calloc(1, sizeof(*check));
    CLEANUP(image_closep) struct image *img = NULL;
    struct refs_report *r;
    enum qcow2_format f;

    if (!check)
        return err_nomem(err);
    r = &check->report;
    if (image_format_of(path, format, &f, err) < 0 ||
        image_open(&img, io_real(), path, f, err) < 0 ||
        image_lock(img->fd, path, IMAGE_LOCK_READ, err) < 0 ||
        image_check_same(img, err) < 0 || /* it was read before the lock */
        qcow2_check(img, r, err) < 0)
        return err->code;
    check->pub = (struct qstill_image_check){
        .image_end_offset = r->end,
        .total_clusters = img->size / img->cluster_size +
                          (img->size % img->cluster_size != 0),
        .allocated_clusters = r->allocated,
        .fragmented_clusters = r->fragmented,
        .compressed_clusters = r->compressed,
        .corruptions = r->corruptions,
        .leaks = r->leaks,
        .message_count = r->message_count,
        .messages = (const char *const *)r->messages};
    *out = &take_ptr(&check)->pub;
    return 0;
}

QSTILL_PUBLIC
void qstill_image_check_free(struct qstill_image_check *check)
{
    check_free((struct check *)check);
}
