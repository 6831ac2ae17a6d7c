/* SPDX-License-Identifier: MIT */
#include "thaw.h"

#include "base/clock.h"
#include "journal.h"
#include "qmp/channel.h"
#include "quiesce.h"
#include "session.h"
#include "start.h"

int thaw_journaled(struct session *s, struct journal *j, bool deaf,
                   struct qstill_error *err)
{
    struct quiesce q = {.pid = (int)j->pid,
                        .pid_start = j->pid_start,
                        .deaf = deaf,
                        .frozen = true,
                        .frozen_at_ms = clock_ms()};

    if (j->freezing && j->was_running && quiesce_thaw(s, &q, err) == 0)
        j->freezing = false;
    return err->code;
}

int thaw_owe(struct session *s, struct journal *j, struct qstill_error *err)
{
    s->rec.thaw = (struct vm_thaw){true, j->pid, j->pid_start};
    if (vmrecord_save(s->vmfd, &s->rec, err) < 0)
        return err->code;
    j->freezing = false;
    return 0;
}

static bool is_gone(const struct session *s)
{
    const struct vm_thaw *t = &s->rec.thaw;

    return t->pid ? start_time_of((int)t->pid) != t->pid_start
                  : channel_is_dead(s->rec.qmp);
}

void thaw_retry(struct session *s)
{
    struct qstill_error why = {0};

    if (!s->rec.thaw.owed)
        return;
    if (!is_gone(s)) {
        if (quiesce_thaw_once(s, &why) < 0) {
            store_note(s->store, "the guest of VM %s may still be frozen: %s",
                       s->vm, why.message);
            return;
        }
        store_note(s->store,
                   "the guest of VM %s, which was still frozen, is "
                   "thawed now",
                   s->vm);
    }
    s->rec.thaw = (struct vm_thaw){0};
    vmrecord_save(s->vmfd, &s->rec, &why);
}

int thaw_check(const struct session *s, struct qstill_error *err)
{
    if (!s->rec.thaw.owed)
        return 0;
    err_set(err, QSTILL_E_UNREACHABLE,
            "the guest of VM %s may still be frozen: its agent has not thawed "
            "it",
            s->vm);
    return err_hint(err,
                    "fsfreeze -u in the guest; once its agent answers, any "
                    "verb of qstill thaws it, qstill recover %s for one",
                    s->vm);
}
