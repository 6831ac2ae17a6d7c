/* SPDX-License-Identifier: MIT */
#include "fault_io.h"

static struct fault_io *fault_of(const struct io *io)
{
    return io->user;
}

static bool fails(const struct io *io, enum fault_kind kind)
{
    struct fault_io *f = fault_of(io);

    if (!(f->kinds & kind))
        return false;
    f->seen++;
    if (f->at == 0 || f->seen < f->at || (f->seen > f->at && !f->onwards))
        return false;
    f->failed++;
    return true;
}

/* Runs `call` on the table below unless it is this call's turn to fail. */
#define PASS(io, kind, call)                                                   \
    const struct io *below = fault_of(io)->below;                              \
    if (fails(io, kind) && fault_of(io)->error)                                \
        return -fault_of(io)->error;                                           \
    return below->ops->call

static int fault_openat(const struct io *io, int dirfd, const char *path,
                        int flags, mode_t mode)
{
    PASS(io, FAULT_OPEN, openat(below, dirfd, path, flags, mode));
}

static size_t cut(const struct io *io, enum fault_kind kind, size_t len,
                  int *error)
{
    *error = 0;
    if (!fails(io, kind))
        return len;
    *error = fault_of(io)->error;
    return len > 0 ? 1 : 0;
}

static ssize_t fault_pread(const struct io *io, int fd, void *data, size_t len,
                           uint64_t off)
{
    const struct io *below = fault_of(io)->below;
    int error;

    len = cut(io, FAULT_READ, len, &error);
    if (error)
        return -error;
    return below->ops->pread(below, fd, data, len, off);
}

static ssize_t fault_pwrite(const struct io *io, int fd, const void *data,
                            size_t len, uint64_t off)
{
    const struct io *below = fault_of(io)->below;
    int error;

    len = cut(io, FAULT_WRITE, len, &error);
    if (error)
        return -error;
    return below->ops->pwrite(below, fd, data, len, off);
}

static int fault_fdatasync(const struct io *io, int fd)
{
    PASS(io, FAULT_SYNC, fdatasync(below, fd));
}

static int fault_fsync(const struct io *io, int fd)
{
    PASS(io, FAULT_SYNC, fsync(below, fd));
}

static int fault_ftruncate(const struct io *io, int fd, uint64_t size)
{
    PASS(io, FAULT_TRUNCATE, ftruncate(below, fd, size));
}

static int fault_fallocate(const struct io *io, int fd, int mode, uint64_t off,
                           uint64_t len)
{
    PASS(io, FAULT_ALLOCATE, fallocate(below, fd, mode, off, len));
}

static int fault_clone_range(const struct io *io, int src, uint64_t src_off,
                             uint64_t len, int dst, uint64_t dst_off)
{
    PASS(io, FAULT_ALLOCATE,
         clone_range(below, src, src_off, len, dst, dst_off));
}

static int fault_renameat(const struct io *io, int from_dir, const char *from,
                          int to_dir, const char *to, unsigned flags)
{
    PASS(io, FAULT_NAME, renameat(below, from_dir, from, to_dir, to, flags));
}

static int fault_linkat(const struct io *io, int from_dir, const char *from,
                        int to_dir, const char *to)
{
    PASS(io, FAULT_NAME, linkat(below, from_dir, from, to_dir, to));
}

static int fault_unlinkat(const struct io *io, int dirfd, const char *name)
{
    PASS(io, FAULT_NAME, unlinkat(below, dirfd, name));
}

static int fault_fchmod(const struct io *io, int fd, mode_t mode)
{
    PASS(io, FAULT_ATTR, fchmod(below, fd, mode));
}

static int fault_fchown(const struct io *io, int fd, uid_t uid, gid_t gid)
{
    PASS(io, FAULT_ATTR, fchown(below, fd, uid, gid));
}

static int fault_fsetxattr(const struct io *io, int fd, const char *name,
                           const void *value, size_t len)
{
    PASS(io, FAULT_ATTR, fsetxattr(below, fd, name, value, len));
}

static int fault_fremovexattr(const struct io *io, int fd, const char *name)
{
    PASS(io, FAULT_ATTR, fremovexattr(below, fd, name));
}

static int fault_setflags(const struct io *io, int fd, int flags)
{
    PASS(io, FAULT_ATTR, setflags(below, fd, flags));
}

static const struct io_ops fault_ops = {
    .openat = fault_openat,
    .pread = fault_pread,
    .pwrite = fault_pwrite,
    .fdatasync = fault_fdatasync,
    .fsync = fault_fsync,
    .ftruncate = fault_ftruncate,
    .fallocate = fault_fallocate,
    .clone_range = fault_clone_range,
    .renameat = fault_renameat,
    .linkat = fault_linkat,
    .unlinkat = fault_unlinkat,
    .fchmod = fault_fchmod,
    .fchown = fault_fchown,
    .fsetxattr = fault_fsetxattr,
    .fremovexattr = fault_fremovexattr,
    .setflags = fault_setflags,
};

void fault_io_init(struct fault_io *f, const struct io *below)
{
    *f = (struct fault_io){
        .io = {.ops = &fault_ops},
        .below = below ? below : io_real(),
    };
    f->io.user = f;
}
