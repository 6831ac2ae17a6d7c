/* SPDX-License-Identifier: MIT */
#include "header.h"

#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"

void qcow2_header_init(struct qcow2_header *h)
{
    memset(h, 0, sizeof(*h));
}

void qcow2_header_fini(struct qcow2_header *h)
{
    buf_fini(&h->extra);
    buf_fini(&h->other);
}

static int bad(struct qstill_error *err, const char *what)
{
    return err_set(err, QSTILL_E_CORRUPT, "qcow2 header: %s", what);
}

static void read_fields(struct qcow2_header *h, const uint8_t *p)
{
    h->version = get_be32(p + QCOW2_AT_VERSION);
    h->backing_offset = get_be64(p + QCOW2_AT_BACKING_OFFSET);
    h->backing_len = get_be32(p + QCOW2_AT_BACKING_LEN);
    h->cluster_bits = get_be32(p + QCOW2_AT_CLUSTER_BITS);
    h->size = get_be64(p + QCOW2_AT_SIZE);
    h->crypt_method = get_be32(p + QCOW2_AT_CRYPT);
    h->l1_size = get_be32(p + QCOW2_AT_L1_SIZE);
    h->l1_offset = get_be64(p + QCOW2_AT_L1_OFFSET);
    h->reftable_offset = get_be64(p + QCOW2_AT_REFTABLE_OFFSET);
    h->reftable_clusters = get_be32(p + QCOW2_AT_REFTABLE_CLUSTERS);
    h->nb_snapshots = get_be32(p + QCOW2_AT_NB_SNAPSHOTS);
    h->snapshots_offset = get_be64(p + QCOW2_AT_SNAPSHOTS_OFFSET);
    h->refcount_order = 4;
    h->header_length = QCOW2_V2_HEADER;
}

/* The fields that only version 3 has. */
static int read_v3_fields(struct qcow2_header *h, const uint8_t *p, size_t n,
                          struct qstill_error *err)
{
    if (n < QCOW2_V3_HEADER_MIN)
        return bad(err, "the file ends inside it");
    h->incompatible = get_be64(p + QCOW2_AT_INCOMPATIBLE);
    h->compatible = get_be64(p + QCOW2_AT_COMPATIBLE);
    h->autoclear = get_be64(p + QCOW2_AT_AUTOCLEAR);
    h->refcount_order = get_be32(p + QCOW2_AT_REFCOUNT_ORDER);
    h->header_length = get_be32(p + QCOW2_AT_HEADER_LENGTH);
    if (h->header_length < QCOW2_V3_HEADER_MIN || h->header_length % 8 != 0 ||
        h->header_length > qcow2_cluster_size(h) || h->header_length > n)
        return bad(err, "its stated length is not possible");
    if (h->header_length > QCOW2_AT_COMPRESSION_TYPE)
        h->compression_type = p[QCOW2_AT_COMPRESSION_TYPE];
    if (h->header_length > QCOW2_V3_HEADER &&
        buf_append(&h->extra, p + QCOW2_V3_HEADER,
                   h->header_length - QCOW2_V3_HEADER) < 0)
        return err_nomem(err);
    return 0;
}

uint64_t qcow2_l1_needed(const struct qcow2_header *h, uint64_t size)
{
    unsigned entry_bits = qcow2_has_extl2(h) ? 4 : 3;
    unsigned shift = h->cluster_bits + (h->cluster_bits - entry_bits);

    return (size >> shift) + ((size & ((1ull << shift) - 1)) != 0);
}

static int check_features(const struct qcow2_header *h,
                          struct qstill_error *err)
{
    bool compression_bit = (h->incompatible & QCOW2_INCOMPAT_COMPRESSION) != 0;

    if (h->incompatible & ~QCOW2_INCOMPAT_KNOWN) {
        err_set(err, QSTILL_E_PRECONDITION,
                "the image uses incompatible features that are not known here "
                "(bits 0x%llx)",
                (unsigned long long)(h->incompatible & ~QCOW2_INCOMPAT_KNOWN));
        return err_hint(err, "a newer QEMU wrote it; use its qemu-img");
    }
    if (h->compression_type > QCOW2_COMPRESSION_ZSTD)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "the image's compression type %u is not known here",
                       h->compression_type);
    if (compression_bit != (h->compression_type != QCOW2_COMPRESSION_ZLIB))
        return bad(err, "compression type and its feature bit disagree");
    if (qcow2_has_extl2(h) && h->cluster_bits < QCOW2_MIN_EXTL2_BITS)
        return bad(err, "clusters are too small for extended L2 entries");
    if (h->refcount_order > QCOW2_MAX_REFCOUNT_ORDER)
        return bad(err, "refcounts wider than 64 bits");
    if (h->crypt_method > 2)
        return bad(err, "unknown encryption method");
    return 0;
}

/* A table inside a file of at most INT64_MAX bytes, at a cluster boundary. */
static bool table_fits(const struct qcow2_header *h, uint64_t offset,
                       uint64_t bytes)
{
    return offset % qcow2_cluster_size(h) == 0 && offset <= INT64_MAX &&
           bytes <= INT64_MAX - offset;
}

static int check_tables(const struct qcow2_header *h, struct qstill_error *err)
{
    uint64_t reftable = (uint64_t)h->reftable_clusters << h->cluster_bits;

    if (h->size > INT64_MAX)
        return bad(err, "the virtual size is not possible");
    if (reftable == 0)
        return bad(err, "no refcount table");
    if (reftable > QCOW2_MAX_REFTABLE_BYTES)
        return bad(err, "the refcount table is larger than 8 MiB");
    if (!table_fits(h, h->reftable_offset, reftable) || !h->reftable_offset)
        return bad(err, "the refcount table's offset is not possible");
    if (h->nb_snapshots > QCOW2_MAX_SNAPSHOTS)
        return bad(err, "more than 65536 internal snapshots");
    if (!table_fits(h, h->snapshots_offset, 40ull * h->nb_snapshots))
        return bad(err, "the snapshot table's offset is not possible");
    if (8ull * h->l1_size > QCOW2_MAX_L1_BYTES)
        return bad(err, "the L1 table is larger than 32 MiB");
    if (!table_fits(h, h->l1_offset, 8ull * h->l1_size))
        return bad(err, "the L1 table's offset is not possible");
    if (h->l1_size < qcow2_l1_needed(h, h->size))
        return bad(err, "the L1 table is too small for the virtual size");
    return 0;
}

static int read_bitmaps_ext(struct qcow2_header *h, const uint8_t *p,
                            uint32_t len, struct qstill_error *err)
{
    if (len != 24)
        return bad(err, "the bitmaps extension has a wrong length");
    h->nb_bitmaps = get_be32(p);
    h->bitmap_dir_size = get_be64(p + 8);
    h->bitmap_dir_offset = get_be64(p + 16);
    /* without the autoclear bit QEMU drops the extension unread */
    if (!(h->autoclear & QCOW2_AUTOCLEAR_BITMAPS))
        return 0;
    if (get_be32(p + 4) != 0 || h->nb_bitmaps == 0 ||
        h->nb_bitmaps > QCOW2_MAX_BITMAPS || h->bitmap_dir_size == 0 ||
        h->bitmap_dir_size > QCOW2_MAX_BITMAP_DIR ||
        !table_fits(h, h->bitmap_dir_offset, h->bitmap_dir_size) ||
        h->bitmap_dir_offset == 0)
        return bad(err, "the bitmaps extension holds impossible values");
    h->has_bitmaps = true;
    return 0;
}

static int read_extension(struct qcow2_header *h, uint32_t type,
                          const uint8_t *p, uint32_t len,
                          struct qstill_error *err)
{
    switch (type) {
    case QCOW2_EXT_BACKING_FORMAT:
        if (len > QCOW2_MAX_FORMAT_NAME || memchr(p, 0, len))
            return bad(err, "the backing format's name is not possible");
        memcpy(h->backing_format, p, len);
        h->backing_format[len] = '\0';
        h->has_format = len > 0;
        return 0;
    case QCOW2_EXT_FEATURES:
        return 0;
    case QCOW2_EXT_BITMAPS:
        return read_bitmaps_ext(h, p, len, err);
    case QCOW2_EXT_DATA_FILE:
        h->has_data_file_name = true;
        if (len <= QCOW2_MAX_BACKING_NAME && !memchr(p, 0, len)) {
            memcpy(h->data_file, p, len);
            h->data_file[len] = '\0';
        }
        return 0;
    case QCOW2_EXT_CRYPTO:
        if (len != 16 || h->crypt_method != 2)
            return bad(err, "the encryption extension is not possible");
        break;
    default:
        break;
    }
    if (buf_append_be32(&h->other, type) < 0 ||
        buf_append_be32(&h->other, len) < 0 ||
        buf_append(&h->other, p, len) < 0 ||
        buf_append(&h->other, "\0\0\0\0\0\0\0", (8 - len % 8) % 8) < 0)
        return err_nomem(err);
    return 0;
}

/* `end`: the backing name's offset, or the end of the cluster. */
static int read_extensions(struct qcow2_header *h, const uint8_t *raw,
                           uint64_t end, struct qstill_error *err)
{
    uint64_t at = h->header_length;

    while (at < end) {
        uint32_t type, len;

        if (end - at < 8)
            return bad(err, "an extension is cut off");
        type = get_be32(raw + at);
        len = get_be32(raw + at + 4);
        at += 8;
        if (len > end - at) /* QEMU asks that of the end mark, too */
            return bad(err, "an extension is too large");
        if (type == QCOW2_EXT_END)
            return 0;
        if (read_extension(h, type, raw + at, len, err) < 0)
            return err->code;
        at += round_up_u64(len, 8);
    }
    return 0;
}

static int read_backing(struct qcow2_header *h, const uint8_t *raw, size_t n,
                        struct qstill_error *err)
{
    uint64_t cluster = qcow2_cluster_size(h);

    if (h->backing_offset == 0)
        return 0;
    if (h->backing_offset > cluster || h->backing_offset < h->header_length ||
        h->backing_len > QCOW2_MAX_BACKING_NAME ||
        h->backing_len > cluster - h->backing_offset)
        return bad(err, "the backing file's name is not where it can be");
    if (h->backing_offset + h->backing_len > n)
        return bad(err, "the file ends inside the backing file's name");
    if (memchr(raw + h->backing_offset, 0, h->backing_len))
        return bad(err, "the backing file's name holds a NUL byte");
    memcpy(h->backing, raw + h->backing_offset, h->backing_len);
    h->backing[h->backing_len] = '\0';
    h->has_backing = h->backing_len > 0;
    return 0;
}

int qcow2_header_parse(struct qcow2_header *h, const uint8_t *raw, size_t n,
                       struct qstill_error *err)
{
    uint64_t end;

    if (n < 4 || get_be32(raw + QCOW2_AT_MAGIC) != QCOW2_MAGIC)
        return err_set(err, QSTILL_E_CORRUPT, "not a qcow2 image");
    if (n < QCOW2_V2_HEADER)
        return bad(err, "the file ends inside it");
    read_fields(h, raw);
    if (h->version != 2 && h->version != 3)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "qcow2 version %u is not known here", h->version);
    if (h->cluster_bits < QCOW2_MIN_CLUSTER_BITS ||
        h->cluster_bits > QCOW2_MAX_CLUSTER_BITS)
        return bad(err, "the cluster size is not possible");
    if (h->version == 3 && read_v3_fields(h, raw, n, err) < 0)
        return err->code;
    if (check_features(h, err) < 0 || check_tables(h, err) < 0 ||
        read_backing(h, raw, n, err) < 0)
        return err->code;
    end = h->backing_offset ? h->backing_offset : qcow2_cluster_size(h);
    if (read_extensions(h, raw, min_u64(end, n), err) < 0)
        return err->code;
    if ((h->incompatible & QCOW2_INCOMPAT_DATA_FILE) == 0 &&
        (h->autoclear & QCOW2_AUTOCLEAR_RAW_DATA) != 0)
        return bad(err, "raw external data without an external data file");
    return 0;
}

static int put_fields(const struct qcow2_header *h, struct buf *out)
{
    return buf_append_be32(out, QCOW2_MAGIC) ||
           buf_append_be32(out, h->version) ||
           buf_append_be64(out, h->backing_offset) ||
           buf_append_be32(out, h->backing_len) ||
           buf_append_be32(out, h->cluster_bits) ||
           buf_append_be64(out, h->size) ||
           buf_append_be32(out, h->crypt_method) ||
           buf_append_be32(out, h->l1_size) ||
           buf_append_be64(out, h->l1_offset) ||
           buf_append_be64(out, h->reftable_offset) ||
           buf_append_be32(out, h->reftable_clusters) ||
           buf_append_be32(out, h->nb_snapshots) ||
           buf_append_be64(out, h->snapshots_offset);
}

#define AUTOCLEAR_KEPT (QCOW2_AUTOCLEAR_BITMAPS | QCOW2_AUTOCLEAR_TORN)

/* Autoclear bits that we do not know are cleared by whoever writes. */
static int put_v3_fields(const struct qcow2_header *h, struct buf *out)
{
    uint32_t length =
        h->header_length < QCOW2_V3_HEADER ? QCOW2_V3_HEADER : h->header_length;

    return buf_append_be64(out, h->incompatible) ||
           buf_append_be64(out, h->compatible) ||
           buf_append_be64(out, h->autoclear & AUTOCLEAR_KEPT) ||
           buf_append_be32(out, h->refcount_order) ||
           buf_append_be32(out, length) ||
           buf_append_u8(out, h->compression_type) ||
           buf_append(out, "\0\0\0\0\0\0", 7) ||
           buf_append(out, h->extra.data, h->extra.len);
}

static int put_extensions(const struct qcow2_header *h, struct buf *out)
{
    size_t n = strlen(h->backing_format);

    if (h->has_backing && h->has_format &&
        (buf_append_be32(out, QCOW2_EXT_BACKING_FORMAT) ||
         buf_append_be32(out, (uint32_t)n) ||
         buf_append(out, h->backing_format, n) ||
         buf_append(out, "\0\0\0\0\0\0\0", (8 - n % 8) % 8)))
        return -1;
    if (h->has_bitmaps &&
        (buf_append_be32(out, QCOW2_EXT_BITMAPS) || buf_append_be32(out, 24) ||
         buf_append_be32(out, h->nb_bitmaps) || buf_append_be32(out, 0) ||
         buf_append_be64(out, h->bitmap_dir_size) ||
         buf_append_be64(out, h->bitmap_dir_offset)))
        return -1;
    return buf_append(out, h->other.data, h->other.len) ||
           buf_append_be64(out, 0); /* the end mark */
}

int qcow2_header_emit(const struct qcow2_header *h, struct buf *out,
                      struct qstill_error *err)
{
    if (h->has_data_file_name)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "headers that name an external data file are not "
                       "rewritten");
    if (put_fields(h, out) || (h->version == 3 && put_v3_fields(h, out)) ||
        put_extensions(h, out))
        return err_nomem(err);
    return 0;
}

uint32_t qcow2_header_place(uint32_t cluster_size, uint32_t used, uint32_t len,
                            uint64_t old_offset, uint32_t old_len)
{
    static const uint32_t places[] = {4096, 8192, 512, 1536, 2048};

    if (used + len <= QCOW2_SECTOR)
        return used;
    for (size_t i = 0; i < ARRAY_LEN(places); i++) {
        uint32_t at = places[i];

        if (at + len <= cluster_size &&
            (at >= old_offset + old_len || at + len <= old_offset))
            return at;
    }
    return 0;
}
