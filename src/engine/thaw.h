/* SPDX-License-Identifier: MIT */
/*
 * A thaw that is owed: the guest was frozen, for a create or in the memory
 * that a revert brought back, and its agent has not thawed it. While the
 * operation is under way its journal says so; what cannot be had by its end
 * stands in vm.json. Each verb tries again, and none is hindered. It is
 * forgotten when the guest is thawed, or gone with its QEMU.
 */
#ifndef QSTILL_ENGINE_THAW_H
#define QSTILL_ENGINE_THAW_H

#include "base/error.h"

struct journal;
struct session;

/* Thaws what the journal says, if it runs. `deaf`: QMP does not answer. *err
 * is why not; then the journal still says so. */
int thaw_journaled(struct session *s, struct journal *j, bool deaf,
                   struct qstill_error *err);
/* From the journal into vm.json, which is written. */
int thaw_owe(struct session *s, struct journal *j, struct qstill_error *err);

/* Once, quickly, and tells what came of it; takes the lock when the session
 * has none and nobody else holds it. */
void thaw_retry(struct session *s);
/* UNREACHABLE, with what to do, when one is owed. */
int thaw_check(const struct session *s, struct qstill_error *err);

#endif
