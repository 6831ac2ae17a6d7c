/* SPDX-License-Identifier: MIT */
#include "lent.h"

#include "qmp/monitor.h"
#include "session.h"

void lent_take_back(const struct session *s)
{
    static const char *const ours[] = {LENT_USERFAULTFD, LENT_DEVICES,
                                       LENT_VMSTATE, NULL};
    struct qstill_error ignored = {0};
    size_t taken = 0, left = 0;

    if (s->lockfd < 0 || !s->qmp)
        return;
    qmp_take_fds_back(s->qmp, ours, &taken, &ignored);
    /* 7.2 closes what was taken back when the VM runs: of a paused one these
     * are no news. */
    if (taken > 0)
        qmp_take_fds_back(s->qmp, ours, &left, &ignored);
    if (taken > left)
        store_note(s->store,
                   "VM %s: took back %zu descriptor(s) that an earlier qstill "
                   "had lent to QEMU",
                   s->vm, taken - left);
}
