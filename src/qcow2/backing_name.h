/* SPDX-License-Identifier: MIT */
/* Backing file names that are no plain ones, which only QEMU opens: json:{...},
 * file:NAME, nbd://... (chain_resolve() refuses them). */
#ifndef QSTILL_QCOW2_BACKING_NAME_H
#define QSTILL_QCOW2_BACKING_NAME_H

#include "base/error.h"

/* Gets the path of a file that is named. Below 0 ends the walk: an error. */
typedef int backing_file_fn(void *user, const char *path,
                            struct qstill_error *err);

/*
 * Calls `found` for each file that `name`, stored in (or seen through) the
 * image at `overlay`, may lead QEMU to: relative ones are taken from there.
 * PRECONDITION: a json: that cannot be read, so that nobody can tell. What
 * leads to no file here calls nothing.
 */
int backing_name_files(const char *overlay, const char *name,
                       backing_file_fn *found, void *user,
                       struct qstill_error *err);

#endif
