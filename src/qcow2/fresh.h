/* SPDX-License-Identifier: MIT */
/*
 * The tables of a new image, in memory until all data has its place: version 3,
 * 16-bit refcounts, no backing file. In the file they stand behind the data:
 *
 *   header | data ... | L2 tables | L1 | refcount blocks | refcount table
 */
#ifndef QSTILL_QCOW2_FRESH_H
#define QSTILL_QCOW2_FRESH_H

#include "header.h"
#include "base/io.h"

struct fresh {
    struct qcow2_header h;
    uint64_t cs;
    uint8_t **l2; /* by L1 index, as on disk; NULL: nothing there */
    uint16_t *refs;
    uint64_t refs_n;
    uint64_t refs_cap;
};

/* PRECONDITION when clusters of that size cannot hold such a disk. */
int fresh_init(struct fresh *f, uint32_t cluster_bits, uint64_t size,
               uint8_t compression_type, struct qstill_error *err);
void fresh_fini(struct fresh *f);

/* One entry; `guest` is a cluster's. -1: out of memory. */
int fresh_map(struct fresh *f, uint64_t guest, uint64_t entry);
/* One more reference to a cluster of the file; -1: out of memory. The caller
 * sees to it that no cluster gets more than FRESH_REF_MAX. */
#define FRESH_REF_MAX 65535u
int fresh_ref(struct fresh *f, uint64_t cluster);
uint64_t fresh_refs(const struct fresh *f, uint64_t cluster);

/* Writes tables from `end` on (a multiple of the cluster size, behind all
 * data), then the header. Flushes nothing. */
int fresh_write(struct fresh *f, const struct io *io, int fd, const char *path,
                uint64_t end, struct qstill_error *err);

#endif
