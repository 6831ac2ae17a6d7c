/* SPDX-License-Identifier: MIT */
#include "migerror.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "qmp/machine.h"
#include "qmp/migrate.h"
#include "qmp/monitor.h"
#include "session.h"
#include "stream_fifo.h"

#define CANCEL_WAIT_MS 5000

static bool has_error(const struct qmp_migration *mig)
{
    return mig->state == QMP_MIGRATION_FAILED || (mig->error && mig->error[0]);
}

int migerror_check(struct session *s, struct qstill_error *err)
{
    CLEANUP(qmp_migration_fini) struct qmp_migration mig = QMP_MIGRATION_INIT;
    CLEANUP(qmp_machine_fini) struct qmp_machine machine = QMP_MACHINE_INIT;

    if (qmp_migration_read(s->qmp, &mig, err) < 0)
        return err->code;
    if (!has_error(&mig))
        return 0;
    if (qmp_machine_read(s->qmp, &machine, err) < 0)
        return err->code;
    if (machine.version && atoi(machine.version) < 8)
        return 0;
    return err_set(err, QSTILL_E_PRECONDITION,
                   "the last migration of this QEMU failed, and its load "
                   "would end with that error: %s",
                   mig.error && mig.error[0] ? mig.error : mig.status);
}

/* Then a migration stops before it could end. */
static bool pauses(struct session *s)
{
    CLEANUP(qmp_names_fini) struct qmp_names on = QMP_NAMES_INIT;
    struct qstill_error ignored = {0};
    bool yes = false;

    if (qmp_migrate_capabilities_on(s->qmp, &on, &ignored) < 0)
        return false;
    for (size_t i = 0; i < on.count; i++)
        yes = yes || strcmp(on.items[i], "pause-before-switchover") == 0;
    return yes;
}

/* Into a socket that nobody reads, and slowly, so that it comes to no end
 * meanwhile. A socket: of a pipe's writer QEMU would wait for the end. */
static int migrate_for_nothing(struct session *s, int fd,
                               struct qstill_error *err)
{
    struct qmp_parameter slow = {"max-bandwidth", 1};

    if (qmp_migrate_set_parameters(s->qmp, &slow, 1, err) < 0 ||
        qmp_getfd(s->qmp, STREAM_FD_NAME, fd, err) < 0)
        return err->code;
    return qmp_migrate_start(s->qmp, STREAM_FD_NAME, err);
}

/* Not while it is set up: that would be an error again. */
static void cancel(struct session *s)
{
    double deadline = clock_ms() + CANCEL_WAIT_MS;
    struct qstill_error ignored = {0};
    bool on = true;

    while (on && clock_ms() < deadline) {
        CLEANUP(qmp_migration_fini)
        struct qmp_migration mig = QMP_MIGRATION_INIT;

        if (qmp_migration_read(s->qmp, &mig, &ignored) < 0)
            return;
        on = qmp_migration_is_on(mig.state);
        if (on && strcmp(mig.status, "setup") != 0)
            qmp_migrate_cancel(s->qmp, &ignored);
        err_clear(&ignored);
        if (on)
            clock_sleep_ms(2);
    }
}

void migerror_clear(struct session *s)
{
    CLEANUP(closep) int near = -1;
    CLEANUP(closep) int far = -1;
    struct qstill_error why = {0};
    int fds[2];

    if (migerror_check(s, &why) != QSTILL_E_PRECONDITION || !pauses(s) ||
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
        return;
    near = fds[0];
    far = fds[1];
    err_clear(&why);
    if (migrate_for_nothing(s, far, &why) == 0)
        cancel(s);
    err_clear(&why);
    qmp_closefd(s->qmp, STREAM_FD_NAME, &why);
}
