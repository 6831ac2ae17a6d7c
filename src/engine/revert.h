/* SPDX-License-Identifier: MIT */
/* What revert shares with recovery. */
#ifndef QSTILL_ENGINE_REVERT_H
#define QSTILL_ENGINE_REVERT_H

#include "base/buf.h"
#include "base/error.h"

struct journal;
struct session;

int revert_recover(struct session *s, struct journal *j, struct buf *text,
                   struct qstill_error *err);

#endif
