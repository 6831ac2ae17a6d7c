/* SPDX-License-Identifier: MIT */
#include "devices.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>

#include "lent.h"
#include "qmp/migrate.h"
#include "qmp/monitor.h"

int devices_give(struct qstill_qmp *q, int memfd, int64_t *fdset,
                 struct qstill_error *err)
{
    CLEANUP(closep) int wfd = -1;
    char path[64];

    /* QEMU matches the fd's access mode: it opens for writing only. */
    snprintf(path, sizeof(path), "/proc/self/fd/%d", memfd);
    wfd = open(path, O_WRONLY | O_CLOEXEC);
    if (wfd < 0)
        return err_errno(err, errno, "cannot open a memfd for writing");
    return qmp_add_fd(q, wfd, LENT_DEVICES, fdset, err);
}

int devices_save(struct qstill_qmp *q, int memfd, struct qstill_error *err)
{
    struct qstill_error ignored = {0};
    int64_t fdset;

    if (devices_give(q, memfd, &fdset, err) < 0)
        return err->code;
    qmp_save_devices(q, fdset, err);
    qmp_remove_fd(q, fdset, &ignored);
    return err->code;
}
