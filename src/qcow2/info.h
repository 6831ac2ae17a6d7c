/* SPDX-License-Identifier: MIT */
/*
 * What one image file says about itself, without its tables. The format is
 * the caller's word, never guessed from the content: a guest can write a qcow2
 * header into its raw disk.
 */
#ifndef QSTILL_QCOW2_INFO_H
#define QSTILL_QCOW2_INFO_H

#include <sys/types.h>

#include "base/error.h"
#include "base/io.h"
#include "header.h"

enum qcow2_format {
    QCOW2_FORMAT_RAW,
    QCOW2_FORMAT_QCOW2,
    QCOW2_FORMAT_FOREIGN, /* vdi, vmdk, ...: only at the bottom of a chain that
                             was opened so (chain.h) */
};

/* "raw" and "qcow2"; anything else is PRECONDITION. */
int qcow2_format_parse(const char *name, enum qcow2_format *out,
                       struct qstill_error *err);
/* The same, but anything else is foreign. */
enum qcow2_format qcow2_format_any(const char *name);
/* Of those that are known. */
const char *qcow2_format_name(enum qcow2_format format);

struct qcow2_info {
    enum qcow2_format format;
    uint64_t virtual_size;
    uint64_t file_size;
    uint64_t allocated; /* bytes of disk blocks */
    dev_t dev;
    ino_t ino;
    uint64_t header_sum;  /* of the first 512 bytes (raw: 0): the one sector
                             in which a qcow2 file changes for good */
    uint64_t cluster_sum; /* of the header cluster, whole (raw: 0) */
    struct qcow2_header header; /* of qcow2 only, else zeros */
};

/* CORRUPT, PRECONDITION, NOT_FOUND, PERMISSION. */
int qcow2_info_read(const struct io *io, int dirfd, const char *path,
                    enum qcow2_format format, struct qcow2_info *out,
                    struct qstill_error *err);
/* The same of an open file. */
int qcow2_info_read_fd(const struct io *io, int fd, enum qcow2_format format,
                       struct qcow2_info *out, struct qstill_error *err);
void qcow2_info_fini(struct qcow2_info *info);

#endif
