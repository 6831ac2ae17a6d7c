/* SPDX-License-Identifier: MIT */
/* The revert at work: what it will do (revert_plan.c), its phases (revert.c),
 * what is kept before (revert_keep.c), the running process (revert_inplace.c),
 * the loading of the memory into a new one (revert_load.c), the end of it, by
 * us or by recovery (revert_end.c). */
#ifndef QSTILL_ENGINE_REVERT_IMPL_H
#define QSTILL_ENGINE_REVERT_IMPL_H

#include "inplace.h"
#include "journal.h"
#include "memstate/restore.h"
#include "name.h"
#include "qmp/unplug.h"
#include "session.h"
#include "settings.h"
#include "start.h"

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
    bool mapped_readonly; /* QEMU can open the mapped files so */
    bool in_process; /* in the running QEMU: WAY_INPLACE, and WAY_DISK too */
    enum qstill_run_state state;
    char id[ID_LEN + 1]; /* the snapshot's, which outlives reloads */
    char tag[ID_LEN + 1];
    bool was_running, was_on;
    struct qstill_job *keeping;
    bool keep_memory;
    const char *keep_why;       /* the VM is on, and its disks alone are kept */
    struct journal_load *loads; /* nvdimms of files: nvdimm.h */
    size_t load_count;
    struct journal j;
    bool journaled, committed;
    int pid; /* of the new process */
    bool started;
    struct ramset *set;
    struct restore *restore;
    struct settings was; /* of the new process, from its command line */
    bool settings_saved;
    uint64_t loaded; /* bytes, when it went on last: at `loaded_ms` */
    double loaded_ms;
    struct inplace inplace;
    struct qmp_unplug unplug;
    bool unplugging; /* one was found under way */
    bool lost;       /* the running process cannot be what it was */
    int resumes;     /* of the VM by others, while pages were written back */
    bool spoiled;    /* the new heads have what the guest wrote then */
    const char *machine;
    struct qstill_revert_result result;
    struct qstill_revert_time times[TIMES_MAX];
    double begun_ms, phase_ms;
};

/* Notes how long the phase took that ends now. */
void revert_lap(struct revert *r, const char *phase);

/* Hints how to go on when the new process fails. Returns the error's code. */
int revert_say_how(struct revert *r, struct qstill_error *err);

/* Opens the session and finds out what the revert will do: nothing has
 * changed. */
int revert_plan(struct revert *r, struct qstill_error *err);
/* The next best way, in a new process, once the running one has failed. */
int revert_plan_process(struct revert *r, struct qstill_error *err);
/* With `keep`: whether the memory can be kept, too. */
int revert_keep_plan(struct revert *r, struct qstill_error *err);
/* The phase "keep"; plans anew when it is over. */
int revert_keep_enter(void *ctx, struct qstill_error *err);
int revert_keep_step(void *ctx, bool *done, struct qstill_error *err);
/* How the new process is started. */
int revert_fill_start(struct revert *r, const struct manifest *m,
                      struct start_options *o, struct qstill_error *err);
const char *revert_way_name(enum way way);

/* The new heads, empty, by the names in the journal. */
int revert_make_heads(struct revert *r, struct qstill_error *err);

/* Whether `eager` loads into an nvdimm that keeps its content in a file. */
bool revert_keeps_content(const struct revert *r);

int revert_open_set(struct revert *r, struct qstill_error *err);
/* What can soon be told of the memory's files: all is there in its length, and
 * device state and small blocks are good. The pages of the main RAM, which
 * `mapped` never checks and `eager` as it sends them, are not read; but all
 * are where something of it stays in a file when the loading fails. */
int revert_check_files(struct revert *r, struct qstill_error *err);

/* The phase "inplace": the running process becomes the snapshot's, stopped. */
int revert_inplace_enter(void *ctx, struct qstill_error *err);
int revert_inplace_step(void *ctx, bool *done, struct qstill_error *err);

/* The phase "memory": sends the stream, waits until QEMU has loaded it. */
int revert_load_enter(void *ctx, struct qstill_error *err);
int revert_load_step(void *ctx, bool *done, struct qstill_error *err);
/* The migration settings that the new process was started with; nothing when
 * they are not aside. */
void revert_put_settings_back(struct revert *r);

/* Committed: the guest boots, if it is to, and runs, if it is to. */
int revert_run(struct session *s, const struct journal *j,
               struct qstill_error *err);
/* Committed: the new heads are recorded, the guest runs if it is to, the old
 * heads are merged away or removed. Right to run again. */
int revert_finish(struct session *s, struct journal *j, struct buf *text,
                  struct qstill_error *err);
/* The process of an uncommitted revert in place is what it was before, on its
 * old heads, and stopped. */
int revert_leave_process(struct session *s, struct journal *j, struct buf *text,
                         struct qstill_error *err);
/* What was kept of it is of no use any more, but for what outlives it, which is
 * put back. */
void revert_forget_process(struct session *s, struct journal *j);
/* Not committed: the new heads are removed and the old ones count; a VM that
 * ran is resumed, or started again. */
void revert_roll_back(struct session *s, struct journal *j, struct buf *text,
                      struct qstill_error *err);

#endif
