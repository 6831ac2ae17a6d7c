/* SPDX-License-Identifier: MIT */
#include "attrs.h"

#include <errno.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

/* The kernel's own limits for one list and one value. */
#define XATTR_LIST_MAX_BYTES  65536
#define XATTR_VALUE_MAX_BYTES 65536
#define ACL                   "system.posix_acl_access"

bool attrs_is_nocow(int fd)
{
    int flags = 0;

    return ioctl(fd, FS_IOC_GETFLAGS, &flags) == 0 && (flags & FS_NOCOW_FL);
}

void attrs_copy_nocow(int like, int empty)
{
    int flags = 0;

    if (!attrs_is_nocow(like) || ioctl(empty, FS_IOC_GETFLAGS, &flags) < 0)
        return;
    flags |= FS_NOCOW_FL;
    ioctl(empty, FS_IOC_SETFLAGS, &flags);
}

/*
 * How a file is kept, by the letters of chattr: A c d j m s S t u x. Not those
 * that nobody could write or remove it with (i, a), nor what the filesystem
 * made of it by itself (e, h, I, N) or lets nobody change in a file with data
 * (C, E, V), nor those of directories.
 */
#define FLAGS_KEPT                                                             \
    (FS_NOATIME_FL | FS_COMPR_FL | FS_NODUMP_FL | FS_JOURNAL_DATA_FL |         \
     FS_NOCOMP_FL | FS_SECRM_FL | FS_SYNC_FL | FS_NOTAIL_FL | FS_UNRM_FL |     \
     FS_DAX_FL)

/* What the filesystem, or a security module, does not let us touch. */
static bool is_tolerable(int r)
{
    return r == -EOPNOTSUPP || r == -EPERM || r == -EACCES || r == -ENODATA;
}

/* A filesystem that does not know one of them, or not together with what the
 * file has else, takes none: then each is tried by itself. */
static int copy_flags(const struct io *io, int from, int to, const char *name,
                      struct qstill_error *err)
{
    int want = 0, have = 0, differ, r;

    if (ioctl(from, FS_IOC_GETFLAGS, &want) < 0 ||
        ioctl(to, FS_IOC_GETFLAGS, &have) < 0)
        return 0;
    differ = (want ^ have) & FLAGS_KEPT;
    if (differ == 0 || io->ops->setflags(io, to, have ^ differ) == 0)
        return 0;
    for (int bit = 1; bit <= differ && bit > 0; bit <<= 1) {
        if (!(differ & bit))
            continue;
        r = io->ops->setflags(io, to, have ^ bit);
        if (r == 0)
            have ^= bit;
        else if (!is_tolerable(r) && r != -EINVAL)
            return err_errno(err, -r, "cannot set the flags of %s", name);
    }
    return 0;
}

bool attrs_can_copy(int from, int to)
{
    struct stat a, b;

    if (geteuid() == 0)
        return true;
    if (fstat(from, &a) < 0 || fstat(to, &b) < 0)
        return false;
    return a.st_uid == b.st_uid && a.st_gid == b.st_gid &&
           b.st_uid == geteuid();
}

static bool is_own_group(gid_t gid)
{
    CLEANUP(freep) gid_t *groups = NULL;
    int n = getgroups(0, NULL);

    if (gid == getegid())
        return true;
    groups = malloc(sizeof(*groups) * (size_t)(n > 0 ? n : 1));
    n = groups && n > 0 ? getgroups(n, groups) : 0;
    for (int i = 0; i < n; i++)
        if (groups[i] == gid)
            return true;
    return false;
}

bool attrs_can_make(int from)
{
    struct stat st;

    if (geteuid() == 0)
        return true;
    return fstat(from, &st) == 0 && st.st_uid == geteuid() &&
           is_own_group(st.st_gid);
}

static int copy_one(const struct io *io, int from, int to, const char *name,
                    uint8_t *value, uint8_t *old)
{
    ssize_t n = fgetxattr(from, name, value, XATTR_VALUE_MAX_BYTES);
    ssize_t m;

    if (n < 0)
        return 0;
    m = fgetxattr(to, name, old, XATTR_VALUE_MAX_BYTES);
    if (m == n && memcmp(value, old, (size_t)n) == 0)
        return 0;
    return io->ops->fsetxattr(io, to, name, value, (size_t)n);
}

/* Attributes that only `to` has go. */
static int remove_others(const struct io *io, int from, int to, char *list,
                         const char *name, struct qstill_error *err)
{
    ssize_t n = flistxattr(to, list, XATTR_LIST_MAX_BYTES);

    for (ssize_t at = 0; at < n; at += (ssize_t)strlen(list + at) + 1) {
        int r;

        if (fgetxattr(from, list + at, NULL, 0) >= 0 || errno != ENODATA)
            continue;
        r = io->ops->fremovexattr(io, to, list + at);
        if (r < 0 && !is_tolerable(r))
            return err_errno(err, -r, "cannot remove %s of %s", list + at,
                             name);
    }
    return 0;
}

/* How to compress: not taken for a file that is not copied on write. */
static bool is_refused(const char *name, int r)
{
    return r == -EINVAL && strncmp(name, "btrfs.", 6) == 0;
}

static int copy_xattrs(const struct io *io, int from, int to, const char *name,
                       struct qstill_error *err)
{
    CLEANUP(freep) char *list = malloc(XATTR_LIST_MAX_BYTES);
    CLEANUP(freep) uint8_t *values = malloc(2 * XATTR_VALUE_MAX_BYTES);
    ssize_t n;

    if (!list || !values)
        return err_nomem(err);
    n = flistxattr(from, list, XATTR_LIST_MAX_BYTES);
    for (ssize_t at = 0; at < n; at += (ssize_t)strlen(list + at) + 1) {
        int r = copy_one(io, from, to, list + at, values,
                         values + XATTR_VALUE_MAX_BYTES);

        if (r < 0 && !is_tolerable(r) && !is_refused(list + at, r))
            return err_errno(err, -r, "cannot set %s of %s", list + at, name);
    }
    return remove_others(io, from, to, list, name, err);
}

static int set_mode(const struct io *io, int to, mode_t mode, const char *name,
                    struct qstill_error *err)
{
    struct stat st;
    int r = 0;

    if (fstat(to, &st) < 0)
        return err_errno(err, errno, "cannot stat %s", name);
    if ((st.st_mode & 07777) != mode)
        r = io->ops->fchmod(io, to, mode);
    return r < 0 ? err_errno(err, -r, "cannot set the mode of %s", name) : 0;
}

/* The ACL between the rights that go and those that come: a new file has one of
 * its directory, perhaps, and the group's bits say what those in it may. */
int attrs_copy(const struct io *io, int from, int to, const char *name,
               struct qstill_error *err)
{
    struct stat a, b;
    int r = 0;

    if (fstat(from, &a) < 0 || fstat(to, &b) < 0)
        return err_errno(err, errno, "cannot stat %s", name);
    if (a.st_uid != b.st_uid || a.st_gid != b.st_gid)
        r = io->ops->fchown(io, to, a.st_uid, a.st_gid);
    if (r < 0)
        return err_errno(err, -r, "cannot give %s its owner", name);
    if (set_mode(io, to, a.st_mode & b.st_mode & 07777, name, err) < 0)
        return err->code;
    /* first: on btrfs a flag sets the attribute that says how to compress */
    if (copy_flags(io, from, to, name, err) < 0 ||
        copy_xattrs(io, from, to, name, err) < 0)
        return err->code;
    return set_mode(io, to, a.st_mode & 07777, name, err);
}

int attrs_drop_acl(const struct io *io, int fd, const char *name,
                   struct qstill_error *err)
{
    int r;

    if (fgetxattr(fd, ACL, NULL, 0) < 0)
        return 0;
    r = io->ops->fremovexattr(io, fd, ACL);
    return r < 0 ? err_errno(err, -r, "cannot remove the ACL of %s", name) : 0;
}

/*
 * Who is in the new file's group, or in neither, may be in the group of `from`
 * or not: where the groups differ he needs both rights there to be sure of one.
 * With an ACL the group's bits are what any of those that it names may have at
 * most, and say nothing of the group itself.
 */
static void narrow(const struct stat *st, bool acl, mode_t group_bit,
                   mode_t other_bit, gid_t gid, mode_t *mode)
{
    bool group = st->st_mode & group_bit, other = st->st_mode & other_bit;

    if (acl)
        group = other = false;
    else if (st->st_gid != gid)
        group = other = group && other;
    if (!group)
        *mode &= ~(mode_t)S_IRWXG;
    if (!other)
        *mode &= ~(mode_t)S_IRWXO;
}

int attrs_narrow(int from, gid_t gid, mode_t *mode, const char *name,
                 struct qstill_error *err)
{
    struct stat st;

    if (fstat(from, &st) < 0)
        return err_errno(err, errno, "cannot stat %s", name);
    narrow(&st, fgetxattr(from, ACL, NULL, 0) > 0, S_IRGRP, S_IROTH, gid, mode);
    return 0;
}

void attrs_narrow_below(const char *dir, gid_t gid, mode_t *mode)
{
    struct stat st;

    if (stat(dir, &st) < 0)
        *mode &= ~(mode_t)(S_IRWXG | S_IRWXO);
    else
        narrow(&st, getxattr(dir, ACL, NULL, 0) > 0, S_IXGRP, S_IXOTH, gid,
               mode);
}
