/* SPDX-License-Identifier: MIT */
/*
 * The pause of a create with memory: who stops the guest and who lets it run.
 * Others may do both at the VM's monitor, at any time.
 */
#include <string.h>

#include "create_impl.h"
#include "qmp/machine.h"
#include "ready.h"

static int resumed_by_others(struct create *c, struct qstill_error *err)
{
    err_set(err, QSTILL_E_BUSY,
            "VM %s was resumed by somebody else while its memory was taken",
            c->vm);
    return err_hint(err, "create the snapshot again, with nobody else at the "
                         "VM's monitor");
}

/* Somebody has stopped the guest since the plan, and means it: it is not us who
 * let it run again. Only a frozen one must run to be thawed. */
int create_stopped_by_others(struct create *c, struct qstill_error *err)
{
    if (qmp_status_read(c->s.qmp, &c->s.status, err) < 0)
        return err->code;
    if (ready_has_halted(&c->s)) {
        c->stopped = c->was_running = c->j.was_running = false;
        return ready_state(&c->s, true, err);
    }
    if (c->quiesce.frozen)
        return 0;
    c->stopped = c->was_running = c->j.was_running = false;
    if (c->mode == MODE_COW || c->mode == MODE_PAUSED)
        return 0;
    err_set(err, QSTILL_E_BUSY,
            "VM %s was stopped by somebody else, and with mode %s QEMU would "
            "not let it stay so",
            c->vm, mode_name(c->mode));
    return err_hint(err, "create the snapshot again: of a paused VM it is "
                         "made in another mode");
}

/* What others did before does not count; from here on nobody but us may start
 * the guest until the instant is taken. */
int create_stop_guest(struct create *c, struct qstill_error *err)
{
    bool before, now = false;

    c->stop_ms = clock_ms();
    if (qmp_was_resumed(c->s.qmp, &before, err) < 0 ||
        qmp_was_reset(c->s.qmp, &before, err) < 0)
        return err->code;
    if (c->was_running) {
        if (qmp_was_stopped(c->s.qmp, &before, err) < 0)
            return err->code;
        c->stopped = true;
        /* its own event comes before its reply */
        if (qmp_stop(c->s.qmp, 0, err) < 0 ||
            qmp_was_stopped(c->s.qmp, &now, err) < 0)
            return err->code;
        return now ? 0 : create_stopped_by_others(c, err);
    }
    if (qmp_status_read(c->s.qmp, &c->s.status, err) < 0)
        return err->code;
    return c->s.status.running ? resumed_by_others(c, err) : 0;
}

/* RAM and device state, or RAM and disks, would not be of one instant. QEMU
 * tells of it before the guest runs. */
int create_check_stopped(struct create *c, struct qstill_error *err)
{
    bool resumed, reset;

    if (qmp_was_resumed(c->s.qmp, &resumed, err) < 0 ||
        qmp_was_reset(c->s.qmp, &reset, err) < 0)
        return err->code;
    if (resumed)
        return resumed_by_others(c, err);
    return reset ? err_set(err, QSTILL_E_BUSY,
                           "VM %s was reset by somebody else while its memory "
                           "was taken",
                           c->vm)
                 : 0;
}

/* `background` stops the guest by itself at its instant: that there was a guest
 * to stop means that somebody had resumed it since we did. */
int create_check_not_stopped_again(struct create *c, struct qstill_error *err)
{
    bool again;

    if (qmp_was_stopped(c->s.qmp, &again, err) < 0)
        return err->code;
    return again ? resumed_by_others(c, err) : 0;
}

/* precopy: QEMU takes no `cont` from its stop on, but what starts the guest
 * without one (a debugger) is not asked. What others did before does not count
 * here either. */
int create_check_stopped_by_qemu(struct create *c, struct qstill_error *err)
{
    bool before;

    if (qmp_was_resumed(c->s.qmp, &before, err) < 0 ||
        qmp_status_read(c->s.qmp, &c->s.status, err) < 0)
        return err->code;
    return strcmp(c->s.status.state, "finish-migrate") == 0
               ? 0
               : resumed_by_others(c, err);
}

int create_resume_guest(struct create *c, struct qstill_error *err)
{
    if (!c->stopped)
        return 0;
    if (qmp_cont(c->s.qmp, err) < 0)
        return err_wrap(err, "resuming the guest");
    c->stopped = false;
    c->pause_ms = clock_ms() - c->stop_ms;
    return 0;
}
