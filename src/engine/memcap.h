/* SPDX-License-Identifier: MIT */
/*
 * Taking the memory of a VM within a create: what each capture mode does at
 * which moment. create.c knows the moments, this file the modes.
 */
#ifndef QSTILL_ENGINE_MEMCAP_H
#define QSTILL_ENGINE_MEMCAP_H

#include "memstate/capture.h"
#include "modes.h"
#include "qmp/migrate.h"
#include "qmp/ram.h"
#include "settings.h"

struct session;

struct memcap {
    struct session *s;
    enum mode mode;
    struct capture *cap;
    struct qmp_ram ram;
    struct capture_source *sources;
    size_t source_count;
    bool gives_back; /* the VM has a balloon */
    int devfd;       /* memfd for the device state */
    int64_t fdset;   /* QEMU's own of it; negative: none */
    int pipefd;      /* write end until QEMU has it */
    bool migrating;
    bool precopied; /* a migration of mode precopy was begun */
    bool continued; /* precopy: QEMU was told to go on to the end */
    bool settings_saved;
    struct settings was;
    uint64_t precopy_since_pass;
    double precopy_stop_ms; /* of the last STOP event, by clock_ms() */
};

/* Everything that can be done while the guest runs: files, buffers, the
 * stream's pipe, QEMU's settings. `dirfd` is the memory directory. */
int memcap_prepare(struct memcap *m, struct session *s,
                   const struct mode_report *modes, enum mode mode, int dirfd,
                   uint64_t bwlimit, struct qstill_error *err);
/* *ready: the VM may be stopped now. */
int memcap_ready(struct memcap *m, bool *ready, struct qstill_error *err);

/* precopy only: start, and wait for the moment at which QEMU has stopped the
 * VM by itself, before the images are closed. */
int memcap_precopy_start(struct memcap *m, struct qstill_error *err);
/* *stop_ms: when that was, by clock_ms() and QEMU's word; 0: not yet.
 * *by_others: the VM stands still, but QEMU has not stopped it for this. */
int memcap_precopy_stopped(struct memcap *m, uint32_t max_pause_ms,
                           double *stop_ms, bool *by_others,
                           struct qstill_error *err);

/* The VM is stopped and its disks are switched: take the instant. */
int memcap_instant(struct memcap *m, struct qstill_error *err);
/* *taken: the guest may run on. */
int memcap_instant_taken(struct memcap *m, bool *taken,
                         struct qstill_error *err);

/* The guest runs again. */
void memcap_resumed(struct memcap *m);

/* How far the copy is; 0/0 when that is not known yet. */
void memcap_progress(struct memcap *m, uint64_t *bytes_done,
                     uint64_t *bytes_total);
/* *done: all is captured (not yet durable). Reports progress. */
int memcap_step(struct memcap *m, bool *done, uint64_t *bytes_done,
                uint64_t *bytes_total, struct qstill_error *err);
/* Durable files, and the account. The result belongs to m->cap. */
int memcap_finish(struct memcap *m, struct capture_result *out,
                  struct qstill_error *err);

/* Puts QEMU's migration settings back. */
void memcap_restore_settings(struct memcap *m);
/* Cancels what is under way in QEMU and here; files that were made go. */
void memcap_abort(struct memcap *m);
void memcap_fini(struct memcap *m);

#endif
