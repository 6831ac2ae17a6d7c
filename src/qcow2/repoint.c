/* SPDX-License-Identifier: MIT */
#include "repoint.h"

#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "info.h"

void qcow2_header_rename(struct qcow2_header *h, const char *backing,
                         const char *format)
{
    h->keeps_backing =
        h->has_backing && backing && strcmp(h->backing, backing) == 0;
    h->has_backing = h->has_format = backing != NULL;
    if (!h->keeps_backing)
        strcpy(h->backing, backing ? backing : "");
    strcpy(h->backing_format, backing ? format : "");
}

/* A name that does not change may stay where it is, on both sides of the end of
 * the first sector, too: the bytes are the same before and after. */
static bool may_stay(const struct qcow2_header *h, const struct buf *sector)
{
    return h->keeps_backing && h->backing_offset >= sector->len &&
           h->backing_offset + h->backing_len <= qcow2_cluster_size(h);
}

/* The new sector and where the name goes (0 when there is none). */
static int build(const struct qcow2_header *h, const char *name,
                 struct buf *sector, uint32_t *place, struct qstill_error *err)
{
    uint32_t len = h->has_backing ? (uint32_t)strlen(h->backing) : 0;

    if (qcow2_header_emit(h, sector, err) < 0)
        return err_wrap(err, "%s", name);
    if (sector->len > QCOW2_SECTOR)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "the header of %s has %zu bytes of extensions and "
                       "cannot be replaced in one sector",
                       name, sector->len);
    *place = len ? qcow2_header_place((uint32_t)qcow2_cluster_size(h),
                                      (uint32_t)sector->len, len,
                                      h->backing_offset, h->backing_len)
                 : 0;
    if (len && *place == 0 && may_stay(h, sector))
        *place = (uint32_t)h->backing_offset;
    if (len && *place == 0)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "no room for a backing file name of %u bytes in the "
                       "header of %s",
                       len, name);
    return 0;
}

int qcow2_header_replaceable(const struct qcow2_header *h, const char *name,
                             struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf sector = BUF_INIT;
    uint32_t place;

    return build(h, name, &sector, &place, err);
}

/* The bytes of the sector behind the new header stay what they are when the
 * name stands elsewhere; nothing reads them. */
int qcow2_header_replace(const struct io *io, int fd, const char *name,
                         struct qcow2_header *h, struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf sector = BUF_INIT;
    uint32_t place, len = h->has_backing ? (uint32_t)strlen(h->backing) : 0;

    if (build(h, name, &sector, &place, err) < 0)
        return err->code;
    if (buf_reserve(&sector, QCOW2_SECTOR) < 0)
        return err_nomem(err);
    memset(sector.data + sector.len, 0, QCOW2_SECTOR - sector.len);
    sector.len = QCOW2_SECTOR;
    put_be64(sector.data + QCOW2_AT_BACKING_OFFSET, place);
    put_be32(sector.data + QCOW2_AT_BACKING_LEN, len);
    if (h->keeps_backing && place == h->backing_offset) {
        if (place < QCOW2_SECTOR)
            memcpy(sector.data + place, h->backing,
                   min_u64(len, QCOW2_SECTOR - place));
    } else if (place >= QCOW2_SECTOR) {
        if (io_write_full(io, fd, h->backing, len, place, err) < 0 ||
            io_datasync(io, fd, name, err) < 0)
            return err_wrap(err, "%s: new backing file name", name);
    } else if (len > 0) {
        memcpy(sector.data + place, h->backing, len);
    }
    if (io_write_full(io, fd, sector.data, QCOW2_SECTOR, 0, err) < 0 ||
        io_datasync(io, fd, name, err) < 0)
        return err_wrap(err, "%s: header", name);
    h->backing_offset = place;
    h->backing_len = len;
    return 0;
}

/* The header as it stands, with another backing name. */
static int read_renamed(const struct io *io, int fd, const char *name,
                        const char *backing, const char *format,
                        struct qcow2_info *info, struct qstill_error *err)
{
    struct qcow2_header *h = &info->header;

    if (qcow2_info_read_fd(io, fd, QCOW2_FORMAT_QCOW2, info, err) < 0)
        return err_wrap(err, "%s", name);
    if (backing && (!format || strlen(format) > QCOW2_MAX_FORMAT_NAME ||
                    strlen(backing) > QCOW2_MAX_BACKING_NAME))
        return err_set(err, QSTILL_E_PRECONDITION,
                       "%s cannot name %s as its backing file", name, backing);
    qcow2_header_rename(h, backing, format);
    return 0;
}

int qcow2_repointable(const struct io *io, int fd, const char *name,
                      const char *backing, const char *format,
                      struct qstill_error *err)
{
    CLEANUP(qcow2_info_fini) struct qcow2_info info = {0};

    if (read_renamed(io, fd, name, backing, format, &info, err) < 0)
        return err->code;
    return qcow2_header_replaceable(&info.header, name, err);
}

int qcow2_repoint(const struct io *io, int fd, const char *name,
                  const char *backing, const char *format,
                  struct qstill_error *err)
{
    CLEANUP(qcow2_info_fini) struct qcow2_info info = {0};

    if (read_renamed(io, fd, name, backing, format, &info, err) < 0)
        return err->code;
    return qcow2_header_replace(io, fd, name, &info.header, err);
}
