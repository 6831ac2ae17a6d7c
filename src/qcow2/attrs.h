/* SPDX-License-Identifier: MIT */
/* Who may use a file: owner, mode, extended attributes (labels, ACLs); and how
 * it is kept (chattr). */
#ifndef QSTILL_QCOW2_ATTRS_H
#define QSTILL_QCOW2_ATTRS_H

#include <stdbool.h>
#include <sys/types.h>

#include "base/io.h"

/* Gives `to` the owner, mode, extended attributes and flags of `from`. Those
 * that the filesystem does not take are left out, and so are the flags that
 * keep a file from being written (chattr +i, +a). */
int attrs_copy(const struct io *io, int from, int to, const char *name,
               struct qstill_error *err);

/*
 * Takes from *mode, of a new file of group `gid`, the rights of all but its
 * owner that show the content of `from` to somebody who may not read that.
 */
int attrs_narrow(int from, gid_t gid, mode_t *mode, const char *name,
                 struct qstill_error *err);
/* Likewise: of those who may not look for a file below that folder. */
void attrs_narrow_below(const char *dir, gid_t gid, mode_t *mode);

/* Takes away what a new file has of its folder's default ACL: the rights of its
 * group are from then on those of its mode. */
int attrs_drop_acl(const struct io *io, int fd, const char *name,
                   struct qstill_error *err);

/*
 * Has an empty file written in place, not copied on write (chattr +C), where
 * `like` is so: btrfs takes that before the first byte alone, and shares blocks
 * only between files that are alike in it. What cannot be set is left out.
 */
void attrs_copy_nocow(int like, int empty);
bool attrs_is_nocow(int fd);

/* Whether this process may: it is the owner of both, or root. */
bool attrs_can_copy(int from, int to);

/* Whether a file that it makes can be given those of `from`. */
bool attrs_can_make(int from);

#endif
