/* SPDX-License-Identifier: MIT */
/* Within undo.c and undo_delete.c. */
#ifndef QSTILL_ENGINE_UNDO_IMPL_H
#define QSTILL_ENGINE_UNDO_IMPL_H

#include "base/buf.h"
#include "base/error.h"

struct journal;
struct layers;
struct session;

/* The snapshot that stands below a layer: the nearest one that owns a layer of
 * its chain. NULL: none. *sure (unless NULL): false when it may be another one,
 * since a file that is nobody's lies between: while a VM runs, a merge gives a
 * snapshot a new file, and what is kept for undo stays on the old one. */
const char *undo_owner_below(const struct session *s, const struct layers *all,
                             const char *path, bool *sure);

/* Goes on with one that is journaled. */
int undo_delete(struct session *s, struct journal *j, struct buf *text,
                struct qstill_error *err);

#endif
