/* SPDX-License-Identifier: MIT */
/* Files by fd: whole reads and writes, no symbolic links, close-on-exec. */
#ifndef QSTILL_BASE_FILE_H
#define QSTILL_BASE_FILE_H

#include <dirent.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "buf.h"
#include "error.h"

/* CLEANUP(closedirp) DIR *d = NULL; */
static inline void closedirp(DIR **d)
{
    if (*d)
        closedir(*d);
}

/* openat() with O_CLOEXEC, O_NOFOLLOW and O_NONBLOCK (no hang on a FIFO), and
 * only regular files: anything else is PRECONDITION. */
int file_openat(int dirfd, const char *path, int flags, mode_t mode, int *out,
                struct qstill_error *err);

/* Reads up to len bytes at off; *got < len only at the end of the file. */
int file_read_upto(int fd, void *data, size_t len, uint64_t off, size_t *got,
                   struct qstill_error *err);
/* A short file is CORRUPT. */
int file_read_full(int fd, void *data, size_t len, uint64_t off,
                   struct qstill_error *err);
int file_write_full(int fd, const void *data, size_t len, uint64_t off,
                    struct qstill_error *err);

/* The whole file into b; one larger than `limit` bytes is CORRUPT. */
int file_slurpat(int dirfd, const char *path, size_t limit, struct buf *b,
                 struct qstill_error *err);

/* fsync; the object is named in the message. */
int file_sync(int fd, const char *name, struct qstill_error *err);

/* Close on the success path: a late write error surfaces here. */
int file_close_checked(int *fd, const char *name, struct qstill_error *err);

#endif
