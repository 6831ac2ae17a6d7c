/* SPDX-License-Identifier: MIT */
/*
 * Who may read what comes into another file. An image names its backing file by
 * itself: whoever made it, or gave it to others to read, need not have been
 * allowed to read that.
 */
#ifndef QSTILL_QCOW2_RIGHTS_H
#define QSTILL_QCOW2_RIGHTS_H

#include <sys/types.h>

#include "image.h"

/* Takes from *mode the rights of those who may not search each folder on the
 * way to `path`, but for the folders on the way to `a` and `b` (without links;
 * or NULL), too: attrs_narrow_below(). */
int rights_narrow_by_folders(const char *path, const char *a, const char *b,
                             gid_t gid, mode_t *mode, struct qstill_error *err);

/*
 * PRECONDITION when bytes of `from` may not come into the file of `to`, for its
 * owner, or others whom it lets in, may not read `from`. Root may, and so may
 * who owns both: what he lets others do with the one he could with the other.
 */
int rights_check_copy(const struct image *from, const struct image *to,
                      struct qstill_error *err);

#endif
