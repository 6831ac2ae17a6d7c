/* SPDX-License-Identifier: MIT */
/*
 * The human monitor's texts about RAM, parsed. No I/O, so that they can be
 * fuzzed. The texts are no stable interface: columns are found by their names,
 * unknown ones and unknown lines are passed over; what cannot be understood at
 * all is FAILED, with the line.
 */
#ifndef QSTILL_QMP_RAMTEXT_H
#define QSTILL_QMP_RAMTEXT_H

#include "ram.h"

/* Rows taken of one text: a VM has some tens of blocks, a few hundred ranges.
 */
#define RAMTEXT_ROWS_MAX 4096

int ramtext_blocks(const char *text, struct qmp_ram *out,
                   struct qstill_error *err);
int ramtext_map(const char *text, struct qmp_ram_map *out,
                struct qstill_error *err);
int ramtext_roms(const char *text, struct qmp_roms *out,
                 struct qstill_error *err);
/* NOT_FOUND when the text says that no RAM is there. */
int ramtext_hva(const char *text, uint64_t *hva, char region[QMP_REGION_MAX],
                struct qstill_error *err);

#endif
