/* SPDX-License-Identifier: MIT */
/*
 * The header cluster, as bytes and as a struct. No I/O. Parsing applies every
 * limit of layout.h that can be told from the header alone; emitting leaves
 * out the feature name table, which is decoration, so that the header and its
 * extensions fit one sector and can be replaced atomically.
 */
#ifndef QSTILL_QCOW2_HEADER_H
#define QSTILL_QCOW2_HEADER_H

#include <stdbool.h>

#include "base/buf.h"
#include "base/error.h"
#include "layout.h"

struct qcow2_header {
    uint32_t version;
    uint32_t cluster_bits;
    uint64_t size; /* as stored; guests see whole sectors of it */
    uint64_t backing_offset;
    uint32_t backing_len;
    uint32_t crypt_method;
    uint32_t l1_size;
    uint64_t l1_offset;
    uint64_t reftable_offset;
    uint32_t reftable_clusters;
    uint32_t nb_snapshots;
    uint64_t snapshots_offset;
    uint64_t incompatible; /* the last seven have v2's defaults in v2 */
    uint64_t compatible;
    uint64_t autoclear;
    uint32_t refcount_order;
    uint32_t header_length;
    uint8_t compression_type;

    bool has_backing;
    bool has_format;
    bool has_bitmaps;
    bool has_data_file_name;
    char data_file[QCOW2_MAX_BACKING_NAME + 1]; /* "": without, or too long */
    char backing[QCOW2_MAX_BACKING_NAME + 1];
    char backing_format[QCOW2_MAX_FORMAT_NAME + 1];
    bool keeps_backing; /* repoint.h: the name is still the one on disk */
    uint32_t nb_bitmaps;
    uint64_t bitmap_dir_size;
    uint64_t bitmap_dir_offset;

    struct buf extra; /* header bytes behind those we know, kept verbatim */
    struct buf other; /* other extensions, whole and padded, verbatim */
};

void qcow2_header_init(struct qcow2_header *h);
void qcow2_header_fini(struct qcow2_header *h);

/*
 * Parses the first `n` bytes of a file; n must be at least the cluster or the
 * file's size. CORRUPT: no qcow2, or a limit; PRECONDITION: an unknown
 * incompatible feature. `h` must be initialised.
 */
int qcow2_header_parse(struct qcow2_header *h, const uint8_t *raw, size_t n,
                       struct qstill_error *err);

/*
 * Appends the header and its extensions to `out`; has_backing, backing and the
 * formats count, backing_offset and _len are patched by the caller or by
 * qcow2_header_place().
 */
int qcow2_header_emit(const struct qcow2_header *h, struct buf *out,
                      struct qstill_error *err);

/*
 * Where the backing name goes: behind the `used` bytes of the first sector if
 * it fits there, else elsewhere in the cluster, away from [old_offset,
 * old_offset + old_len). 0: it fits nowhere.
 */
uint32_t qcow2_header_place(uint32_t cluster_size, uint32_t used, uint32_t len,
                            uint64_t old_offset, uint32_t old_len);

static inline uint64_t qcow2_cluster_size(const struct qcow2_header *h)
{
    return 1ull << h->cluster_bits;
}

static inline bool qcow2_has_extl2(const struct qcow2_header *h)
{
    return (h->incompatible & QCOW2_INCOMPAT_EXTL2) != 0;
}

/* What the guest sees: whole sectors. */
static inline uint64_t qcow2_virtual_size(const struct qcow2_header *h)
{
    return h->size & ~(uint64_t)(QCOW2_SECTOR - 1);
}

/* The highest refcount that fits. */
static inline uint64_t qcow2_refcount_max(const struct qcow2_header *h)
{
    return h->refcount_order == 6 ? UINT64_MAX
                                  : (1ull << (1u << h->refcount_order)) - 1;
}

/* Entries of the L1 table that `size` bytes of guest need. */
uint64_t qcow2_l1_needed(const struct qcow2_header *h, uint64_t size);

#endif
