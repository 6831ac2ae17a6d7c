/* SPDX-License-Identifier: MIT */
/*
 * Devices and CPUs that were plugged into a VM while it ran. A new process that
 * is started from its command line is without them, and could not load a memory
 * that has them: that comes out when the old process is gone.
 */
#ifndef QSTILL_ENGINE_PLUGGED_H
#define QSTILL_ENGINE_PLUGGED_H

#include "base/error.h"

struct manifest;
struct session;

/*
 * Whether a start from the recorded command line would make the snapshot's
 * devices and CPUs: PRECONDITION names what it would not. Devices are known by
 * their ids; of those without one there must be enough of each type. Of a VM
 * that answers.
 */
int plugged_check(struct session *s, const struct manifest *m,
                  struct qstill_error *err);
/* The same of those that the VM has now, but for disks. */
int plugged_check_now(struct session *s, struct qstill_error *err);

#endif
