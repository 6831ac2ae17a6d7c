/* SPDX-License-Identifier: MIT */
/*
 * Migration as a means to capture and restore, and the device state alone.
 */
#ifndef QSTILL_QMP_MIGRATE_H
#define QSTILL_QMP_MIGRATE_H

#include "base/error.h"

struct qstill_qmp;

struct qmp_names {
    size_t count;
    char **items;
};
#define QMP_NAMES_INIT                                                         \
    {                                                                          \
        0                                                                      \
    }
void qmp_names_fini(struct qmp_names *n);

/* --- settings */
struct qmp_capability {
    const char *name;
    bool on;
};
/* Sets them all or none. PRECONDITION names a capability that this QEMU does
 * not know; FAILED is QEMU's refusal (one that the kernel does not allow). */
int qmp_migrate_set_capabilities(struct qstill_qmp *q,
                                 const struct qmp_capability *caps,
                                 size_t count, struct qstill_error *err);
int qmp_migrate_knows_capability(struct qstill_qmp *q, const char *name,
                                 bool *knows, struct qstill_error *err);
/* Names of the capabilities that are on now: what must be off can be found and
 * put back later. */
int qmp_migrate_capabilities_on(struct qstill_qmp *q, struct qmp_names *out,
                                struct qstill_error *err);

struct qmp_parameter {
    const char *name; /* "max-bandwidth", "downtime-limit", ... */
    int64_t value;
};
/* As for capabilities. */
int qmp_migrate_set_parameters(struct qstill_qmp *q,
                               const struct qmp_parameter *params, size_t count,
                               struct qstill_error *err);
int qmp_migrate_get_parameter(struct qstill_qmp *q, const char *name,
                              int64_t *out, struct qstill_error *err);
/* One that is a text: malloc'ed; "" when it is not set, and sets none. */
int qmp_migrate_set_text(struct qstill_qmp *q, const char *name,
                         const char *value, struct qstill_error *err);
int qmp_migrate_get_text(struct qstill_qmp *q, const char *name, char **out,
                         struct qstill_error *err);

/* --- outgoing. The fd was given with qmp_getfd() and is consumed. Returns when
 * QEMU has begun; follow with qmp_migration_read() or MIGRATION events.
 * PRECONDITION: background-snapshot is on and the VM neither runs nor is paused
 * ("prelaunch", "postmigrate", ...): QEMU would abort on the way to "paused".
 */
int qmp_migrate_start(struct qstill_qmp *q, const char *fd_name,
                      struct qstill_error *err);
/* Goes on after pre-switchover. */
int qmp_migrate_continue(struct qstill_qmp *q, struct qstill_error *err);
/* Asks for the end; the state then becomes CANCELLED (or COMPLETED, when it
 * was too late). Fine when none is under way. */
int qmp_migrate_cancel(struct qstill_qmp *q, struct qstill_error *err);

/* --- incoming, for a QEMU started with -incoming defer. Where QEMU can, it
 * stays alive when the load fails, so that the error can be read. */
int qmp_migrate_incoming(struct qstill_qmp *q, const char *fd_name,
                         struct qstill_error *err);

enum qmp_migration_state {
    QMP_MIGRATION_NONE,
    QMP_MIGRATION_ACTIVE, /* every word that we do not know as well */
    QMP_MIGRATION_PRE_SWITCHOVER,
    QMP_MIGRATION_COMPLETED,
    QMP_MIGRATION_FAILED,
    QMP_MIGRATION_CANCELLED
};
/* Whether one is under way. */
static inline bool qmp_migration_is_on(enum qmp_migration_state state)
{
    return state == QMP_MIGRATION_ACTIVE ||
           state == QMP_MIGRATION_PRE_SWITCHOVER;
}
/* By the word of query-migrate or of the MIGRATION event. */
enum qmp_migration_state qmp_migration_state_of(const char *status);

struct qmp_migration {
    enum qmp_migration_state state;
    char status[32];          /* QEMU's word; "none" when it tells none */
    char *error;              /* error-desc, "" */
    struct qmp_names blocked; /* why migrate would be refused */
    bool vfio;                /* VFIO devices take part */
    uint64_t ram_transferred;
    uint64_t ram_remaining;
    uint64_t ram_total;
    uint64_t ram_dirty_rate; /* pages per second */
    uint64_t ram_passes;     /* dirty-sync-count */
    uint64_t ram_normal;     /* pages sent with content */
    uint64_t ram_duplicate;  /* pages sent as zero */
    uint64_t total_ms;
    uint64_t setup_ms;
    uint64_t downtime_ms;
};
#define QMP_MIGRATION_INIT                                                     \
    {                                                                          \
        .state = QMP_MIGRATION_NONE                                            \
    }
int qmp_migration_read(struct qstill_qmp *q, struct qmp_migration *out,
                       struct qstill_error *err);
void qmp_migration_fini(struct qmp_migration *m);

/* --- device state alone (xen-save-devices-state), for a VM that is stopped. */

/*
 * Whether it may be asked for: QEMU crashes on a device without a migration
 * description. PRECONDITION names the device, or says that this QEMU lacks the
 * command; BUSY: a migration is under way.
 */
int qmp_save_devices_check(struct qstill_qmp *q, struct qstill_error *err);
/*
 * Writes the state of all devices but RAM into the fd set, whose fd must be
 * open for writing only (O_WRONLY: a memfd opened again through /proc/self/fd
 * will do). Does the check above first, every time. Always with live:false.
 */
int qmp_save_devices(struct qstill_qmp *q, int64_t fdset,
                     struct qstill_error *err);

#endif
