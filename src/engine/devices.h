/* SPDX-License-Identifier: MIT */
/* The device state of a stopped VM, without its RAM. */
#ifndef QSTILL_ENGINE_DEVICES_H
#define QSTILL_ENGINE_DEVICES_H

#include "base/error.h"

struct qstill_qmp;

/* Writes it into a memfd that is open for reading and writing. */
int devices_save(struct qstill_qmp *q, int memfd, struct qstill_error *err);

#endif
