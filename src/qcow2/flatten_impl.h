/* SPDX-License-Identifier: MIT */
/* Of the files of a chain that is flattened: what is to be said of them, and
 * who may read what comes of them. */
#ifndef QSTILL_QCOW2_FLATTEN_IMPL_H
#define QSTILL_QCOW2_FLATTEN_IMPL_H

#include "base/buf.h"
#include "chain.h"

/* A line for each: what is marked as damaged, and what keeps `path` from being
 * as readable as the top. */
int flatten_notes(const struct chain *c, const char *path, struct buf *out,
                  struct qstill_error *err);

/*
 * Gives the new file the mode of the top, less the rights of those who may not
 * read each file of the chain, or find it (its folders): an image names its
 * backing file by itself, and whoever made it need not have been allowed to
 * read that. Nor does an ACL that the folder of the new file gives it let
 * anybody else in.
 */
int flatten_set_mode(const struct chain *c, int fd, const char *path,
                     struct qstill_error *err);

#endif
