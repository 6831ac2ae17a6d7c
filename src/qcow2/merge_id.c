/* SPDX-License-Identifier: MIT */
#include "merge_id.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

static int64_t ns(const struct statx_timestamp *t)
{
    return t->tv_sec * 1000000000ll + t->tv_nsec;
}

static int look(int dirfd, const char *path, int flags, struct merge_id *id)
{
    struct statx x;

    if (statx(dirfd, path, flags, STATX_INO | STATX_MTIME | STATX_BTIME, &x) <
        0)
        return -1;
    *id = (struct merge_id){
        .dev = makedev(x.stx_dev_major, x.stx_dev_minor),
        .ino = x.stx_ino,
        .born_ns = x.stx_mask & STATX_BTIME ? ns(&x.stx_btime) : 0,
        .mtime_ns = ns(&x.stx_mtime),
    };
    return 0;
}

int merge_id_of(int fd, struct merge_id *id, struct qstill_error *err)
{
    return look(fd, "", AT_EMPTY_PATH, id) < 0
               ? err_errno(err, errno, "cannot tell which file it is")
               : 0;
}

bool merge_id_same(const struct merge_id *a, const struct merge_id *b)
{
    return a->ino != 0 && a->ino == b->ino &&
           (a->born_ns && b->born_ns ? a->born_ns == b->born_ns
                                     : a->dev == b->dev);
}

enum merge_there merge_id_look(const char *path, const struct merge_id *id,
                               bool follow, struct merge_id *now)
{
    struct merge_id it;

    if (!path ||
        look(AT_FDCWD, path, follow ? 0 : AT_SYMLINK_NOFOLLOW, &it) < 0)
        return !path || errno == ENOENT ? MERGE_ABSENT : MERGE_OTHER;
    if (now)
        *now = it;
    return id && merge_id_same(id, &it) ? MERGE_SAME : MERGE_OTHER;
}

bool merge_id_is(const char *path, const struct merge_id *id)
{
    return merge_id_look(path, id, false, NULL) == MERGE_SAME;
}
