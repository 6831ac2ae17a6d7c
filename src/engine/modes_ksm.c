/* SPDX-License-Identifier: MIT */
/* QEMU's own write protection (background-snapshot), where the kernel merges
 * pages. Mode cow looks by itself (memstate/cow_kept.c). */
#include <stdio.h>

#include "modes.h"
#include "session.h"

void modes_probe_ksm(struct session *s, struct mode_report *r)
{
    struct qstill_error why = {0};

    ksm_read_mark(KSM_DIR, &r->ksm);
    if (!r->ksm.on || r->reason[MODE_BACKGROUND][0] || !ksm_may_merge(s->pid))
        return;
    ksm_refuse("the VM's RAM", &why);
    snprintf(r->reason[MODE_BACKGROUND], sizeof(r->reason[MODE_BACKGROUND]),
             "%.255s", why.message);
}

int modes_look_for_ksm(struct session *s, const struct mode_report *planned,
                       struct qstill_error *err)
{
    if (!ksm_ran_since(KSM_DIR, &planned->ksm) || !ksm_may_merge(s->pid))
        return 0;
    ksm_refuse("the VM's RAM", err);
    return err_wrap(err, "it was switched on while the memory was captured");
}
