/* SPDX-License-Identifier: MIT */
/*
 * Devices that were plugged into a VM while it ran. A new process that is
 * started from its command line is without them, and could not load a memory
 * that has them: that comes out when the old process is gone.
 */
#ifndef QSTILL_ENGINE_PLUGGED_H
#define QSTILL_ENGINE_PLUGGED_H

#include <stddef.h>

#include "base/error.h"

struct session;

/*
 * Whether a start from the recorded command line would make these devices
 * (lines of qmp/topology.h): PRECONDITION names one that it would not. Known by
 * their ids, so a device that was plugged in without one is not found. Of a VM
 * that answers.
 */
int plugged_check(struct session *s, char *const *devices, size_t count,
                  struct qstill_error *err);
/* The same of those that the VM has now. */
int plugged_check_now(struct session *s, struct qstill_error *err);

#endif
