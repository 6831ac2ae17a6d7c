/* SPDX-License-Identifier: MIT */
/*
 * What is in the drives whose medium the guest or its user can change: CDs,
 * floppies.
 */
#ifndef QSTILL_QMP_MEDIA_H
#define QSTILL_QMP_MEDIA_H

#include "base/error.h"

struct qstill_qmp;

struct qmp_medium {
    char *qdev;   /* the device, as QMP takes it: its id or its QOM path */
    char *device; /* the -drive's id; "" with -blockdev */
    char *path;   /* as QEMU tells it; "" for an empty drive */
    char *format; /* "raw", "qcow2", ...; "" for an empty drive */
    bool writable;
    bool tray_open;
};
struct qmp_media {
    size_t count;
    struct qmp_medium *items; /* QEMU's order */
};
#define QMP_MEDIA_INIT                                                         \
    {                                                                          \
        0                                                                      \
    }
int qmp_media_read(struct qstill_qmp *q, struct qmp_media *out,
                   struct qstill_error *err);
void qmp_media_fini(struct qmp_media *m);

/* Into the drive, for reading only, whatever is in it and whether the guest has
 * locked it; the tray is closed then. */
int qmp_medium_insert(struct qstill_qmp *q, const char *qdev, const char *path,
                      const char *format, struct qstill_error *err);
/* Out of it; the tray of a drive that has one is open then. */
int qmp_medium_eject(struct qstill_qmp *q, const char *qdev,
                     struct qstill_error *err);
int qmp_medium_close_tray(struct qstill_qmp *q, const char *qdev,
                          struct qstill_error *err);

#endif
