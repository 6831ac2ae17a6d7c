/* SPDX-License-Identifier: MIT */
/*
 * The virtual machine as a whole: what it is, whether it runs, its CPUs.
 * Each call is one or a few QMP commands with the handle's default timeout.
 */
#ifndef QSTILL_QMP_MACHINE_H
#define QSTILL_QMP_MACHINE_H

#include "base/error.h"

struct qstill_qmp;

/* The run state, by QEMU's own word ("running", "paused", "prelaunch",
 * "inmigrate", "finish-migrate", "postmigrate", ...). */
struct qmp_status {
    bool running;
    char state[32];
};
int qmp_status_read(struct qstill_qmp *q, struct qmp_status *out,
                    struct qstill_error *err);

/* Stops the guest; QEMU drains and flushes all images before it answers.
 * timeout_ms 0: the default. Fine when it is stopped already. */
int qmp_stop(struct qstill_qmp *q, uint32_t timeout_ms,
             struct qstill_error *err);
/* Lets the guest run; fine when it runs. */
int qmp_cont(struct qstill_qmp *q, struct qstill_error *err);
int qmp_system_reset(struct qstill_qmp *q, struct qstill_error *err);
/* Ends the QEMU process. A connection that closes instead of an answer counts
 * as success. */
int qmp_quit(struct qstill_qmp *q, struct qstill_error *err);

struct qmp_machine {
    char *version; /* "7.2.22", from the three numbers */
    char *package; /* the distribution's own, "" when none */
    char *name;    /* -name, "" when none */
    char *uuid;
    char *type; /* versioned machine type: "pc-q35-7.2" */
    bool kvm;
};
#define QMP_MACHINE_INIT                                                       \
    {                                                                          \
        0                                                                      \
    }
int qmp_machine_read(struct qstill_qmp *q, struct qmp_machine *out,
                     struct qstill_error *err);
void qmp_machine_fini(struct qmp_machine *m);

enum qmp_tristate { QMP_UNKNOWN, QMP_NO, QMP_YES };

struct qmp_cpus {
    size_t count;
    char *type;                   /* "max-x86_64-cpu" */
    char *model_id;               /* what the guest's CPUID says; "" */
    enum qmp_tristate invtsc;     /* UNKNOWN: no such property (no x86) */
    enum qmp_tristate migratable; /* UNKNOWN: only max and host have it */
    uint64_t tsc_frequency;       /* Hz; 0: not set and not known */
};
#define QMP_CPUS_INIT                                                          \
    {                                                                          \
        0                                                                      \
    }
/* From the first CPU; differences between CPUs are not looked for. */
int qmp_cpus_read(struct qstill_qmp *q, struct qmp_cpus *out,
                  struct qstill_error *err);
void qmp_cpus_fini(struct qmp_cpus *c);

/* A device of the user's: from -device or device_add. */
struct qmp_device {
    char *path; /* QOM path */
    char *id;   /* "" when it has none */
    char *type; /* "virtio-blk-pci", "vfio-pci", ... */
};
struct qmp_devices {
    size_t count;
    struct qmp_device *items;
};
#define QMP_DEVICES_INIT                                                       \
    {                                                                          \
        0                                                                      \
    }
/* Not the ones that the machine brings along itself. */
int qmp_devices_read(struct qstill_qmp *q, struct qmp_devices *out,
                     struct qstill_error *err);
void qmp_devices_fini(struct qmp_devices *d);

#endif
