/* SPDX-License-Identifier: MIT */
/* How the command starts a VM's QEMU process when the library asks for it. */
#ifndef QSTILL_CLI_LAUNCH_H
#define QSTILL_CLI_LAUNCH_H

#include "qstill.h"

/* A qstill_launch_fn; `user` is not used. */
int cli_launch(void *user, const struct qstill_launch *launch, int *pid,
               struct qstill_error *err);

#endif
