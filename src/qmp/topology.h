/* SPDX-License-Identifier: MIT */
/*
 * What a VM consists of, as a list of lines that can be kept and compared: a
 * device state fits a QEMU whose list is the same.
 */
#ifndef QSTILL_QMP_TOPOLOGY_H
#define QSTILL_QMP_TOPOLOGY_H

#include <stdbool.h>

#include "qmp/migrate.h"

/*
 * One line per device, in QEMU's order: "BUS/TYPE[,ID][@ADDRESS] #SUM", the sum
 * being that of its properties, but for the block node that it uses now and for
 * registers that the guest's firmware writes; then one per memory device
 * (DIMM). Free with qmp_names_fini().
 */
int qmp_topology_read(struct qstill_qmp *q, struct qmp_names *out,
                      struct qstill_error *err);

/*
 * The same; *before gets the same lines with the sums that snapshots of before
 * this rule have: firmware's registers count as well. Each of both lists is to
 * be freed.
 */
int qmp_topology_read_both(struct qstill_qmp *q, struct qmp_names *out,
                           struct qmp_names *before, struct qstill_error *err);

/* The devices of the text of `info qtree`, appended; for tests, too. FAILED
 * when there are none in it. */
int qmp_topology_parse(const char *text, struct qmp_names *out,
                       struct qstill_error *err);
int qmp_topology_parse_before(const char *text, struct qmp_names *out,
                              struct qstill_error *err);

#endif
