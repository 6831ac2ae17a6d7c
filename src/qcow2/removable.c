/* SPDX-License-Identifier: MIT */
#include "removable.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "merge_names.h"

static int no_directory(const char *path, int number, struct qstill_error *err)
{
    err_set(err, QSTILL_E_PERMISSION,
            "%s cannot be removed or replaced, for its directory may not be "
            "changed: %s",
            path, strerror(number));
    return err_hint(err, number == EROFS ? "mount it for writing"
                         : number == EPERM
                             ? "it may be immutable: lsattr -d, chattr -i"
                             : "run this as a user who may, or as root");
}

static int is_immutable(const char *path, struct qstill_error *err)
{
    err_set(err, QSTILL_E_PERMISSION,
            "%s is immutable: it can be neither written nor removed", path);
    return err_hint(err, "qstill makes layers so that a snapshot needs: then "
                         "delete the snapshot; else chattr -i the file");
}

static int is_append_only(const char *path, struct qstill_error *err)
{
    err_set(err, QSTILL_E_PERMISSION,
            "%s is append-only: it can be neither changed nor removed", path);
    return err_hint(err, "chattr -a the file");
}

static int is_mounted_on(const char *path, struct qstill_error *err)
{
    err_set(err, QSTILL_E_PRECONDITION,
            "%s is a mount point: it cannot be removed or replaced", path);
    return err_hint(err, "unmount it, or name the file itself");
}

/* Only the owner of a file may take it out of a sticky directory, and whoever
 * owns that. */
static int is_others(const char *path, unsigned owner, struct qstill_error *err)
{
    err_set(err, QSTILL_E_PERMISSION,
            "%s belongs to user %u: in its directory (sticky) nobody else may "
            "remove or replace it",
            path, owner);
    return err_hint(err, "run this as that user, or as root");
}

/* rmdir() of a file asks for all that unlink() does, and is refused only then
 * for what it is: the kernel's own word. */
static bool may_go(const char *path, int *number)
{
    *number = rmdir(path) < 0 ? errno : 0;
    return *number != EPERM && *number != EACCES && *number != EROFS;
}

static int check_attributes(const char *path, const struct statx *st,
                            struct qstill_error *err)
{
    if (st->stx_attributes & STATX_ATTR_IMMUTABLE)
        return is_immutable(path, err);
    return st->stx_attributes & STATX_ATTR_APPEND ? is_append_only(path, err)
                                                  : 0;
}

int removable_explain_open(const char *path, struct qstill_error *err)
{
    struct statx st;

    if (statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_TYPE, &st) == 0)
        check_attributes(path, &st, err);
    return err->code;
}

int removable_check(const char *path, struct qstill_error *err)
{
    CLEANUP(freep) char *dir = path_dir(path);
    struct stat parent;
    struct statx st;
    int number;

    if (!dir)
        return err_nomem(err);
    if (statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &st) < 0)
        return errno == ENOENT ? 0
                               : err_errno(err, errno, "cannot stat %s", path);
    if (st.stx_attributes & STATX_ATTR_MOUNT_ROOT)
        return is_mounted_on(path, err);
    /* a server may know more about the directory than may_go() is told */
    if (faccessat(AT_FDCWD, dir[0] ? dir : ".", W_OK | X_OK, AT_EACCESS) < 0)
        return no_directory(path, errno, err);
    if (check_attributes(path, &st, err) < 0)
        return err->code;
    if (!S_ISREG(st.stx_mode) || may_go(path, &number))
        return 0;
    if (number == EPERM && stat(dir[0] ? dir : ".", &parent) == 0 &&
        (parent.st_mode & S_ISVTX) && st.stx_uid != geteuid())
        return is_others(path, st.stx_uid, err);
    return no_directory(path, number, err);
}

static int mount_of(const char *path, struct statx *st,
                    struct qstill_error *err)
{
    CLEANUP(freep) char *dir = path_dir(path);

    if (!dir)
        return err_nomem(err);
    if (statx(AT_FDCWD, dir[0] ? dir : ".", 0, STATX_BASIC_STATS | STATX_MNT_ID,
              st) < 0)
        return err_errno(err, errno, "cannot stat the directory of %s", path);
    return 0;
}

int removable_same_mount(const char *from, const char *to, bool *same,
                         struct qstill_error *err)
{
    struct statx a, b;

    if (mount_of(from, &a, err) < 0 || mount_of(to, &b, err) < 0)
        return err->code;
    *same = a.stx_dev_major == b.stx_dev_major &&
            a.stx_dev_minor == b.stx_dev_minor &&
            (!(a.stx_mask & b.stx_mask & STATX_MNT_ID) ||
             a.stx_mnt_id == b.stx_mnt_id);
    return 0;
}

/* The project of a file, and the one that its new directory asks for. */
static bool projects_differ(int fd, const char *to, struct fsxattr *file,
                            uint32_t *wanted)
{
    CLEANUP(closep) int dir = -1;
    struct qstill_error ignored = {0};
    struct fsxattr there;
    const char *base;

    if (path_open_dir(to, &dir, &base, &ignored) < 0 ||
        ioctl(dir, FS_IOC_FSGETXATTR, &there) < 0 ||
        ioctl(fd, FS_IOC_FSGETXATTR, file) < 0)
        return false;
    *wanted = there.fsx_projid;
    return (there.fsx_xflags & FS_XFLAG_PROJINHERIT) &&
           there.fsx_projid != file->fsx_projid;
}

bool removable_same_project(int fd, const char *to)
{
    struct fsxattr file;
    uint32_t wanted;

    return !projects_differ(fd, to, &file, &wanted);
}

bool removable_take_project(int fd, const char *to)
{
    struct fsxattr file;
    uint32_t wanted;

    if (!projects_differ(fd, to, &file, &wanted))
        return false;
    file.fsx_projid = wanted;
    return ioctl(fd, FS_IOC_FSSETXATTR, &file) == 0;
}
