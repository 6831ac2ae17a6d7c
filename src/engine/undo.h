/* SPDX-License-Identifier: MIT */
/* What undo shares with recovery. */
#ifndef QSTILL_ENGINE_UNDO_H
#define QSTILL_ENGINE_UNDO_H

#include "base/buf.h"
#include "base/error.h"

struct journal;
struct session;

int undo_recover(struct session *s, struct journal *j, struct buf *text,
                 struct qstill_error *err);

#endif
