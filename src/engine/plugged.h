/* SPDX-License-Identifier: MIT */
/*
 * Devices and CPUs that were plugged into a VM while it ran, or taken out of
 * it. A new process that is started from its command line is without the ones,
 * and has the others: it could not load a memory, or would be another machine.
 * That comes out, if ever, when the old process is gone.
 */
#ifndef QSTILL_ENGINE_PLUGGED_H
#define QSTILL_ENGINE_PLUGGED_H

#include "base/error.h"

struct manifest;
struct session;

/*
 * Whether a start from the recorded command line would make the snapshot's
 * devices and CPUs, and no others: PRECONDITION names what differs. Devices are
 * known by their ids; of those without one the numbers count. Of a VM that is
 * off, what the snapshot says of them (userdevs.h).
 */
int plugged_check(struct session *s, const struct manifest *m,
                  struct qstill_error *err);
/* Whether it would make those that the VM has now; of disks that can be written
 * others tell. */
int plugged_check_now(struct session *s, struct qstill_error *err);
/* And whether it would make others than those. */
int plugged_check_taken_out(struct session *s, struct qstill_error *err);

#endif
