/* SPDX-License-Identifier: MIT */
/* Undoing a create from its journal: by the create itself, or by recovery. */
#ifndef QSTILL_ENGINE_UNWIND_H
#define QSTILL_ENGINE_UNWIND_H

#include "base/buf.h"
#include "base/error.h"

struct journal;
struct session;

/* A file of this size (bytes) is kept in the VM's directory while a snapshot
 * is made, so that a full filesystem leaves room for the journal. */
#define UNWIND_RESERVE      (256u << 10)
#define UNWIND_RESERVE_NAME ".reserve"

/* snapshots/.ID.tmp, where a snapshot is made. */
#define UNWIND_TMP_LEN 80
void unwind_tmp_name(const char *id, char out[UNWIND_TMP_LEN]);

/*
 * The VM runs again if it ran, its new heads are folded back, what was made is
 * removed, the guest is thawed, the journal is gone. Goes on after a failure
 * of one step; the first one is returned. Heads that cannot be folded back
 * stay as heads on a hidden layer: nothing is lost. A thaw that fails is told
 * at the end, and owed (thaw.h): the journal is gone all the same.
 */
int unwind_create(struct session *s, struct journal *j, struct buf *text,
                  struct qstill_error *err);
/* Only lets the guest run and thaws it; for use before unwind_create().
 * *unthawed is why it could not be thawed: that is no failure when it is owed
 * from now on. */
int unwind_resume(struct session *s, struct journal *j,
                  struct qstill_error *unthawed, struct qstill_error *err);
/* Behind an unwind_resume() that QEMU did not answer (`err`): a `stop` that it
 * was told takes effect when its storage answers again, and nobody else would
 * let the guest run then. Waits for that, minutes; `err` is cleared when the
 * guest runs, and says what to do when not. */
int unwind_await(struct session *s, const struct journal *j,
                 struct qstill_error *err);
/* QMP cannot be had, for the reason in *err, which is returned: the guest is
 * thawed at least, through its agent's own socket, and the journal says so. */
int unwind_thaw(struct session *s, struct journal *j, struct buf *text,
                struct qstill_error *err);

#endif
