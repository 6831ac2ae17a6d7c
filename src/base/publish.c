/* SPDX-License-Identifier: MIT */
#include "publish.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "file.h"

int publish_sync_dir(int dirfd, struct qstill_error *err)
{
    if (fsync(dirfd) < 0)
        return err_errno(err, errno, "cannot make a directory durable");
    return 0;
}

static int write_aside(int dirfd, const char *aside, const void *data,
                       size_t len, struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;

    /* A leftover of a writer that died; the lock says nobody else is here. */
    if (unlinkat(dirfd, aside, 0) < 0 && errno != ENOENT)
        return err_errno(err, errno, "cannot remove stale %s", aside);
    if (file_openat(dirfd, aside, O_WRONLY | O_CREAT | O_EXCL, 0600, &fd, err) <
            0 ||
        file_write_full(fd, data, len, 0, err) < 0 ||
        file_sync(fd, aside, err) < 0)
        return err->code;
    return file_close_checked(&fd, aside, err);
}

bool publish_is_aside(const char *name)
{
    size_t len = strlen(name);

    return len > 5 && name[0] == '.' && strcmp(name + len - 4, ".new") == 0;
}

int publish_bytes(int dirfd, const char *name, const void *data, size_t len,
                  struct qstill_error *err)
{
    char aside[300];

    snprintf(aside, sizeof(aside), ".%s.new", name);
    if (write_aside(dirfd, aside, data, len, err) < 0 ||
        publish_rename(dirfd, aside, name, PUBLISH_REPLACE, err) < 0) {
        unlinkat(dirfd, aside, 0);
        if (err->code == QSTILL_E_NO_SPACE)
            err_hint(err, "make some room on its file system, then try again");
        return err_wrap(err, "writing %s", name);
    }
    return 0;
}

/* Cut at the end: what is written has the room that is there already. */
static int write_into(int dirfd, const char *file, const void *data, size_t len,
                      struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;

    if (file_openat(dirfd, file, O_WRONLY, 0, &fd, err) < 0 ||
        file_write_full(fd, data, len, 0, err) < 0)
        return err->code;
    if (ftruncate(fd, (off_t)len) < 0)
        return err_errno(err, errno, "cannot cut %s", file);
    if (file_sync(fd, file, err) < 0)
        return err->code;
    return file_close_checked(&fd, file, err);
}

int publish_with(int fromfd, const char *from, int dirfd, const char *name,
                 const void *data, size_t len, struct qstill_error *err)
{
    if (write_into(fromfd, from, data, len, err) < 0)
        return err_wrap(err, "writing %s", name);
    if (renameat(fromfd, from, dirfd, name) < 0)
        return err_errno(err, errno, "cannot rename %s to %s", from, name);
    return publish_sync_dir(dirfd, err);
}

int publish_rename(int dirfd, const char *from, const char *to,
                   enum publish_replace replace, struct qstill_error *err)
{
    unsigned flags = replace == PUBLISH_NEW ? RENAME_NOREPLACE : 0;

    if (renameat2(dirfd, from, dirfd, to, flags) < 0)
        return err_errno(err, errno, "cannot rename %s to %s", from, to);
    return publish_sync_dir(dirfd, err);
}

/* A read-only file system says EROFS before it looks for the name. */
static bool is_absent(int dirfd, const char *name)
{
    return faccessat(dirfd, name, F_OK, AT_SYMLINK_NOFOLLOW) < 0 &&
           errno == ENOENT;
}

int publish_unlink_later(int dirfd, const char *name, struct qstill_error *err)
{
    if (unlinkat(dirfd, name, 0) < 0) {
        int why = errno;

        if (why == ENOENT || (why == EROFS && is_absent(dirfd, name)))
            return 0;
        return err_errno(err, why, "cannot remove %s", name);
    }
    return 0;
}

int publish_unlink(int dirfd, const char *name, struct qstill_error *err)
{
    /* nor is there a sync of what may be no place for files: /proc */
    if (is_absent(dirfd, name))
        return 0;
    return publish_unlink_later(dirfd, name, err) < 0
               ? err->code
               : publish_sync_dir(dirfd, err);
}
