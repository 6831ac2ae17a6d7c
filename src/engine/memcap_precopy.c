/* SPDX-License-Identifier: MIT */
/* Mode precopy until QEMU has stopped the guest. */
#include <string.h>

#include "base/clock.h"
#include "memcap_impl.h"
#include "qmp/monitor.h"
#include "qstill-qmp.h"
#include "session.h"
#include "stream_fifo.h"

#define LONG_DOWNTIME  2000000 /* ms; QEMU's own maximum */
#define PRECOPY_PASSES 6       /* then the guest has to wait */
#define AGE_MAX_MS     60000

int memcap_precopy_start(struct memcap *m, struct qstill_error *err)
{
    /* And before there is a migration, which not every RAM survives. */
    if (memcap_check_amended(m, err) < 0 ||
        qmp_migrate_start(m->s->qmp, STREAM_FD_NAME, err) < 0)
        return err->code;
    m->migrating = m->precopied = true;
    return 0;
}

/* Passes that do not converge: let the guest wait for the last one. */
static int push_precopy(struct memcap *m, const struct qmp_migration *mig,
                        uint32_t max_pause_ms, struct qstill_error *err)
{
    struct qmp_parameter p = {"downtime-limit", LONG_DOWNTIME};

    if (mig->ram_passes < PRECOPY_PASSES || m->precopy_since_pass)
        return 0;
    if (max_pause_ms)
        p.value = max_pause_ms;
    m->precopy_since_pass = mig->ram_passes;
    return qmp_migrate_set_parameters(m->s->qmp, &p, 1, err);
}

/* We may look long after the guest was stopped; a clock that was set meanwhile
 * is not believed. */
static void note_stop(struct memcap *m, const struct qmp_event *event)
{
    double age = clock_unix_ms() - ((double)event->seconds * 1e3 +
                                    (double)event->microseconds / 1e3);

    if (strcmp(event->name, "STOP") == 0)
        m->precopy_stop_ms =
            clock_ms() - (age > 0 && age < AGE_MAX_MS ? age : 0);
}

/* The STOP that came with the end may still be queued. */
static int find_stop(struct memcap *m, double *stop_ms,
                     struct qstill_error *err)
{
    static const char *const wanted[] = {"STOP", NULL};
    struct qmp_event event;
    bool found = true;

    for (int i = 0; found && i < QSTILL_QMP_EVENTS_MAX; i++) {
        if (qmp_wait_event(m->s->qmp, wanted, 0, &event, &found, err) < 0)
            return err->code;
        if (found)
            note_stop(m, &event);
    }
    *stop_ms = m->precopy_stop_ms > 0 ? m->precopy_stop_ms : clock_ms();
    return 0;
}

/* QEMU's own stop has another state. */
static int look_who_stopped(struct memcap *m, bool *by_others,
                            struct qstill_error *err)
{
    struct qmp_status status;

    if (qmp_status_read(m->s->qmp, &status, err) < 0)
        return err->code;
    *by_others = strcmp(status.state, "paused") == 0;
    return 0;
}

int memcap_precopy_stopped(struct memcap *m, uint32_t max_pause_ms,
                           double *stop_ms, bool *by_others,
                           struct qstill_error *err)
{
    CLEANUP(qmp_migration_fini) struct qmp_migration mig = QMP_MIGRATION_INIT;
    static const char *const wanted[] = {"MIGRATION", "STOP", NULL};
    struct qmp_event event;
    bool found = false;

    *stop_ms = 0;
    *by_others = false;
    if (qmp_wait_event(m->s->qmp, wanted, 20, &event, &found, err) < 0 ||
        qmp_migration_read(m->s->qmp, &mig, err) < 0)
        return err->code;
    if (found)
        note_stop(m, &event);
    switch (mig.state) {
    case QMP_MIGRATION_PRE_SWITCHOVER:
        return find_stop(m, stop_ms, err);
    case QMP_MIGRATION_FAILED:
    case QMP_MIGRATION_CANCELLED:
    case QMP_MIGRATION_COMPLETED:
        return memcap_migration_failed(m, &mig, err);
    default:
        if (found && strcmp(event.name, "STOP") == 0 &&
            look_who_stopped(m, by_others, err) < 0)
            return err->code;
        return push_precopy(m, &mig, max_pause_ms, err);
    }
}
