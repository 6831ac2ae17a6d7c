/* SPDX-License-Identifier: MIT */
#include "quiesce.h"

#include "base/clock.h"
#include "qmp/channel.h"
#include "qmp/monitor.h"
#include "qstill-qmp.h"
#include "session.h"
#include "start.h"

#define THAW_TRIES    5
#define DEAF_TRIES    2 /* QEMU itself hangs, most likely */
#define THAW_PAUSE_MS 1000
#define THAW_MS       60000 /* nothing is begun after that */
/* A freeze writes out all that is dirty; nobody wants to wait for more. */
#define FREEZE_MS 30000

/* For what is tried again and again. */
#define ONCE_MS 2000
/* For what nobody has asked for. */
#define GLANCE_MS 500

/* `o` may be NULL. */
static int open_agent(struct session *s, const struct qstill_qga_options *o,
                      struct qstill_qga **out, struct qstill_error *err)
{
    if (!s->rec.agent) {
        err_set(err, QSTILL_E_PRECONDITION,
                "VM %s was attached without a guest agent socket", s->vm);
        return err_hint(err, "detach it and attach it with --agent SOCK");
    }
    if (qstill_qga_open(out, s->rec.agent, o, err) < 0) {
        err_wrap(err, "guest agent");
        return err_hint(err, "is qemu-guest-agent running in the guest?");
    }
    return 0;
}

static int check_thawed(struct session *s, struct qstill_qga *a,
                        struct qstill_error *err)
{
    bool frozen = false;

    if (qstill_qga_is_frozen(a, &frozen, err) < 0)
        return err_wrap(err, "guest agent");
    if (!frozen)
        return 0;
    err_set(err, QSTILL_E_BUSY,
            "somebody else has frozen the guest of VM %s already", s->vm);
    return err_hint(err, "a backup may be under way: wait until it thaws the "
                         "guest, or leave --quiesce out");
}

int quiesce_check(struct session *s, struct qstill_error *err)
{
    struct qstill_qga *a = NULL;

    if (open_agent(s, NULL, &a, err) == 0)
        check_thawed(s, a, err);
    qstill_qga_close(a);
    return err->code;
}

/* An agent that says so and has not done it is no help. */
static int confirm(struct qstill_qga *a, struct quiesce *q,
                   struct qstill_error *err)
{
    bool frozen = false;

    if (q->filesystems == 0)
        return 0;
    if (qstill_qga_is_frozen(a, &frozen, err) < 0)
        return err->code;
    if (frozen)
        return 0;
    return err_set(err, QSTILL_E_FAILED,
                   "the guest agent says that it froze %u filesystems, but "
                   "its status is thawed",
                   q->filesystems);
}

/* Somebody may have been faster. */
static void freeze_failed(struct session *s, struct qstill_qga *a,
                          struct quiesce *q, struct qstill_error *err)
{
    struct qstill_error why = {0};

    q->sent = err->code != QSTILL_E_PRECONDITION;
    if (!q->sent && check_thawed(s, a, &why) == QSTILL_E_BUSY)
        *err = why;
    else
        err_wrap(err, "freezing the guest");
}

int quiesce_freeze(struct session *s, uint32_t timeout_ms, struct quiesce *q,
                   struct qstill_error *err)
{
    struct qstill_error unknown = {0};
    struct qstill_qga *a = NULL;

    if (!s->qmp || !s->status.running)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "VM %s does not run, so its agent cannot freeze it",
                       s->vm);
    if (open_agent(s, NULL, &a, err) < 0)
        return err->code;
    qstill_qga_count_filesystems(a, &q->mounted, &unknown);
    q->frozen_at_ms = clock_ms();
    q->sent = true;
    if (qstill_qga_freeze(a, timeout_ms ? timeout_ms : FREEZE_MS,
                          &q->filesystems, err) == 0 &&
        confirm(a, q, err) == 0)
        q->frozen = true;
    else
        freeze_failed(s, a, q, err);
    qstill_qga_close(a);
    return err->code;
}

bool quiesce_has_socket(const struct session *s)
{
    return s->rec.agent && (!s->qmp || !channel_is_dead(s->rec.agent));
}

int quiesce_reach(struct session *s, struct qstill_error *err)
{
    struct qstill_qga_options o = QSTILL_QGA_OPTIONS_INIT;
    struct qstill_qga *a = NULL;

    o.timeout_ms = ONCE_MS;
    open_agent(s, &o, &a, err);
    qstill_qga_close(a);
    return err->code;
}

bool quiesce_is_frozen(struct session *s)
{
    struct qstill_qga_options o = QSTILL_QGA_OPTIONS_INIT;
    struct qstill_error ignored = {0};
    struct qstill_qga *a = NULL;
    bool frozen = false;

    o.timeout_ms = GLANCE_MS;
    if (open_agent(s, &o, &a, &ignored) == 0)
        qstill_qga_is_frozen(a, &frozen, &ignored);
    qstill_qga_close(a);
    return frozen;
}

/* A guest that was frozen is gone with its QEMU. */
static bool is_gone(const struct quiesce *q)
{
    return q->pid > 0 && start_time_of(q->pid) != q->pid_start;
}

static int thaw_by(struct session *s, const struct qstill_qga_options *o,
                   uint32_t *count, struct qstill_error *err)
{
    struct qstill_qga *a = NULL;

    err_clear(err);
    if (open_agent(s, o, &a, err) == 0)
        qstill_qga_thaw(a, o->timeout_ms, count, err);
    qstill_qga_close(a);
    return err->code;
}

/* Leaves no thaw behind that would end somebody else's freeze one day. */
int quiesce_thaw_once(struct session *s, struct qstill_error *err)
{
    struct qstill_qga_options o = QSTILL_QGA_OPTIONS_INIT;

    o.timeout_ms = ONCE_MS;
    return thaw_by(s, &o, NULL, err);
}

int quiesce_thaw(struct session *s, struct quiesce *q, struct qstill_error *err)
{
    struct qstill_qga_options o = QSTILL_QGA_OPTIONS_INIT;
    struct qstill_error second = {0};
    int tries = q->deaf ? DEAF_TRIES : THAW_TRIES;
    uint32_t count = q->filesystems;
    double begun = clock_ms();

    o.thaw = true;
    for (int i = 0; i < tries && clock_ms() - begun < THAW_MS; i++) {
        if (i > 0)
            clock_sleep_ms(THAW_PAUSE_MS);
        if (is_gone(q) || thaw_by(s, &o, &count, err) == 0) {
            /* guest-fsfreeze-thaw's own sign of that; it may have been a try
             * of ours whose answer was lost, which nobody can tell */
            q->early = count < q->filesystems;
            q->frozen = false;
            q->frozen_ms = clock_ms() - q->frozen_at_ms;
            return err_clear(err);
        }
    }
    if (s->qmp && !q->deaf)
        qmp_send_sysrq(s->qmp, "j", &second);
    err_wrap(err, "thawing the guest");
    return err_hint(err,
                    "the guest may still be frozen: qstill recover %s, or "
                    "fsfreeze -u in the guest",
                    s->vm);
}
