/* SPDX-License-Identifier: MIT */
#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "io.h"

int file_openat(int dirfd, const char *path, int flags, mode_t mode, int *out,
                struct qstill_error *err)
{
    return io_openat(io_real(), dirfd, path, flags, mode, out, err);
}

int file_read_upto(int fd, void *data, size_t len, uint64_t off, size_t *got,
                   struct qstill_error *err)
{
    size_t n = 0;

    while (n < len) {
        ssize_t r = pread(fd, (char *)data + n, len - n, (off_t)(off + n));

        if (r < 0 && errno == EINTR)
            continue;
        if (r < 0)
            return err_errno(err, errno, "read at offset %llu failed",
                             (unsigned long long)(off + n));
        if (r == 0)
            break;
        n += (size_t)r;
    }
    *got = n;
    return 0;
}

int file_read_full(int fd, void *data, size_t len, uint64_t off,
                   struct qstill_error *err)
{
    size_t got;

    if (file_read_upto(fd, data, len, off, &got, err) < 0)
        return err->code;
    if (got < len)
        return err_set(err, QSTILL_E_CORRUPT,
                       "file ends at %llu, %zu bytes at offset %llu wanted",
                       (unsigned long long)(off + got), len,
                       (unsigned long long)off);
    return 0;
}

int file_write_full(int fd, const void *data, size_t len, uint64_t off,
                    struct qstill_error *err)
{
    size_t n = 0;

    while (n < len) {
        ssize_t r =
            pwrite(fd, (const char *)data + n, len - n, (off_t)(off + n));

        if (r < 0 && errno == EINTR)
            continue;
        if (r < 0)
            return err_errno(err, errno, "write at offset %llu failed",
                             (unsigned long long)(off + n));
        n += (size_t)r;
    }
    return 0;
}

int file_slurpat(int dirfd, const char *path, size_t limit, struct buf *b,
                 struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;
    struct stat st;
    size_t got;

    if (file_openat(dirfd, path, O_RDONLY, 0, &fd, err) < 0)
        return err->code;
    if (fstat(fd, &st) < 0)
        return err_errno(err, errno, "cannot stat %s", path);
    if ((uint64_t)st.st_size > limit)
        return err_set(err, QSTILL_E_CORRUPT,
                       "%s is %lld bytes, more than the %zu expected at most",
                       path, (long long)st.st_size, limit);
    if (buf_reserve(b, (size_t)st.st_size) < 0)
        return err_nomem(err);
    if (file_read_upto(fd, b->data + b->len, (size_t)st.st_size, 0, &got, err) <
        0)
        return err_wrap(err, "%s", path);
    b->len += got;
    b->data[b->len] = '\0';
    return 0;
}

int file_sync(int fd, const char *name, struct qstill_error *err)
{
    if (fsync(fd) < 0)
        return err_errno(err, errno, "cannot make %s durable", name);
    return 0;
}

int file_close_checked(int *fd, const char *name, struct qstill_error *err)
{
    if (close(take_fd(fd)) < 0 && errno != EINTR)
        return err_errno(err, errno, "closing %s", name);
    return 0;
}
