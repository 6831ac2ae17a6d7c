/* SPDX-License-Identifier: MIT */
#include "image.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/bytes.h"
#include "base/checked.h"

/* Nobody here knows: whatever falls through may show something of it. */
#define FOREIGN_SIZE (1ull << 62)

void image_close(struct image *img)
{
    if (!img)
        return;
    extents_fini(&img->map);
    qcow2_info_fini(&img->info);
    closep(&img->direct);
    closep(&img->wfd);
    closep(&img->fd);
    free(img->l1);
    free(img->path);
    free(img);
}

void image_closep(struct image **img)
{
    image_close(*img);
}

/* No QEMU opens it as what its overlay says that it is. */
static int check_foreign(const struct image *img, struct qstill_error *err)
{
    uint8_t magic[4] = {0};
    size_t n;

    if (io_read_upto(img->io, img->fd, magic, sizeof(magic), 0, &n, err) < 0)
        return err->code;
    if (get_be32(magic) != QCOW2_MAGIC)
        return 0;
    return err_set(err, QSTILL_E_PRECONDITION,
                   "%s is a qcow2 image, and another format is named for it",
                   img->path);
}

static int setup(struct image *img, enum qcow2_format format,
                 struct qstill_error *err)
{
    if (qcow2_info_read_fd(img->io, img->fd, format, &img->info, err) < 0)
        return err_wrap(err, "%s", img->path);
    if (format == QCOW2_FORMAT_FOREIGN && check_foreign(img, err) < 0)
        return err->code;
    img->size =
        format == QCOW2_FORMAT_FOREIGN ? FOREIGN_SIZE : img->info.virtual_size;
    img->cluster_size = format == QCOW2_FORMAT_QCOW2
                            ? qcow2_cluster_size(&img->info.header)
                            : QCOW2_SECTOR;
    if (format == QCOW2_FORMAT_QCOW2 &&
        image_clusters(img) > IMAGE_MAX_CLUSTERS)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "%s has %llu clusters, more than the %llu that are "
                       "handled here",
                       img->path, (unsigned long long)image_clusters(img),
                       IMAGE_MAX_CLUSTERS);
    return 0;
}

int image_open_fd(struct image **out, const struct io *io, const char *path,
                  int fd, enum qcow2_format format, struct qstill_error *err)
{
    CLEANUP(closep) int mine = fd;
    CLEANUP(image_closep) struct image *img = calloc(1, sizeof(*img));

    if (!img)
        return err_nomem(err);
    img->io = io;
    img->fd = take_fd(&mine);
    img->wfd = img->direct = -1;
    img->path = strdup(path);
    if (!img->path)
        return err_nomem(err);
    if (setup(img, format, err) < 0)
        return err->code;
    *out = take_ptr(&img);
    return 0;
}

int image_open(struct image **out, const struct io *io, const char *path,
               enum qcow2_format format, struct qstill_error *err)
{
    int fd;

    if (io_openat(io, AT_FDCWD, path, O_RDONLY, 0, &fd, err) < 0)
        return err->code;
    return image_open_fd(out, io, path, fd, format, err);
}

int image_open_write(struct image *img, struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;
    struct stat st;

    if (img->wfd >= 0)
        return 0;
    if (io_openat(img->io, AT_FDCWD, img->path, O_RDWR, 0, &fd, err) < 0)
        return err->code;
    if (fstat(fd, &st) < 0)
        return err_errno(err, errno, "cannot stat %s", img->path);
    if (st.st_dev != img->info.dev || st.st_ino != img->info.ino)
        return err_set(err, QSTILL_E_BUSY,
                       "%s was replaced by another file meanwhile", img->path);
    img->wfd = take_fd(&fd);
    closep(&img->direct); /* was for reading */
    img->direct = -1;
    return 0;
}

int image_check_same(const struct image *img, struct qstill_error *err)
{
    CLEANUP(qcow2_info_fini) struct qcow2_info now = {0};
    const struct qcow2_info *was = &img->info;
    struct stat st;

    if (qcow2_info_read_fd(img->io, img->fd, was->format, &now, err) < 0)
        return err_wrap(err, "%s", img->path);
    if (now.file_size == was->file_size &&
        now.cluster_sum == was->cluster_sum && stat(img->path, &st) == 0 &&
        st.st_dev == was->dev && st.st_ino == was->ino)
        return 0;
    err_set(err, QSTILL_E_BUSY, "%s was changed by another process meanwhile",
            img->path);
    return err_hint(err, "nothing was done yet: try again");
}

/* Smaller clusters are not worth the trouble: every block of the filesystem
 * would be read and written several times. */
int image_open_direct(struct image *img, struct qstill_error *err)
{
    if (img->direct >= 0 || !io_is_real(img->io) ||
        (image_is_qcow2(img) && img->cluster_size < 4096))
        return 0;
    return io_open_direct(img->wfd >= 0 ? img->wfd : img->fd, 4096,
                          &img->direct, &img->align, err);
}

int image_check_readable(const struct image *img, struct qstill_error *err)
{
    const struct qcow2_header *h = &img->info.header;

    if (image_is_foreign(img))
        return err_set(err, QSTILL_E_PRECONDITION,
                       "%s has a format that is not known here (qcow2 and raw "
                       "are)",
                       img->path);
    if (!image_is_qcow2(img))
        return 0;
    if (h->crypt_method != 0) {
        err_set(err, QSTILL_E_PRECONDITION, "%s is encrypted", img->path);
        return err_hint(err, "qemu-img convert can decrypt it");
    }
    if (h->incompatible & QCOW2_INCOMPAT_DATA_FILE)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "%s keeps its data in an external data file", img->path);
    return 0;
}

static int check_l1_entry(const struct image *img, uint64_t i, uint64_t v,
                          struct qstill_error *err)
{
    uint64_t off = v & QCOW2_L1_OFFSET_MASK;
    const char *why = NULL;

    if (v & QCOW2_L1_RESERVED_MASK)
        why = "has reserved bits set";
    else if (off % img->cluster_size != 0)
        why = "is not aligned";
    else if (off >= img->info.file_size)
        why = "lies outside the file";
    if (!why || v == 0)
        return 0;
    return err_set(err, QSTILL_E_CORRUPT, "%s: L1 entry %llu %s", img->path,
                   (unsigned long long)i, why);
}

int image_load_l1(struct image *img, struct qstill_error *err)
{
    const struct qcow2_header *h = &img->info.header;
    CLEANUP(freep) uint64_t *l1 = NULL;
    size_t bytes = 8 * (size_t)h->l1_size;

    if (img->l1 || !image_is_qcow2(img))
        return 0;
    l1 = malloc(bytes ? bytes : 8);
    if (!l1)
        return err_nomem(err);
    if (io_read_full(img->io, img->fd, l1, bytes, h->l1_offset, err) < 0)
        return err_wrap(err, "%s: L1 table", img->path);
    for (size_t i = 0; i < h->l1_size; i++) {
        l1[i] = get_be64((const uint8_t *)&l1[i]);
        if (check_l1_entry(img, i, l1[i], err) < 0)
            return err->code;
    }
    img->l1 = take_ptr(&l1);
    return 0;
}
