/* SPDX-License-Identifier: MIT */
/* The machine type of a command line. */
#ifndef QSTILL_ENGINE_LAUNCH_MACHINE_H
#define QSTILL_ENGINE_LAUNCH_MACHINE_H

#include "base/error.h"

struct launch_args;

/*
 * Makes the type `type` ("pc-q35-7.2") where the command line has an alias of
 * that family ("q35", or none for "pc"), which another QEMU resolves to another
 * version. Any other type stays.
 */
int launch_machine_pin(struct launch_args *args, const char *type,
                       struct qstill_error *err);

#endif
