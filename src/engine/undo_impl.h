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
 * its chain. NULL: none. */
const char *undo_owner_below(const struct layers *all, const char *path);

/* Goes on with one that is journaled. */
int undo_delete(struct session *s, struct journal *j, struct buf *text,
                struct qstill_error *err);

#endif
