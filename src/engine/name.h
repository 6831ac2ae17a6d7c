/* SPDX-License-Identifier: MIT */
/* Names of VMs and snapshots, and the ids that we make ourselves. */
#ifndef QSTILL_ENGINE_NAME_H
#define QSTILL_ENGINE_NAME_H

#include "base/error.h"

#define NAME_MAX_LEN 64
#define ID_LEN       12

/* [A-Za-z0-9._-]{1,64}, not "." or "..", no leading '.' or '-'; else USAGE.
 * `what` ("VM name") is for the message. */
int name_check(const char *what, const char *name, struct qstill_error *err);

/* A random id of ID_LEN characters [a-z0-9] that starts with a letter. */
int id_new(char out[ID_LEN + 1], struct qstill_error *err);

#endif
