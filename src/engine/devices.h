/* SPDX-License-Identifier: MIT */
/* The device state of a stopped VM, without its RAM. */
#ifndef QSTILL_ENGINE_DEVICES_H
#define QSTILL_ENGINE_DEVICES_H

#include <stdint.h>

#include "base/error.h"

struct qstill_qmp;

/* Writes it into a memfd that is open for reading and writing. */
int devices_save(struct qstill_qmp *q, int memfd, struct qstill_error *err);

/* The first step of it alone, while the guest still runs: hands the memfd to
 * QEMU, for qmp_save_devices(); qmp_remove_fd() takes *fdset back. */
int devices_give(struct qstill_qmp *q, int memfd, int64_t *fdset,
                 struct qstill_error *err);

#endif
