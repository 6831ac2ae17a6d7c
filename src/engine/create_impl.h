/* SPDX-License-Identifier: MIT */
/* The create at work: shared by its phases (create_plan.c, create.c) and
 * its manifest. */
#ifndef QSTILL_ENGINE_CREATE_IMPL_H
#define QSTILL_ENGINE_CREATE_IMPL_H

#include "base/clock.h"
#include "journal.h"
#include "manifest.h"
#include "memcap.h"
#include "name.h"
#include "qmp/monitor.h"
#include "qmp/ram.h"
#include "quiesce.h"
#include "session.h"

#define OVERLAY_FORMAT "qcow2"

struct create {
    struct qstill_store *store;
    struct qstill_job *job;
    struct session s;
    bool session_open;
    struct arena arena;
    /* what was asked for */
    const char *vm;
    const char *name;
    const char *description;
    char **labels;
    size_t label_count;
    const char *disk_dir;
    struct qstill_create_options o;
    enum mode wanted;
    /* what is being done */
    char id[ID_LEN + 1];
    char stamp[CLOCK_STAMP_LEN];
    uint64_t stamp_ns;
    enum mode mode;
    struct mode_report modes;
    char why[600];
    struct journal j;
    uint64_t *sizes; /* of the heads, before the overlays were made; see
                        layer_virtual_size() */
    bool journaled;
    bool published;
    struct memcap mem;
    struct quiesce quiesce;
    bool found_frozen; /* the guest, by somebody else or earlier */
    bool was_running;
    bool stopped;  /* by us, or by QEMU for us */
    bool switched; /* heads are the new ones */
    double stop_ms;
    double pause_ms;
    /* what the snapshot says of itself */
    struct manifest manifest;
    bool manifest_asked;
    struct qmp_ram ram;
    struct qmp_memdevs memdevs;
    struct qmp_names devices; /* just before the stop */
    size_t vcpus;
};

/* create_plan.c: the phases before the guest is stopped. */
int create_plan_enter(void *ctx, struct qstill_error *err);
int create_prepare_enter(void *ctx, struct qstill_error *err);
int create_prepare_step(void *ctx, bool *done, struct qstill_error *err);
void create_prepare_undo(void *ctx, struct qstill_error *err);

/* create_stop.c: from here on nobody but us may start the guest until the
 * instant is taken. One that somebody else has stopped since the plan stays so;
 * BUSY in a mode that could not leave it so. */
int create_stop_guest(struct create *c, struct qstill_error *err);
/* Somebody else has: the rest of it. */
int create_stopped_by_others(struct create *c, struct qstill_error *err);
/* BUSY when somebody else has let it run: RAM and device state, or RAM and
 * disks, would not be of one instant. In the modes in which QEMU stops it: */
int create_check_stopped(struct create *c, struct qstill_error *err);
int create_check_not_stopped_again(struct create *c, struct qstill_error *err);
int create_check_stopped_by_qemu(struct create *c, struct qstill_error *err);
/* Ends the pause, and measures it. */
int create_resume_guest(struct create *c, struct qstill_error *err);

/* Asks QEMU and the host what the manifest shall say of them; once. With memory
 * it is done while that is copied. */
int create_manifest_ask(struct create *c, struct qstill_error *err);
/* With memory, and just before the guest is stopped: the devices and CPUs. What
 * is asked later must be the same. */
int create_manifest_look(struct create *c, struct qstill_error *err);
/* And when it stands: what is in its drives. */
int create_manifest_media(struct create *c, struct qstill_error *err);
/* When the memory is copied: nothing was plugged in that changes RAM unseen. */
int create_manifest_look_back(struct create *c, struct qstill_error *err);
/* Fills the manifest of the snapshot; with memory, its files are durable
 * then. Strings belong to `c` or to the manifest's arena. */
int create_manifest(struct create *c, struct qstill_error *err);

#endif
