/* SPDX-License-Identifier: MIT */
/*
 * New, small qcow2 files: an empty image or overlay, and the image that
 * carries a VM state into QEMU (snapshot-load). Both are version 3 with
 * 16-bit refcounts, made O_EXCL, and durable with their name when the call
 * returns 0; on failure no file is left. An existing name is BUSY.
 */
#ifndef QSTILL_QCOW2_CREATE_H
#define QSTILL_QCOW2_CREATE_H

#include <sys/types.h>

#include "base/error.h"
#include "base/io.h"

struct qcow2_create_options {
    uint64_t virtual_size;      /* whole sectors */
    const char *backing;        /* the name as stored, or NULL */
    const char *backing_format; /* required with a backing name */
    uint32_t cluster_bits;      /* 0: 16 (64 KiB) */
    uint64_t incompatible;      /* QCOW2_INCOMPAT_EXTL2 and _COMPRESSION */
    /* The file is 0600 until its owner is right. */
    mode_t mode; /* 0: 0600 */
    uid_t uid;   /* (uid_t)-1 and (gid_t)-1: those of this process */
    gid_t gid;
    int like; /* a file whose chattr +C it gets, or -1 */
};
#define QCOW2_CREATE_OPTIONS_INIT                                              \
    {                                                                          \
        0, 0, 0, 0, 0, 0, (uid_t)-1, (gid_t)-1, -1                             \
    }

/* `name` is relative to `dirfd` (AT_FDCWD is fine). */
int qcow2_create(const struct io *io, int dirfd, const char *name,
                 const struct qcow2_create_options *options,
                 struct qstill_error *err);

/* As qcow2_create(), and leaves the file open for reading and writing. The
 * name is not yet durable, the content is. */
int qcow2_create_open(const struct io *io, int dirfd, const char *name,
                      const struct qcow2_create_options *options, int *out,
                      struct qstill_error *err);

/* Writes the image into an empty file that is open for writing. */
int qcow2_create_fd(const struct io *io, int fd, const char *name,
                    const struct qcow2_create_options *options,
                    struct qstill_error *err);

/*
 * An image of one 64 KiB cluster with one internal snapshot `tag` (id "1",
 * no data clusters) whose VM state is the `len` bytes of `state`. QEMU's
 * snapshot-load changes the image: write it anew for each load. The first form
 * writes into an empty file (a memfd, say) that is open for writing.
 */
int qcow2_create_vmstate_fd(const struct io *io, int fd, const char *name,
                            const char *tag, const void *state, size_t len,
                            struct qstill_error *err);
int qcow2_create_vmstate(const struct io *io, int dirfd, const char *name,
                         const char *tag, const void *state, size_t len,
                         struct qstill_error *err);

#endif
