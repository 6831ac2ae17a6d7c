/* SPDX-License-Identifier: MIT */
/*
 * The error that QEMU's last outgoing migration left behind. From 8.0 or so on
 * (10.0 does, 7.2 does not) QEMU takes it for one of the next load, and of the
 * way back from it.
 */
#ifndef QSTILL_ENGINE_MIGERROR_H
#define QSTILL_ENGINE_MIGERROR_H

#include "base/error.h"

struct session;

/* PRECONDITION: a load would end with it. */
int migerror_check(struct session *s, struct qstill_error *err);

/*
 * After a migration of our own in mode precopy, with its settings still on
 * (without pause-before-switchover nothing is done): QEMU forgets the error at
 * the begin of a next one, which is cancelled at once. Where that cannot be
 * done the error stays, and migerror_check() finds it.
 *
 * Mode background needs it not: whatever ends it on our side, its stream is
 * read to the end, and QEMU 10.0 calls it completed (measured: a pause too
 * long, cancelled, killed and recovered, a full disk, a guest that others
 * resumed). What is left is a failure of QEMU's own, and a store whose file
 * system has no FIFOs: another migration to forget that one by may be what
 * this VM does not survive (modes.c, probe_tcg).
 */
void migerror_clear(struct session *s);

#endif
