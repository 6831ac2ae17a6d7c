/* SPDX-License-Identifier: MIT */
/* Keeps a process that is to become QEMU to what the one before it had. Safe
 * between fork and exec. */
#ifndef QSTILL_CLI_CONFINE_H
#define QSTILL_CLI_CONFINE_H

#include "qstill.h"

/* Both return 0, or -1 with errno; the first before another user is taken, the
 * second after. */
int confine_before_user(const struct qstill_launch *l, bool change_user);
int confine_after_user(const struct qstill_launch *l, bool change_user);

#endif
