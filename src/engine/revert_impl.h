/* SPDX-License-Identifier: MIT */
/* The revert at work: its phases (revert.c), the loading of the memory
 * (revert_load.c), the end of it, by us or by recovery (revert_end.c). */
#ifndef QSTILL_ENGINE_REVERT_IMPL_H
#define QSTILL_ENGINE_REVERT_IMPL_H

#include "journal.h"
#include "memstate/restore.h"
#include "name.h"
#include "session.h"

#define OVERLAY_FORMAT "qcow2"
#define TIMES_MAX      16

enum way { WAY_AUTO, WAY_INPLACE, WAY_MAPPED, WAY_EAGER, WAY_DISK };

struct revert {
    struct qstill_store *store;
    struct qstill_job *job;
    struct arena arena;
    struct session s;
    bool session_open;
    const char *vm;
    const char *snap;
    struct qstill_revert_options o;
    enum way wanted, way;
    enum qstill_run_state state;
    char id[ID_LEN + 1]; /* the snapshot's, which outlives reloads */
    char tag[ID_LEN + 1];
    bool was_running, was_on;
    struct qstill_job *keeping;
    struct journal j;
    bool journaled, committed;
    int pid; /* of the new process */
    bool started;
    struct ramset *set;
    struct restore *restore;
    const char *machine;
    struct qstill_revert_result result;
    struct qstill_revert_time times[TIMES_MAX];
    double begun_ms, phase_ms;
};

/* Notes how long the phase took that ends now. */
void revert_lap(struct revert *r, const char *phase);

/* Hints how to go on when the new process fails. Returns the error's code. */
int revert_say_how(struct revert *r, struct qstill_error *err);

/* The phase "memory": sends the stream, waits until QEMU has loaded it. */
int revert_load_enter(void *ctx, struct qstill_error *err);
int revert_load_step(void *ctx, bool *done, struct qstill_error *err);

/* Committed: the new heads are recorded, the guest runs if it is to, the old
 * heads are merged away or removed. Right to run again. */
int revert_finish(struct session *s, struct journal *j, struct buf *text,
                  struct qstill_error *err);
/* Not committed: the new heads are removed and the old ones count; a VM that
 * ran is resumed, or started again. */
void revert_roll_back(struct session *s, struct journal *j, struct buf *text,
                      struct qstill_error *err);

#endif
