/* SPDX-License-Identifier: MIT */
/* The RAM of a VM that runs, as a capture or a restore needs it. */
#ifndef QSTILL_ENGINE_VMRAM_H
#define QSTILL_ENGINE_VMRAM_H

#include "memstate/capture.h"
#include "qmp/ram.h"

struct session;

/* By us, beside the guest. */
enum vmram_use { VMRAM_READ, VMRAM_WRITTEN };

/*
 * The RAM blocks of QEMU with their addresses: all that a restore needs.
 * Blocks that machine init makes anew and that no address leads to are left
 * out, those without a name also in `ram`. PRECONDITION names one that cannot
 * be found. Free with free().
 */
int vmram_find(struct session *s, enum vmram_use use, struct qmp_ram *ram,
               struct capture_source **out, size_t *count,
               struct qstill_error *err);
/* Whether the RAM is what `then` says: BUSY names a block that was plugged in,
 * taken out or changed since. One command of QEMU's. */
int vmram_check(struct session *s, const struct qmp_ram *then,
                struct qstill_error *err);

#endif
