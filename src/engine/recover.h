/* SPDX-License-Identifier: MIT */
/*
 * Finishing or undoing an operation whose process died: journal.json says
 * which. Every step may run twice, and may itself be cut.
 */
#ifndef QSTILL_ENGINE_RECOVER_H
#define QSTILL_ENGINE_RECOVER_H

#include "base/buf.h"
#include "base/error.h"

struct session;

/* Does what the journal asks for, if there is one; the session holds the lock.
 * `text` (may be NULL) gets lines for people. */
int recover_session(struct session *s, struct buf *text,
                    struct qstill_error *err);

/* For verbs that only read: recovers when there is a journal, or a thaw is
 * owed, and nobody holds the lock; a failure is told as a note and is no error
 * here. */
void recover_if_abandoned(struct qstill_store *store, const char *vm, int vmfd);

#endif
