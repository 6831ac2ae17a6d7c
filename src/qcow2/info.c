/* SPDX-License-Identifier: MIT */
#include "info.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/sum.h"

int qcow2_format_parse(const char *name, enum qcow2_format *out,
                       struct qstill_error *err)
{
    if (strcmp(name, "qcow2") == 0)
        *out = QCOW2_FORMAT_QCOW2;
    else if (strcmp(name, "raw") == 0)
        *out = QCOW2_FORMAT_RAW;
    else
        return err_set(err, QSTILL_E_PRECONDITION,
                       "image format \"%s\" is not known here (qcow2 and raw "
                       "are)",
                       name);
    return 0;
}

enum qcow2_format qcow2_format_any(const char *name)
{
    struct qstill_error ignored = {0};
    enum qcow2_format format = QCOW2_FORMAT_FOREIGN;

    return qcow2_format_parse(name, &format, &ignored) < 0
               ? QCOW2_FORMAT_FOREIGN
               : format;
}

const char *qcow2_format_name(enum qcow2_format format)
{
    return format == QCOW2_FORMAT_QCOW2 ? "qcow2" : "raw";
}

void qcow2_info_fini(struct qcow2_info *info)
{
    qcow2_header_fini(&info->header);
}

/* The header cluster: its size stands in its first bytes. */
static int read_header(const struct io *io, int fd, struct qcow2_info *info,
                       struct qstill_error *err)
{
    CLEANUP(freep) uint8_t *raw = NULL;
    uint8_t start[QCOW2_SECTOR] = {0};
    uint32_t bits = QCOW2_MIN_CLUSTER_BITS;
    size_t n;

    if (io_read_upto(io, fd, start, sizeof(start), 0, &n, err) < 0)
        return err->code;
    if (n >= QCOW2_V2_HEADER)
        bits = get_be32(start + QCOW2_AT_CLUSTER_BITS);
    if (bits < QCOW2_MIN_CLUSTER_BITS || bits > QCOW2_MAX_CLUSTER_BITS)
        bits = QCOW2_MIN_CLUSTER_BITS; /* the parser will say so */
    raw = malloc((size_t)1 << bits);
    if (!raw)
        return err_nomem(err);
    if (io_read_upto(io, fd, raw, (size_t)1 << bits, 0, &n, err) < 0)
        return err->code;
    info->header_sum = sum_bytes(start, sizeof(start), 0);
    info->cluster_sum = sum_bytes(raw, n, 0);
    return qcow2_header_parse(&info->header, raw, n, err);
}

int qcow2_info_read_fd(const struct io *io, int fd, enum qcow2_format format,
                       struct qcow2_info *out, struct qstill_error *err)
{
    struct qcow2_info info = {.format = format};
    struct stat st;

    if (fstat(fd, &st) < 0)
        return err_errno(err, errno, "cannot stat the image");
    info.file_size = (uint64_t)st.st_size;
    info.allocated = (uint64_t)st.st_blocks * 512;
    info.dev = st.st_dev;
    info.ino = st.st_ino;
    /* QEMU shows a raw image in whole sectors, rounded up */
    info.virtual_size = round_up_u64(info.file_size, QCOW2_SECTOR);
    if (format == QCOW2_FORMAT_QCOW2) {
        if (read_header(io, fd, &info, err) < 0) {
            qcow2_info_fini(&info);
            return err->code;
        }
        info.virtual_size = qcow2_virtual_size(&info.header);
    }
    *out = info;
    return 0;
}

int qcow2_info_read(const struct io *io, int dirfd, const char *path,
                    enum qcow2_format format, struct qcow2_info *out,
                    struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;

    if (io_openat(io, dirfd, path, O_RDONLY, 0, &fd, err) < 0)
        return err->code;
    if (qcow2_info_read_fd(io, fd, format, out, err) < 0)
        return err_wrap(err, "%s", path);
    return 0;
}
