/* SPDX-License-Identifier: MIT */
#include "io.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/xattr.h>

#include "checked.h"

static int real_result(int r)
{
    return r < 0 ? -errno : r;
}

static int real_openat(const struct io *io, int dirfd, const char *path,
                       int flags, mode_t mode)
{
    (void)io;
    return real_result(openat(dirfd, path, flags, mode));
}

static ssize_t real_pread(const struct io *io, int fd, void *data, size_t len,
                          uint64_t off)
{
    ssize_t r = pread(fd, data, len, (off_t)off);

    (void)io;
    return r < 0 ? -errno : r;
}

static ssize_t real_pwrite(const struct io *io, int fd, const void *data,
                           size_t len, uint64_t off)
{
    ssize_t r = pwrite(fd, data, len, (off_t)off);

    (void)io;
    return r < 0 ? -errno : r;
}

static int real_fdatasync(const struct io *io, int fd)
{
    (void)io;
    return real_result(fdatasync(fd));
}

static int real_fsync(const struct io *io, int fd)
{
    (void)io;
    return real_result(fsync(fd));
}

static int real_ftruncate(const struct io *io, int fd, uint64_t size)
{
    (void)io;
    return real_result(ftruncate(fd, (off_t)size));
}

static int real_fallocate(const struct io *io, int fd, int mode, uint64_t off,
                          uint64_t len)
{
    (void)io;
    return real_result(fallocate(fd, mode, (off_t)off, (off_t)len));
}

static int real_clone_range(const struct io *io, int src, uint64_t src_off,
                            uint64_t len, int dst, uint64_t dst_off)
{
    struct file_clone_range r = {
        .src_fd = src,
        .src_offset = src_off,
        .src_length = len,
        .dest_offset = dst_off,
    };

    (void)io;
    return len == 0 ? 0 : real_result(ioctl(dst, FICLONERANGE, &r));
}

static int real_renameat(const struct io *io, int from_dir, const char *from,
                         int to_dir, const char *to, unsigned flags)
{
    (void)io;
    return real_result(renameat2(from_dir, from, to_dir, to, flags));
}

static int real_linkat(const struct io *io, int from_dir, const char *from,
                       int to_dir, const char *to)
{
    (void)io;
    return real_result(linkat(from_dir, from, to_dir, to, 0));
}

static int real_unlinkat(const struct io *io, int dirfd, const char *name)
{
    (void)io;
    return real_result(unlinkat(dirfd, name, 0));
}

static int real_fchmod(const struct io *io, int fd, mode_t mode)
{
    (void)io;
    return real_result(fchmod(fd, mode));
}

static int real_fchown(const struct io *io, int fd, uid_t uid, gid_t gid)
{
    (void)io;
    return real_result(fchown(fd, uid, gid));
}

static int real_fsetxattr(const struct io *io, int fd, const char *name,
                          const void *value, size_t len)
{
    (void)io;
    return real_result(fsetxattr(fd, name, value, len, 0));
}

static int real_fremovexattr(const struct io *io, int fd, const char *name)
{
    (void)io;
    return real_result(fremovexattr(fd, name));
}

static int real_setflags(const struct io *io, int fd, int flags)
{
    (void)io;
    return real_result(ioctl(fd, FS_IOC_SETFLAGS, &flags));
}

const struct io_ops io_real_ops = {
    .openat = real_openat,
    .pread = real_pread,
    .pwrite = real_pwrite,
    .fdatasync = real_fdatasync,
    .fsync = real_fsync,
    .ftruncate = real_ftruncate,
    .fallocate = real_fallocate,
    .clone_range = real_clone_range,
    .renameat = real_renameat,
    .linkat = real_linkat,
    .unlinkat = real_unlinkat,
    .fchmod = real_fchmod,
    .fchown = real_fchown,
    .fsetxattr = real_fsetxattr,
    .fremovexattr = real_fremovexattr,
    .setflags = real_setflags,
};

const struct io *io_real(void)
{
    static const struct io real = {.ops = &io_real_ops};

    return &real;
}

bool io_is_real(const struct io *io)
{
    return io->ops == &io_real_ops;
}

int io_openat(const struct io *io, int dirfd, const char *path, int flags,
              mode_t mode, int *out, struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;
    struct stat st;

    fd = io->ops->openat(io, dirfd, path,
                         flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, mode);
    if (fd == -ELOOP)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "%s is a symbolic link, which is not followed here",
                       path);
    if (fd < 0)
        return err_errno(err, -fd, "cannot open %s", path);
    if (fstat(fd, &st) < 0)
        return err_errno(err, errno, "cannot stat %s", path);
    if (!S_ISREG(st.st_mode))
        return err_set(err, QSTILL_E_PRECONDITION, "%s is no regular file",
                       path);
    /* It kept a FIFO from blocking the open. Left on, io_uring of older
     * kernels would answer EAGAIN to reads of what is not in the cache. */
    if (fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0)
        return err_errno(err, errno, "cannot open %s", path);
    *out = take_fd(&fd);
    return 0;
}

int io_read_upto(const struct io *io, int fd, void *data, size_t len,
                 uint64_t off, size_t *got, struct qstill_error *err)
{
    size_t n = 0;

    while (n < len) {
        ssize_t r = io->ops->pread(io, fd, (char *)data + n, len - n, off + n);

        if (r == -EINTR)
            continue;
        if (r < 0)
            return err_errno(err, (int)-r, "read at offset %llu failed",
                             (unsigned long long)(off + n));
        if (r == 0)
            break;
        n += (size_t)r;
    }
    *got = n;
    return 0;
}

int io_read_full(const struct io *io, int fd, void *data, size_t len,
                 uint64_t off, struct qstill_error *err)
{
    size_t got;

    if (io_read_upto(io, fd, data, len, off, &got, err) < 0)
        return err->code;
    if (got < len)
        return err_set(err, QSTILL_E_CORRUPT,
                       "file ends at %llu, %zu bytes at offset %llu wanted",
                       (unsigned long long)(off + got), len,
                       (unsigned long long)off);
    return 0;
}

int io_write_full(const struct io *io, int fd, const void *data, size_t len,
                  uint64_t off, struct qstill_error *err)
{
    size_t n = 0;

    while (n < len) {
        ssize_t r =
            io->ops->pwrite(io, fd, (const char *)data + n, len - n, off + n);

        if (r == -EINTR)
            continue;
        if (r <= 0)
            return err_errno(err, r ? (int)-r : EIO,
                             "write at offset %llu failed",
                             (unsigned long long)(off + n));
        n += (size_t)r;
    }
    return 0;
}

int io_datasync(const struct io *io, int fd, const char *name,
                struct qstill_error *err)
{
    int r = io->ops->fdatasync(io, fd);

    if (r < 0)
        return err_errno(err, -r, "cannot make %s durable", name);
    return 0;
}

int io_sync(const struct io *io, int fd, const char *name,
            struct qstill_error *err)
{
    int r = io->ops->fsync(io, fd);

    if (r < 0)
        return err_errno(err, -r, "cannot make %s durable", name);
    return 0;
}

int io_truncate(const struct io *io, int fd, uint64_t size, const char *name,
                struct qstill_error *err)
{
    int r;

    do
        r = io->ops->ftruncate(io, fd, size);
    while (r == -EINTR);
    if (r < 0)
        return err_errno(err, -r, "cannot set the size of %s to %llu", name,
                         (unsigned long long)size);
    return 0;
}

int io_rename(const struct io *io, int from_dir, const char *from, int to_dir,
              const char *to, unsigned flags, struct qstill_error *err)
{
    int r = io->ops->renameat(io, from_dir, from, to_dir, to, flags);

    if (r < 0)
        return err_errno(err, -r, "cannot rename %s to %s", from, to);
    if (io_sync(io, to_dir, "a directory", err) < 0)
        return err->code;
    if (from_dir == to_dir)
        return 0;
    return io_sync(io, from_dir, "a directory", err);
}

int io_unlink(const struct io *io, int dirfd, const char *name,
              struct qstill_error *err)
{
    int r = io->ops->unlinkat(io, dirfd, name);

    if (r < 0 && r != -ENOENT)
        return err_errno(err, -r, "cannot remove %s", name);
    return io_sync(io, dirfd, "a directory", err);
}

int io_link(const struct io *io, int from_dir, const char *from, int to_dir,
            const char *to, struct qstill_error *err)
{
    int r = io->ops->linkat(io, from_dir, from, to_dir, to);

    return r < 0 ? err_errno(err, -r, "cannot give %s the name %s", from, to)
                 : 0;
}

void io_punch(const struct io *io, int fd, uint64_t off, uint64_t len)
{
    /* it frees space and nothing else, so no failure matters */
    if (len > 0)
        io->ops->fallocate(io, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                           off, len);
}

int io_reserve(const struct io *io, int fd, uint64_t off, uint64_t len,
               const char *name, struct qstill_error *err)
{
    int r;

    if (len == 0)
        return 0;
    do
        r = io->ops->fallocate(io, fd, 0, off, len);
    while (r == -EINTR);
    if (r == 0)
        return 0;
    if (r != -EOPNOTSUPP && r != -ENOSYS)
        return err_errno(err, -r, "cannot reserve %llu bytes in %s",
                         (unsigned long long)len, name);
    return 0;
}

/* -------------------------------------------------------------- O_DIRECT */

static bool align_of_statx(int fd, struct io_align *out)
{
#ifdef STATX_DIOALIGN
    struct statx stx;

    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) < 0 ||
        !(stx.stx_mask & STATX_DIOALIGN))
        return false;
    out->mem = stx.stx_dio_mem_align;
    out->off = stx.stx_dio_offset_align;
    return true;
#else
    (void)fd;
    (void)out;
    return false;
#endif
}

/* Reads with growing alignment: 512, then 4096. An empty file tells nothing
 * and gets 4096. */
static void align_by_trying(int direct_fd, struct io_align *out)
{
    _Alignas(4096) char block[4096];

    for (uint32_t a = 512; a <= 4096; a *= 8) {
        if (pread(direct_fd, block, a, a) > 0) {
            out->mem = out->off = a;
            return;
        }
    }
    if (pread(direct_fd, block, sizeof(block), 0) >= 0)
        out->mem = out->off = sizeof(block);
}

/* /proc leads to the inode itself: a renamed or replaced path cannot matter. */
static int reopen_direct(int fd)
{
    char path[64];
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0)
        return -1;
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    return open(path, (flags & O_ACCMODE) | O_DIRECT | O_CLOEXEC);
}

void io_direct_align(int fd, struct io_align *out)
{
    CLEANUP(closep) int direct = -1;

    *out = (struct io_align){0, 0};
    if (align_of_statx(fd, out))
        return;
    direct = reopen_direct(fd);
    if (direct >= 0)
        align_by_trying(direct, out);
}

/* Newer kernels take O_DIRECT there and copy by way of the page cache, which
 * is all there is. */
static bool is_in_memory(int fd)
{
    struct statfs fs;

    return fstatfs(fd, &fs) == 0 &&
           (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC);
}

int io_open_direct(int fd, uint32_t max_align, int *out, struct io_align *align,
                   struct qstill_error *err)
{
    CLEANUP(closep) int direct = -1;
    struct stat a, b;

    *out = -1;
    *align = (struct io_align){0, 0};
    if (is_in_memory(fd))
        return 0;
    io_direct_align(fd, align);
    if (align->off == 0 || align->off > max_align || align->mem > max_align)
        return 0;
    direct = reopen_direct(fd);
    if (direct < 0)
        return 0;
    if (fstat(fd, &a) < 0 || fstat(direct, &b) < 0)
        return err_errno(err, errno, "cannot stat a file just opened");
    if (a.st_dev == b.st_dev && a.st_ino == b.st_ino)
        *out = take_fd(&direct);
    return 0;
}
