/* SPDX-License-Identifier: MIT */
/*
 * Devices of a VM whose memory others than QEMU write to, or give back, and
 * which a capture has to know before it begins.
 */
#ifndef QSTILL_QMP_HAZARDS_H
#define QSTILL_QMP_HAZARDS_H

#include <stdbool.h>

#include "base/error.h"

struct qstill_qmp;

/* Each: TYPE and id of the first such device ("vhost-user-blk-pci 'd0'"), or
 * "" when there is none. */
#define QMP_HAZARD_SIZE 96
struct qmp_hazards {
    char vfio[QMP_HAZARD_SIZE];
    char vhost[QMP_HAZARD_SIZE]; /* vhost-user and vhost-vdpa, also of a nic:
                                    the kernel's own vhost is none */
    char ivshmem[QMP_HAZARD_SIZE];
    char virtio_mem[QMP_HAZARD_SIZE];
    char virtio_pmem[QMP_HAZARD_SIZE]; /* QEMU migrates nothing of its memory */
    char balloon[QMP_HAZARD_SIZE];
    bool balloon_reports; /* the guest gives free pages back all the time */
};

int qmp_hazards_read(struct qstill_qmp *q, struct qmp_hazards *out,
                     struct qstill_error *err);
/* From the texts of `info qtree` and `info network`; no I/O. */
void qmp_hazards_parse(const char *qtree, const char *network,
                       struct qmp_hazards *out);

#endif
