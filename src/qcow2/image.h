/* SPDX-License-Identifier: MIT */
/*
 * One open image file and, once loaded, the map of what it holds. Opening
 * checks the header; loading the map checks every table entry that the guest
 * can reach (QEMU finds such damage only at use): nothing lies outside the
 * file or over metadata.
 *
 * Never opened: what is no regular file or is a symbolic link. Not mapped
 * (PRECONDITION): encrypted images, external data files, foreign formats.
 */
#ifndef QSTILL_QCOW2_IMAGE_H
#define QSTILL_QCOW2_IMAGE_H

#include "base/aio.h"
#include "extent.h"
#include "info.h"
#include "lock.h"

/* 2^29 clusters are 32 TiB at 64 KiB; the arrays by cluster stay under 2 GiB
 * of address space, and under what is touched of it in memory. */
#define IMAGE_MAX_CLUSTERS (1ull << 29)

/* Pieces that an image, or a chain, may lie in. Packed they take some bytes
 * each, up to 1 GiB or so; what moves of them, 4 GiB at the very worst. 8 TiB
 * in clusters of 64 KiB, none of which goes on where the one before ends. */
#define IMAGE_MAX_EXTENTS (1u << 27)

struct image {
    const struct io *io;
    char *path;
    int fd;     /* for reading, through the page cache; holds the locks */
    int wfd;    /* for writing, or -1 */
    int direct; /* O_DIRECT, or -1; writable when wfd was there before */
    struct io_align align;
    struct qcow2_info info;
    uint64_t size;         /* virtual; foreign: more than any other has */
    uint64_t cluster_size; /* raw: 512, as nothing coarser is promised */
    uint64_t *l1;          /* entries as on disk, in host order */
    bool mapped;
    struct extents map;
};

int image_open(struct image **out, const struct io *io, const char *path,
               enum qcow2_format format, struct qstill_error *err);
/* Takes an open file over, on failure too; `path` is for names. */
int image_open_fd(struct image **out, const struct io *io, const char *path,
                  int fd, enum qcow2_format format, struct qstill_error *err);
void image_close(struct image *img);
void image_closep(struct image **img);

/* Opens img->wfd. BUSY when the path leads to another file by now. */
int image_open_write(struct image *img, struct qstill_error *err);

/* BUSY when the file, its length or its header is no longer what was opened:
 * asked under a lock about what was opened without one. What the header refers
 * to must not have been read before. */
int image_check_same(const struct image *img, struct qstill_error *err);

/* Opens the O_DIRECT twin when the cluster size and the file allow it. */
int image_open_direct(struct image *img, struct qstill_error *err);

/* Loads img->l1 (qcow2), with its entries checked. Idempotent. */
int image_load_l1(struct image *img, struct qstill_error *err);

/* Loads img->map; the extents have layer 0. Idempotent. */
int image_load_map(struct image *img, struct aio *aio,
                   struct qstill_error *err);

void image_forget_map(struct image *img);

/* PRECONDITION when x, of the image at `path`, is in too many pieces. */
int image_check_extents(const struct extents *x, const char *path,
                        struct qstill_error *err);

/* PRECONDITION when the image's guest data cannot be read by us. */
int image_check_readable(const struct image *img, struct qstill_error *err);

static inline bool image_is_qcow2(const struct image *img)
{
    return img->info.format == QCOW2_FORMAT_QCOW2;
}

static inline bool image_is_foreign(const struct image *img)
{
    return img->info.format == QCOW2_FORMAT_FOREIGN;
}

static inline uint64_t image_l2_entries(const struct image *img)
{
    return img->cluster_size / (qcow2_has_extl2(&img->info.header) ? 16 : 8);
}

/* The file in clusters, the last one perhaps cut off. */
static inline uint64_t image_clusters(const struct image *img)
{
    return img->info.file_size / img->cluster_size +
           (img->info.file_size % img->cluster_size != 0);
}

#endif
