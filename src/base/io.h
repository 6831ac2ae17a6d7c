/* SPDX-License-Identifier: MIT */
/*
 * The seam under all file I/O that changes something: a table of system calls,
 * passed as context. io_real() is the kernel; tests pass a table that records,
 * fails the n-th call or tears a write, and delegates to io_real_ops.
 *
 * Table entries return >= 0 or a negative errno, as the kernel does (a signal's
 * EINTR and short transfers are dealt with by the helpers below, not by them).
 * base/aio.h uses io_uring only over io_real(): with any other table its sync
 * twin calls pread, pwrite and fdatasync of that table, so nothing slips by.
 */
#ifndef QSTILL_BASE_IO_H
#define QSTILL_BASE_IO_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "error.h"

struct io;

struct io_ops {
    int (*openat)(const struct io *io, int dirfd, const char *path, int flags,
                  mode_t mode);
    ssize_t (*pread)(const struct io *io, int fd, void *data, size_t len,
                     uint64_t off);
    ssize_t (*pwrite)(const struct io *io, int fd, const void *data, size_t len,
                      uint64_t off);
    int (*fdatasync)(const struct io *io, int fd);
    int (*fsync)(const struct io *io, int fd); /* also of a directory's fd */
    int (*ftruncate)(const struct io *io, int fd, uint64_t size);
    int (*fallocate)(const struct io *io, int fd, int mode, uint64_t off,
                     uint64_t len);
    /* FICLONERANGE, but that len 0 is nothing (to the kernel it means all up to
     * the source's end, over whatever the target has there). */
    int (*clone_range)(const struct io *io, int src, uint64_t src_off,
                       uint64_t len, int dst, uint64_t dst_off);
    int (*renameat)(const struct io *io, int from_dir, const char *from,
                    int to_dir, const char *to, unsigned flags);
    int (*linkat)(const struct io *io, int from_dir, const char *from,
                  int to_dir, const char *to);
    int (*unlinkat)(const struct io *io, int dirfd, const char *name);
    int (*fchmod)(const struct io *io, int fd, mode_t mode);
    int (*fchown)(const struct io *io, int fd, uid_t uid, gid_t gid);
    int (*fsetxattr)(const struct io *io, int fd, const char *name,
                     const void *value, size_t len);
    int (*fremovexattr)(const struct io *io, int fd, const char *name);
    int (*setflags)(const struct io *io, int fd, int flags); /* of chattr */
};

struct io {
    const struct io_ops *ops;
    void *user; /* of the one who made the table */
};

extern const struct io_ops io_real_ops;

/* The kernel itself. */
const struct io *io_real(void);
bool io_is_real(const struct io *io);

/* As file_openat(): close-on-exec, no symbolic link, regular files only. */
int io_openat(const struct io *io, int dirfd, const char *path, int flags,
              mode_t mode, int *out, struct qstill_error *err);

/* Reads up to len bytes; *got < len only at the end of the file. */
int io_read_upto(const struct io *io, int fd, void *data, size_t len,
                 uint64_t off, size_t *got, struct qstill_error *err);
/* A file that ends before is CORRUPT. */
int io_read_full(const struct io *io, int fd, void *data, size_t len,
                 uint64_t off, struct qstill_error *err);
int io_write_full(const struct io *io, int fd, const void *data, size_t len,
                  uint64_t off, struct qstill_error *err);

/* `name` is the object in the message. */
int io_datasync(const struct io *io, int fd, const char *name,
                struct qstill_error *err);
int io_sync(const struct io *io, int fd, const char *name,
            struct qstill_error *err);
int io_truncate(const struct io *io, int fd, uint64_t size, const char *name,
                struct qstill_error *err);

/* Rename and unlink made durable by an fsync of the directories; a name that
 * is gone already is fine for io_unlink(). flags as renameat2(). */
int io_rename(const struct io *io, int from_dir, const char *from, int to_dir,
              const char *to, unsigned flags, struct qstill_error *err);
int io_unlink(const struct io *io, int dirfd, const char *name,
              struct qstill_error *err);
/* A second name. Not synced: it is there to be renamed. */
int io_link(const struct io *io, int from_dir, const char *from, int to_dir,
            const char *to, struct qstill_error *err);

/* Best effort, for space only: a filesystem that cannot punch holes is fine. */
void io_punch(const struct io *io, int fd, uint64_t off, uint64_t len);

/* Allocates the range so that ENOSPC comes now; i_size grows when the range
 * lies past it. A filesystem without fallocate is fine. */
int io_reserve(const struct io *io, int fd, uint64_t off, uint64_t len,
               const char *name, struct qstill_error *err);

/* -------------------------------------------------------------- O_DIRECT */

/* What O_DIRECT asks of this file; off == 0: it cannot be used. */
struct io_align {
    uint32_t mem; /* of the buffer's address */
    uint32_t off; /* of offset and length */
};

/* From statx(STATX_DIOALIGN) where the kernel tells, else by trying. */
void io_direct_align(int fd, struct io_align *out);

/*
 * A second open file of the same inode, with O_DIRECT and the access mode of
 * `fd`; locks stay with `fd`. *out is -1, without an error, where direct I/O
 * is refused or asks for more than `max_align`: use `fd` then.
 */
int io_open_direct(int fd, uint32_t max_align, int *out, struct io_align *align,
                   struct qstill_error *err);

#endif
