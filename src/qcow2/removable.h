/* SPDX-License-Identifier: MIT */
/* Whether a name can be taken from a file, found out without doing it. */
#ifndef QSTILL_QCOW2_REMOVABLE_H
#define QSTILL_QCOW2_REMOVABLE_H

#include <stdbool.h>

#include "base/error.h"

/* Whether the file could be removed, renamed, or another one renamed over it:
 * PERMISSION, or PRECONDITION (a mount point), with the reason and what to do.
 * One that is not there is fine. */
int removable_check(const char *path, struct qstill_error *err);
/* After a failure to open it for writing: says so if one of the attributes that
 * forbid the one forbids the other. Returns err's code. */
int removable_explain_open(const char *path, struct qstill_error *err);

/* Whether a rename can lead from the directory of one path to that of the
 * other: on one filesystem, and there not by two mounts. */
int removable_same_mount(const char *from, const char *to, bool *same,
                         struct qstill_error *err);

#endif
