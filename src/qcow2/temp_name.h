/* SPDX-License-Identifier: MIT */
/*
 * Names of files that are not finished: ".STEM.TOKEN.SUFFIX", beside the name
 * that they will get. The token is random, so that whatever bears such a name
 * is a file of ours. (No time tells that: not all filesystems know when a file
 * was born, and clocks go back.)
 */
#ifndef QSTILL_QCOW2_TEMP_NAME_H
#define QSTILL_QCOW2_TEMP_NAME_H

#include <stdbool.h>

#include "base/error.h"
#include "base/io.h"

/* Of the result at `path`; malloc'ed. */
int temp_name_make(const char *path, const char *suffix, char **out,
                   struct qstill_error *err);
bool temp_name_is(const char *path, const char *suffix);

/*
 * Removes those of the result `name` in the directory that the dead have left.
 * BUSY: one is being written.
 */
int temp_name_sweep(const struct io *io, int dirfd, const char *name,
                    const char *suffix, struct qstill_error *err);

#endif
