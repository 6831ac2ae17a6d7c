/* SPDX-License-Identifier: MIT */
/*
 * Unplugs that the guest has not acknowledged. Of those that go by ACPI (PCI
 * devices of pc, and of q35 below its root ports and bridges) QEMU takes the
 * device away at the next machine reset, whoever resets it; those by PCIe or
 * SHPC, of CPUs and of DIMMs outlive a reset (measured on 7.2 and 10.0). No
 * command tells of them: a second device_del asks the guest again, and where
 * none is under way it begins one.
 */
#ifndef QSTILL_QMP_UNPLUG_H
#define QSTILL_QMP_UNPLUG_H

#include "qmp/migrate.h"

/* Where it is to be seen. */
struct qmp_unplug {
    uint64_t registers; /* I/O port; 0: this machine has none */
    unsigned buses;     /* at most; more are none that count */
    struct qmp_names devices;
};
#define QMP_UNPLUG_INIT                                                        \
    {                                                                          \
        0                                                                      \
    }
int qmp_unplug_find(struct qstill_qmp *q, struct qmp_unplug *out,
                    struct qstill_error *err);
void qmp_unplug_fini(struct qmp_unplug *u);

/*
 * PRECONDITION names a device that the next reset would take away. While the
 * guest runs only the bus is looked at that it has last selected, which changes
 * nothing; of a guest that stands, all are: the register that selects one is
 * written, and put back.
 */
int qmp_unplug_check(struct qstill_qmp *q, const struct qmp_unplug *u,
                     bool stands, struct qstill_error *err);

#endif
