/* SPDX-License-Identifier: MIT */
/*
 * What a qcow2 file looks like, all integers big endian:
 *
 *   cluster 0      header | extensions | backing file's name
 *   reftable       u64[]: where the refcount blocks are, 0 = all counts 0
 *   refblock       counts of 1 << order bits, one cluster each
 *   L1             u64[]: where the L2 tables are, 0 = nothing allocated
 *   L2             one cluster of entries of 8 bytes (16 with extended L2)
 *   data           clusters, or compressed bytes at any offset
 *
 * L2 entry:  63 COPIED | 62 compressed | 61..56 0 | 55..9 host | 8..1 0 | 0
 * zero extended:  a second u64: 63..32 subcluster reads as zero, 31..0 has data
 * compressed: 61..x sectors beyond the first | x-1..0 host byte offset
 */
#ifndef QSTILL_QCOW2_LAYOUT_H
#define QSTILL_QCOW2_LAYOUT_H

#include <stdint.h>

#define QCOW2_MAGIC 0x514649fbu

/* offsets of header fields */
enum qcow2_field {
    QCOW2_AT_MAGIC = 0,
    QCOW2_AT_VERSION = 4,
    QCOW2_AT_BACKING_OFFSET = 8,
    QCOW2_AT_BACKING_LEN = 16,
    QCOW2_AT_CLUSTER_BITS = 20,
    QCOW2_AT_SIZE = 24,
    QCOW2_AT_CRYPT = 32,
    QCOW2_AT_L1_SIZE = 36,
    QCOW2_AT_L1_OFFSET = 40,
    QCOW2_AT_REFTABLE_OFFSET = 48,
    QCOW2_AT_REFTABLE_CLUSTERS = 56,
    QCOW2_AT_NB_SNAPSHOTS = 60,
    QCOW2_AT_SNAPSHOTS_OFFSET = 64,
    QCOW2_V2_HEADER = 72,
    QCOW2_AT_INCOMPATIBLE = 72,
    QCOW2_AT_COMPATIBLE = 80,
    QCOW2_AT_AUTOCLEAR = 88,
    QCOW2_AT_REFCOUNT_ORDER = 96,
    QCOW2_AT_HEADER_LENGTH = 100,
    QCOW2_V3_HEADER_MIN = 104,
    QCOW2_AT_COMPRESSION_TYPE = 104,
    QCOW2_V3_HEADER = 112,
};

#define QCOW2_INCOMPAT_DIRTY       (1ull << 0)
#define QCOW2_INCOMPAT_CORRUPT     (1ull << 1)
#define QCOW2_INCOMPAT_DATA_FILE   (1ull << 2)
#define QCOW2_INCOMPAT_COMPRESSION (1ull << 3)
#define QCOW2_INCOMPAT_EXTL2       (1ull << 4)
#define QCOW2_INCOMPAT_KNOWN       0x1full
#define QCOW2_COMPAT_LAZY          (1ull << 0)
#define QCOW2_AUTOCLEAR_BITMAPS    (1ull << 0)
#define QCOW2_AUTOCLEAR_RAW_DATA   (1ull << 1)
/* Ours, beside the corrupt bit: see torn.h. */
#define QCOW2_AUTOCLEAR_TORN (1ull << 63)

#define QCOW2_EXT_END            0x00000000u
#define QCOW2_EXT_BACKING_FORMAT 0xe2792acau
#define QCOW2_EXT_FEATURES       0x6803f857u
#define QCOW2_EXT_BITMAPS        0x23852875u
#define QCOW2_EXT_CRYPTO         0x0537be77u
#define QCOW2_EXT_DATA_FILE      0x44415441u

#define QCOW2_COMPRESSION_ZLIB 0
#define QCOW2_COMPRESSION_ZSTD 1

#define QCOW2_L1_OFFSET_MASK   0x00fffffffffffe00ull
#define QCOW2_L1_RESERVED_MASK 0x7f000000000001ffull
#define QCOW2_L2_OFFSET_MASK   0x00fffffffffffe00ull
#define QCOW2_L2_RESERVED_MASK 0x3f000000000001feull
#define QCOW2_COPIED           (1ull << 63)
#define QCOW2_COMPRESSED       (1ull << 62)
#define QCOW2_ZERO             (1ull << 0)
#define QCOW2_REFTABLE_MASK    0xfffffffffffffe00ull
#define QCOW2_SUBCLUSTERS      32u

/* Limits, those of QEMU unless said otherwise. */
#define QCOW2_MIN_CLUSTER_BITS   9u
#define QCOW2_MAX_CLUSTER_BITS   21u
#define QCOW2_MIN_EXTL2_BITS     14u /* a subcluster is 512 bytes at least */
#define QCOW2_MAX_REFCOUNT_ORDER 6u
#define QCOW2_MAX_L1_BYTES       (32u << 20)
#define QCOW2_MAX_REFTABLE_BYTES (8u << 20)
#define QCOW2_MAX_SNAPSHOTS      65536u
#define QCOW2_MAX_SNAPSHOT_BYTES (64u << 20)
#define QCOW2_MAX_SNAPSHOT_EXTRA 1024u
#define QCOW2_MAX_BITMAPS        65535u
#define QCOW2_MAX_BITMAP_DIR     (1024ull * QCOW2_MAX_BITMAPS)
#define QCOW2_MAX_BACKING_NAME   1023u
#define QCOW2_MAX_FORMAT_NAME    15u

/* The one unit that a power cut leaves either old or new. */
#define QCOW2_SECTOR 512u

#endif
