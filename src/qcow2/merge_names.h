/* SPDX-License-Identifier: MIT */
/* Paths, as strings: nothing is resolved. */
#ifndef QSTILL_QCOW2_MERGE_NAMES_H
#define QSTILL_QCOW2_MERGE_NAMES_H

#include <stdbool.h>

#include "base/error.h"

/* Absolute, without looking at links. Free with free(). */
int path_absolute(const char *path, char **out, struct qstill_error *err);
/* The directory part with its slash, or "". */
char *path_dir(const char *path);
/* What follows it. */
const char *path_base(const char *path);
/* The name of a backing file beside its overlay: one with a colon gets a "./",
 * for QEMU takes what is before that for a protocol. Free with free(). */
char *path_backing_name(const char *path);
bool path_same_dir(const char *a, const char *b);
/* The same last part in the same directory: this one looks at the disk. */
bool path_is_same_name(const char *a, const char *b);
/* Opens the directory of a path; *base is the name in it. */
int path_open_dir(const char *path, int *dirfd, const char **base,
                  struct qstill_error *err);

#endif
