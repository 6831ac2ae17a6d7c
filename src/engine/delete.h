/* SPDX-License-Identifier: MIT */
/* What delete shares with recovery. */
#ifndef QSTILL_ENGINE_DELETE_H
#define QSTILL_ENGINE_DELETE_H

#include "base/buf.h"
#include "base/error.h"

struct journal;
struct session;

/* snapshots/.ID.gone: a snapshot that is being removed. */
#define DELETE_GONE_LEN 80
void delete_gone_name(const char *id, char out[DELETE_GONE_LEN]);

/* Removes what has that name: files that nobody reads any more. */
int delete_remove_gone(struct session *s, struct qstill_error *err);

/* All that comes after the journal: right to run again at any time. */
int delete_finish(struct session *s, struct journal *j, struct buf *text,
                  struct qstill_error *err);

/* The merges behind another operation, which is done: a cancel (of the
 * session's rest_job) leaves them for recover, and is no failure. The journal
 * goes. */
int delete_rest(struct session *s, struct journal *j, struct buf *text,
                struct qstill_error *err);

#endif
