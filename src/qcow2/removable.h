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

/* Whether the project of a file, as quotas count it, lets it take that name: a
 * directory that gives its project to what is made in it takes no file of
 * another one (EXDEV). What has no projects lets it. */
bool removable_same_project(int fd, const char *to);
/* Gives an open file the project that the name asks for. Whether it took it. */
bool removable_take_project(int fd, const char *to);

#endif
