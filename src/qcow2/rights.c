/* SPDX-License-Identifier: MIT */
#include "rights.h"

#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "attrs.h"
#include "base/bytes.h"

#define GROUPS_MAX     256
#define PASSWD_MAX     16384
#define XATTR_MAX      65536
#define ACL            "system.posix_acl_access"
#define ACL_HEAD_BYTES 4u

enum { READ = 4, SEARCH = 1 };

/* An entry of an ACL, as it stands in the attribute. */
struct acl_entry {
    unsigned tag, perm;
    uint32_t id;
};
enum { ACL_ENTRY_BYTES = 8 };
enum {
    ACL_USER = 2,
    ACL_GROUP_OBJ = 4,
    ACL_GROUP = 8,
    ACL_MASK = 16,
    ACL_OTHER = 32,
};

/* ----------------------------------------------------------------- folders */

/* Whether the folder is on the way to a file, too. Both have no links. */
static bool is_above(const char *dir, size_t len, const char *path)
{
    return path && strncmp(dir, path, len) == 0 &&
           (path[len] == '/' || path[len - 1] == '/');
}

/* Cuts `path` to the next folder above that is not on the way to these. */
static bool next_folder(char *path, const char *a, const char *b)
{
    for (char *slash = strrchr(path, '/'); slash && slash > path;
         slash = strrchr(path, '/')) {
        *slash = '\0';
        if (!is_above(path, (size_t)(slash - path), a) &&
            !is_above(path, (size_t)(slash - path), b))
            return true;
    }
    return false;
}

static char *real_path(const char *path, struct qstill_error *err)
{
    char *real = realpath(path, NULL);

    if (!real)
        err_errno(err, errno, "cannot find %s", path);
    return real;
}

int rights_narrow_by_folders(const char *path, const char *a, const char *b,
                             gid_t gid, mode_t *mode, struct qstill_error *err)
{
    CLEANUP(freep) char *dir = real_path(path, err);

    if (!dir)
        return err->code;
    while (next_folder(dir, a, b))
        attrs_narrow_below(dir, gid, mode);
    return 0;
}

/* ---------------------------------------------------------------- one user */

struct user {
    uid_t uid;
    gid_t groups[GROUPS_MAX];
    int n;
};

/* One without an entry is in no group that is known. */
static void user_init(struct user *u, uid_t uid)
{
    CLEANUP(freep) char *text = malloc(PASSWD_MAX);
    struct passwd pw, *found = NULL;

    u->uid = uid;
    u->n = 0;
    if (!text || getpwuid_r(uid, &pw, text, PASSWD_MAX, &found) != 0 || !found)
        return;
    u->n = GROUPS_MAX;
    if (getgrouplist(pw.pw_name, pw.pw_gid, u->groups, &u->n) < 0)
        u->n = GROUPS_MAX; /* the first of more */
}

static bool is_in(const struct user *u, gid_t gid)
{
    for (int i = 0; i < u->n; i++)
        if (u->groups[i] == gid)
            return true;
    return false;
}

static struct acl_entry entry(const uint8_t *acl, size_t at)
{
    uint64_t v = get_le64(acl + at);

    return (struct acl_entry){v & 0xffff, v >> 16 & 0xffff,
                              (uint32_t)(v >> 32)};
}

/* As the kernel does: the entry of the user, else any of his groups', else that
 * of others. */
static bool acl_lets(const struct stat *st, const uint8_t *acl, size_t len,
                     const struct user *u, unsigned want)
{
    unsigned mask = 7, group = 0, other = 0;
    bool member = false;

    for (size_t at = ACL_HEAD_BYTES; at + ACL_ENTRY_BYTES <= len;
         at += ACL_ENTRY_BYTES)
        if (entry(acl, at).tag == ACL_MASK)
            mask = entry(acl, at).perm;
    for (size_t at = ACL_HEAD_BYTES; at + ACL_ENTRY_BYTES <= len;
         at += ACL_ENTRY_BYTES) {
        struct acl_entry e = entry(acl, at);

        if (e.tag == ACL_USER && e.id == u->uid)
            return e.perm & mask & want;
        if ((e.tag == ACL_GROUP_OBJ && is_in(u, st->st_gid)) ||
            (e.tag == ACL_GROUP && is_in(u, e.id))) {
            member = true;
            group |= e.perm & mask;
        }
        if (e.tag == ACL_OTHER)
            other = e.perm;
    }
    return (member ? group : other) & want;
}

static bool lets(const struct stat *st, const uint8_t *acl, ssize_t len,
                 const struct user *u, unsigned want)
{
    if (u->uid == st->st_uid)
        return (st->st_mode >> 6) & want;
    if (len > (ssize_t)ACL_HEAD_BYTES)
        return acl_lets(st, acl, (size_t)len, u, want);
    return (is_in(u, st->st_gid) ? st->st_mode >> 3 : st->st_mode) & want;
}

static int may_read(const struct image *from, const struct stat *st,
                    const char *near, const struct user *u, bool *yes,
                    struct qstill_error *err)
{
    CLEANUP(freep) char *dir = real_path(from->path, err);
    CLEANUP(freep) uint8_t *acl = malloc(XATTR_MAX);

    if (!dir)
        return err->code;
    if (!acl)
        return err_nomem(err);
    *yes = lets(st, acl, fgetxattr(from->fd, ACL, acl, XATTR_MAX), u, READ);
    while (*yes && next_folder(dir, near, NULL)) {
        struct stat at;

        *yes = stat(dir, &at) == 0 &&
               lets(&at, acl, getxattr(dir, ACL, acl, XATTR_MAX), u, SEARCH);
    }
    return 0;
}

/* ------------------------------------------------------------------ a copy */

/* Nobody else gets to it. (With an ACL the group's bits are the most that any
 * of its entries gives.) */
static bool is_shut_in(const char *path, const struct stat *st,
                       const struct stat *from)
{
    CLEANUP(freep) char *dir = strdup(path);
    struct stat at;

    while (dir && next_folder(dir, NULL, NULL))
        if (stat(dir, &at) == 0 && !(at.st_mode & (S_IXGRP | S_IXOTH)) &&
            (at.st_uid == 0 || at.st_uid == st->st_uid ||
             at.st_uid == from->st_uid))
            return true;
    return false;
}

static int check_others(const struct image *from, const struct stat *a,
                        const struct image *to, const struct stat *b,
                        const char *real, struct qstill_error *err)
{
    mode_t mode = b->st_mode & 0777, left = mode;

    if (is_shut_in(real, b, a))
        return 0;
    if (attrs_narrow(from->fd, b->st_gid, &left, from->path, err) < 0 ||
        rights_narrow_by_folders(from->path, real, NULL, b->st_gid, &left,
                                 err) < 0)
        return err->code;
    return left == mode
               ? 0
               : err_set(err, QSTILL_E_PRECONDITION,
                         "%s would take in data of %s, and not all who may "
                         "read the one may read the other",
                         to->path, from->path);
}

int rights_check_copy(const struct image *from, const struct image *to,
                      struct qstill_error *err)
{
    CLEANUP(freep) char *real = NULL;
    bool yes = true;
    struct stat a, b;

    if (fstat(from->fd, &a) < 0 || fstat(to->fd, &b) < 0)
        return err_errno(err, errno, "cannot stat %s, or %s", from->path,
                         to->path);
    if (b.st_uid == 0 || b.st_uid == a.st_uid)
        return 0;
    real = real_path(to->path, err);
    if (!real)
        return err->code;
    if (b.st_uid != geteuid()) { /* who has just opened it */
        struct user u;

        user_init(&u, b.st_uid);
        if (may_read(from, &a, real, &u, &yes, err) < 0)
            return err->code;
    }
    if (!yes)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "%s would take in data of %s, which its owner (user "
                       "%u) may not read",
                       to->path, from->path, (unsigned)b.st_uid);
    return check_others(from, &a, to, &b, real, err);
}
