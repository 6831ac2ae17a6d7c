/* SPDX-License-Identifier: MIT */
#include "quiesce.h"

#include "base/clock.h"
#include "qstill-qmp.h"
#include "session.h"

#define THAW_TRIES    5
#define THAW_PAUSE_MS 1000

static int open_agent(struct session *s, struct qstill_qga **out,
                      struct qstill_error *err)
{
    if (!s->rec.agent) {
        err_set(err, QSTILL_E_PRECONDITION,
                "VM %s was attached without a guest agent socket", s->vm);
        return err_hint(err, "detach it and attach it with --agent SOCK");
    }
    if (qstill_qga_open(out, s->rec.agent, NULL, err) < 0) {
        err_wrap(err, "guest agent");
        return err_hint(err, "is qemu-guest-agent running in the guest?");
    }
    return 0;
}

int quiesce_ping(struct session *s, struct qstill_error *err)
{
    struct qstill_qga *a = NULL;

    if (open_agent(s, &a, err) == 0)
        qstill_qga_ping(a, err);
    qstill_qga_close(a);
    return err->code;
}

int quiesce_freeze(struct session *s, struct quiesce *q,
                   struct qstill_error *err)
{
    struct qstill_qga *a = NULL;

    if (!s->qmp || !s->status.running)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "VM %s does not run, so its agent cannot freeze it",
                       s->vm);
    if (open_agent(s, &a, err) < 0)
        return err->code;
    q->frozen_at_ms = clock_ms();
    if (qstill_qga_freeze(a, 0, &q->filesystems, err) == 0)
        q->frozen = true;
    else
        err_wrap(err, "freezing the guest");
    qstill_qga_close(a);
    return err->code;
}

int quiesce_thaw(struct session *s, struct quiesce *q, struct qstill_error *err)
{
    for (int i = 0; i < THAW_TRIES; i++) {
        struct qstill_qga *a = NULL;

        err->code = 0;
        if (i > 0)
            clock_sleep_ms(THAW_PAUSE_MS);
        if (open_agent(s, &a, err) == 0)
            qstill_qga_thaw(a, 0, NULL, err);
        qstill_qga_close(a);
        if (err->code == 0) {
            q->frozen = false;
            q->frozen_ms = clock_ms() - q->frozen_at_ms;
            return 0;
        }
    }
    err_wrap(err, "thawing the guest");
    return err_hint(err,
                    "thaw it by hand (fsfreeze -u in the guest) or run "
                    "qstill recover %s",
                    s->vm);
}
