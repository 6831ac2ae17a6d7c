/* SPDX-License-Identifier: MIT */
/*
 * Changes which backing file an image names, in a way that a power cut leaves
 * it either old or new: the new name is written to a free place of the header
 * cluster and made durable, then one sector is replaced. The caller holds the
 * image's locks, and everything that the new backing file must hold is
 * durable. An image whose header extensions do not fit a sector is refused
 * (PRECONDITION), unchanged.
 */
#ifndef QSTILL_QCOW2_REPOINT_H
#define QSTILL_QCOW2_REPOINT_H

#include "base/error.h"
#include "base/io.h"
#include "header.h"

/* `backing` NULL: no backing file from now on. `name` is for messages. */
int qcow2_repoint(const struct io *io, int fd, const char *name,
                  const char *backing, const char *format,
                  struct qstill_error *err);

/* Gives a header that was just read another backing name, or none (NULL). */
void qcow2_header_rename(struct qcow2_header *h, const char *backing,
                         const char *format);

/*
 * The same for a header whose fields the caller has changed, too: its
 * name is set by qcow2_header_rename(); backing_offset and
 * backing_len must still be those on disk and are updated. Everything that the
 * new header refers to must be durable; `old` says where the name stands now.
 */
int qcow2_header_replace(const struct io *io, int fd, const char *name,
                         struct qcow2_header *h, struct qstill_error *err);

/* Whether qcow2_repoint() could; needs no more than to read. */
int qcow2_repointable(const struct io *io, int fd, const char *name,
                      const char *backing, const char *format,
                      struct qstill_error *err);

/* Whether it could: the checks of qcow2_header_replace() without a write. */
int qcow2_header_replaceable(const struct qcow2_header *h, const char *name,
                             struct qstill_error *err);

#endif
