/* SPDX-License-Identifier: MIT */
/*
 * libqstill: snapshots of virtual machines under plain QEMU.
 *
 * Conventions for every declaration here:
 * - A call that can fail returns 0 or a negative QSTILL_E_* code, takes the
 *   error last and accepts NULL for it. Results come back through `out`,
 *   untouched on failure. Strings passed in are copied; strings in structs
 *   that are handed out belong to the object they came with.
 * - Option structs start with their size (use the _INIT macro); zero means
 *   default; NULL means all defaults.
 * - Sizes are bytes, offsets uint64_t, times carry their unit in the name.
 * - A handle belongs to one thread at a time; only qstill_job_cancel() may be
 *   called from any thread.
 * - The library keeps no global state, never forks, prints, exits or sets a
 *   signal handler. Processes are started through a callback of the caller.
 */
#ifndef QSTILL_H
#define QSTILL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define QSTILL_VERSION "0.1.0"

/* ---------------------------------------------------------------- errors */

/* The negative of the command's exit codes. */
enum qstill_code {
    QSTILL_OK = 0,
    QSTILL_E_FAILED = -1,       /* anything without a class of its own */
    QSTILL_E_USAGE = -2,        /* an invalid name, option or argument */
    QSTILL_E_CORRUPT = -3,      /* damage found in an image, manifest, ... */
    QSTILL_E_NOT_FOUND = -4,    /* unknown VM, snapshot, disk or file */
    QSTILL_E_BUSY = -5,         /* exists already, or locked by another */
    QSTILL_E_PRECONDITION = -6, /* a blocker; the message names it */
    QSTILL_E_NO_SPACE = -7,
    QSTILL_E_PERMISSION = -8,
    QSTILL_E_UNREACHABLE = -9, /* QEMU or the guest agent does not answer */
    QSTILL_E_CANCELLED = -10
};

struct qstill_error {
    int code;          /* 0 or an enum qstill_code */
    char message[512]; /* names the object and the fact; no newline */
    char hint[256];    /* the next step, or "" */
};

/* The name of a code for programs ("not-found"); never NULL. */
const char *qstill_code_name(int code);

/* The version of the library that is linked, e.g. "0.1.0". */
const char *qstill_version(void);

/* ----------------------------------------------------------------- store */

struct qstill_store;

struct qstill_store_options {
    size_t size;
    const char *dir; /* NULL: $QSTILL_STORE, /var/lib/qstill for root, else
                        $XDG_STATE_HOME/qstill or ~/.local/state/qstill */
};
#define QSTILL_STORE_OPTIONS_INIT                                              \
    {                                                                          \
        sizeof(struct qstill_store_options), 0                                 \
    }

/*
 * Opens a store; a missing directory is created (0700) only when something
 * is written into it. Errors: QSTILL_E_PERMISSION, QSTILL_E_PRECONDITION (a
 * path that is no directory or is a symbolic link).
 */
int qstill_store_open(struct qstill_store **out,
                      const struct qstill_store_options *options,
                      struct qstill_error *err);
void qstill_store_close(struct qstill_store *store); /* NULL is fine */

/* Called with what a person may want to know ("mode cow not taken: ..."). */
typedef void qstill_note_fn(void *user, const char *text);
void qstill_store_set_note(struct qstill_store *store, qstill_note_fn *fn,
                           void *user);

/* A limit as setrlimit(2) has it: RLIMIT_..., and RLIM_INFINITY for none. */
struct qstill_limit {
    int resource;
    uint64_t soft;
    uint64_t hard;
};

/*
 * How the library has a QEMU process started: `argv` is NULL-terminated,
 * `env` NULL-terminated "K=V" strings, `cwd` a directory, `log` a file for
 * stdout and stderr, uid and gid those of the QEMU that was recorded. Must
 * return at once with the pid (0 when a launcher command detached), or a
 * negative code. `launcher` is NULL, or the command of `attach --launcher`,
 * to be run by /bin/sh instead of argv, with `env` added. `limits` are those of
 * the QEMU that was recorded, to be set as far as that is allowed.
 * With `confined` the process must have no more capabilities (a bit each, as in
 * /proc/PID/status) than these: a bounding set, an inheritable and an ambient
 * one; and no_new_privs when that is set. `groups`, when it is not NULL, are
 * the supplementary groups that it must have, and no other (`group_count` may
 * be 0). Else it must fail.
 */
struct qstill_launch {
    size_t size;
    const char *const *argv;
    const char *const *env;
    const char *cwd;
    const char *log;
    const char *launcher;
    uint32_t uid;
    uint32_t gid;
    const struct qstill_limit *limits;
    size_t limit_count;
    bool confined;
    bool no_new_privs;
    uint64_t caps_bounding;
    uint64_t caps_inheritable;
    uint64_t caps_ambient;
    const uint32_t *groups;
    size_t group_count;
};
typedef int qstill_launch_fn(void *user, const struct qstill_launch *launch,
                             int *pid, struct qstill_error *err);
void qstill_store_set_launch(struct qstill_store *store, qstill_launch_fn *fn,
                             void *user);

/* -------------------------------------------------------------------- VMs */

struct qstill_attach_options {
    size_t size;
    const char *qmp;      /* path of the QMP unix socket; required */
    const char *agent;    /* path of the guest agent's socket, or NULL */
    const char *launcher; /* command that starts the VM, or NULL */
};
#define QSTILL_ATTACH_OPTIONS_INIT                                             \
    {                                                                          \
        sizeof(struct qstill_attach_options), 0, 0, 0                          \
    }

/*
 * Makes VM known: connects, reads disks and the launch record, writes
 * STORE/VM/vm.json. Errors: USAGE (name), BUSY (VM is attached already, or
 * the socket has another client), UNREACHABLE (dead or foreign socket).
 */
int qstill_vm_attach(struct qstill_store *store, const char *vm,
                     const struct qstill_attach_options *options,
                     struct qstill_error *err);

/* Forgets VM. PRECONDITION when it still has snapshots, or layers of such that
 * are to be merged; but those that cannot be, for what they stand on is gone,
 * stay where they are. */
int qstill_vm_detach(struct qstill_store *store, const char *vm,
                     struct qstill_error *err);

struct qstill_vm {
    const char *name;
    const char *qmp;
    const char *agent;   /* NULL without one */
    const char *state;   /* "running", "paused", "stopped", "unreachable", or
                            "busy": an operation is under way */
    const char *current; /* id of the current snapshot, or NULL */
    size_t snapshots;
    size_t disks;
};
struct qstill_vm_list {
    size_t count;
    struct qstill_vm *vms;
};
/* All attached VMs by name. A VM whose record is damaged has state "damaged"
 * and NULL members. Free with qstill_vm_list_free(). */
int qstill_vm_list(struct qstill_store *store, struct qstill_vm_list **out,
                   struct qstill_error *err);
void qstill_vm_list_free(struct qstill_vm_list *list);

/* The path that the VM's DISK (name, e.g. "vda" or a qdev id) has now; to be
 * freed by the caller with free(). */
int qstill_vm_path(struct qstill_store *store, const char *vm, const char *disk,
                   char **out, struct qstill_error *err);

/* -------------------------------------------------------------- snapshots */

struct qstill_disk_info {
    const char *name;   /* e.g. "vda", "drive0", or the qdev id */
    const char *path;   /* the frozen layer (absolute) */
    const char *format; /* "qcow2" or "raw" */
    uint64_t virtual_size;
};

struct qstill_snapshot {
    const char *id;
    const char *name;
    const char *description; /* "" when none */
    const char *parent_id;   /* NULL for a root */
    const char *created_at;  /* RFC 3339, UTC */
    const char *mode;        /* capture mode, or "disk" without memory */
    const char *mode_reason; /* why that mode, "" when asked for */
    bool memory_included;
    bool quiesced;
    bool current;
    uint64_t size_bytes;     /* disk blocks used by memory + frozen layers */
    double pause_ms;         /* stop to cont */
    double longest_stall_ms; /* worst wait of a guest write afterwards */
    uint64_t memory_bytes;   /* RAM size */
    uint64_t memory_written; /* RAM bytes stored (not zero) */
    size_t label_count;
    const char *const *labels; /* "K=V" */
    size_t disk_count;
    const struct qstill_disk_info *disks;
    size_t child_count;
    const char *const *children; /* ids */
    uint64_t own_bytes;    /* disk blocks of its memory and its own layers */
    uint64_t shared_bytes; /* of the layers below, which older snapshots own */
    uint64_t freed_bytes;  /* what deleting it alone frees at least: layers that
                              others read are merged, see the dry run */
    double frozen_ms;      /* how long the guest was frozen; 0: it was not */
    uint64_t frozen_filesystems;  /* of the mounted ones; fewer: the others */
    uint64_t mounted_filesystems; /* could not be. 0: the agent did not say.
                                     Not quiesced, and frozen all the same: the
                                     memory is of a guest that others froze, or
                                     thawed too early */
};

/* One whose manifest cannot be used. Its layers are not known: until it is
 * mended or deleted, no layer is merged or removed. */
struct qstill_damaged_snapshot {
    const char *id;
    const char *message; /* in what it is damaged */
    const char *hint;    /* "" when there is none */
};

struct qstill_snapshot_list {
    size_t count; /* oldest first */
    struct qstill_snapshot *snapshots;
    const char *current; /* id or NULL */
    size_t damaged_count;
    const struct qstill_damaged_snapshot *damaged;
};

int qstill_snapshot_list(struct qstill_store *store, const char *vm,
                         struct qstill_snapshot_list **out,
                         struct qstill_error *err);
void qstill_snapshot_list_free(struct qstill_snapshot_list *list);

/* Finds SNAP (an id or a name; both are unique within a VM) in a list, else
 * NOT_FOUND. The result belongs to the list. */
int qstill_snapshot_find(const struct qstill_snapshot_list *list,
                         const char *snap, const struct qstill_snapshot **out,
                         struct qstill_error *err);

int qstill_snapshot_rename(struct qstill_store *store, const char *vm,
                           const char *snap, const char *new_name,
                           struct qstill_error *err);

/* ------------------------------------------------------------------ check */

struct qstill_problem {
    const char *code; /* stable word, e.g. "non-migratable-device" */
    const char *message;
    const char *hint;
};
struct qstill_capture_mode {
    const char *mode;   /* "cow", "background", "precopy", "paused" */
    const char *reason; /* NULL when it can be used */
};
struct qstill_check_report {
    bool ok;
    size_t problem_count;
    struct qstill_problem *problems;
    size_t mode_count;
    struct qstill_capture_mode *modes;
};
struct qstill_check_options {
    size_t size;
    bool memory;  /* also what hinders a memory snapshot and its revert */
    bool quiesce; /* also whether the agent answers */
};
#define QSTILL_CHECK_OPTIONS_INIT                                              \
    {                                                                          \
        sizeof(struct qstill_check_options), false, false                      \
    }
/* What would hinder a snapshot or its revert. Changes nothing. */
int qstill_check(struct qstill_store *store, const char *vm,
                 const struct qstill_check_options *options,
                 struct qstill_check_report **out, struct qstill_error *err);
void qstill_check_report_free(struct qstill_check_report *report);

/* ------------------------------------------------------------------- jobs */

/*
 * Long work is a job. The caller owns the loop: poll qstill_job_fd() for
 * reading, call qstill_job_step() when it is readable, until *done. A step
 * may take as long as one command to QEMU does. Freeing an unfinished job
 * cancels and undoes it first.
 */
struct qstill_job;

struct qstill_progress {
    const char *phase;   /* e.g. "memory" */
    uint64_t bytes_done; /* of the phase; 0/0 when it has no measure */
    uint64_t bytes_total;
};

int qstill_job_fd(const struct qstill_job *job);
int qstill_job_step(struct qstill_job *job, bool *done,
                    struct qstill_error *err);
void qstill_job_progress(const struct qstill_job *job,
                         struct qstill_progress *out);
/* Asks for a stop; the job's step then undoes and fails with CANCELLED. Safe
 * from any thread and from a signal handler. */
void qstill_job_cancel(struct qstill_job *job);
void qstill_job_free(struct qstill_job *job);

/* Polls and steps to the end; `tick` (may be NULL) is called at least every
 * 200 ms on this thread, inside a step that takes longer, too: of the job it
 * may call qstill_job_progress() and qstill_job_cancel() alone. Returns the
 * job's result. */
int qstill_job_run(struct qstill_job *job,
                   void (*tick)(void *user, const struct qstill_progress *p),
                   void *user, struct qstill_error *err);

/* The plan of a --dry-run job, or the account of a finished one: lines of
 * text for people. Belongs to the job; "" when there is none. */
const char *qstill_job_text(const struct qstill_job *job);

/* ----------------------------------------------------------------- create */

struct qstill_create_options {
    size_t size;
    const char *description;
    const char *const *labels; /* label_count strings "K=V", each K once */
    size_t label_count;
    bool memory;
    bool quiesce;
    const char *mode;      /* "auto" (default), "cow", "background", ... */
    uint32_t max_pause_ms; /* 0: no limit */
    uint64_t bwlimit;      /* bytes per second for the copy; 0: none */
    const char *disk_dir;  /* where overlays go; NULL: beside the image */
    bool no_protect;       /* do not make frozen layers immutable */
    bool dry_run;
    uint32_t freeze_timeout_ms; /* of quiesce; 0: 30 s */
};
#define QSTILL_CREATE_OPTIONS_INIT                                             \
    {                                                                          \
        sizeof(struct qstill_create_options), 0, 0, 0, false, false, 0, 0, 0,  \
            0, false, false, 0                                                 \
    }

/*
 * Starts a snapshot of VM named NAME. Errors, here or from the steps: USAGE,
 * NOT_FOUND (VM), BUSY (name or lock), PRECONDITION (a blocker), NO_SPACE,
 * UNREACHABLE. Whatever fails, the VM runs on and no snapshot is listed.
 */
int qstill_create(struct qstill_store *store, const char *vm, const char *name,
                  const struct qstill_create_options *options,
                  struct qstill_job **out, struct qstill_error *err);
/* The id of the new snapshot, once the job is done; else NULL. */
const char *qstill_create_id(const struct qstill_job *job);

/* ----------------------------------------------------------------- revert */

enum qstill_run_state {
    QSTILL_STATE_DEFAULT, /* as the snapshot was (memory), or as VM is now */
    QSTILL_STATE_RUNNING,
    QSTILL_STATE_PAUSED,
    QSTILL_STATE_STOPPED
};

struct qstill_revert_options {
    size_t size;
    enum qstill_run_state state;
    const char *restore; /* "auto" (default), "inplace", "mapped", "eager" */
    bool keep;           /* what would be lost becomes a snapshot; of the disks
                            alone where a halted guest, or the VM's devices, let
                            nobody capture the memory */
    bool force;          /* survive what preflight can survive */
    bool dry_run;
    int keep_trash; /* how many operations what it leaves outlives, for undo;
                       0: the default, 1; negative: none; at most 32 */
};
#define QSTILL_REVERT_OPTIONS_INIT                                             \
    {                                                                          \
        sizeof(struct qstill_revert_options), QSTILL_STATE_DEFAULT, 0, false,  \
            false, false, 0                                                    \
    }

struct qstill_revert_time {
    const char *phase;
    double ms;
};
struct qstill_revert_result {
    const char *state;   /* "running", "paused" or "stopped" */
    const char *restore; /* "inplace", "mapped", "eager" or "disk" */
    size_t time_count;
    const struct qstill_revert_time *times; /* last one is "total" */
    const char *kept;        /* keep: the id of that snapshot, or NULL */
    bool kept_memory;        /* it has the memory, too */
    const char *kept_reason; /* the VM was on, and why it has not; or NULL */
};

int qstill_revert(struct qstill_store *store, const char *vm, const char *snap,
                  const struct qstill_revert_options *options,
                  struct qstill_job **out, struct qstill_error *err);
/* Of a finished revert job; belongs to it. */
const struct qstill_revert_result *
qstill_revert_result(const struct qstill_job *job);

/* ------------------------------------------------- delete, recover, verify */

struct qstill_delete_options {
    size_t size;
    bool children;    /* with all that descend from it */
    bool keep_hidden; /* a layer with several children may stay, hidden */
    bool dry_run;
    int keep_trash;   /* for undo, as in qstill_revert_options; but the default
                         is none: a delete frees its space at once */
    uint64_t bwlimit; /* bytes per second of merges; 0: none */
    bool paranoid;    /* sum what a guest sees in each remaining snapshot, and
                         again when all is merged: CORRUPT when it differs */
    bool force;       /* though the image that a disk was made on is another
                         than then, or was written to: CORRUPT else. Or is
                         gone, so that nothing can be merged: NOT_FOUND else.
                         Or the layer of one is gone on which nothing stands
                         that stays: NOT_FOUND else */
};
#define QSTILL_DELETE_OPTIONS_INIT                                             \
    {                                                                          \
        sizeof(struct qstill_delete_options), false, false, false, 0, 0,       \
            false, false                                                       \
    }
int qstill_delete(struct qstill_store *store, const char *vm,
                  const char *const *snaps, size_t snap_count,
                  const struct qstill_delete_options *options,
                  struct qstill_job **out, struct qstill_error *err);

struct qstill_deleted {
    const char *id;
    const char *name; /* NULL: it was damaged */
};
struct qstill_delete_result {
    size_t count;
    const struct qstill_deleted *deleted; /* dry run: would be */
};
/* Of a finished delete job; belongs to it. */
const struct qstill_delete_result *
qstill_delete_result(const struct qstill_job *job);

/*
 * Takes back the last revert or delete whose trash is still there; when there
 * is none, or with `redo`, the last undo of a revert.
 * Of a revert: the VM goes back to the heads that the revert left; when it
 * runs it boots from them, as after a power cut at that moment (its RAM is
 * gone: revert with `keep` saves it). What it wrote since the revert becomes
 * trash in its turn, for a redo: as long as the revert's would have been kept,
 * but undos do not count. Of a delete: its snapshots are listed again.
 * NOT_FOUND when there is no trash, BUSY when a name has been taken since,
 * CORRUPT when a file of the trash is not what it was. The job's text says what
 * was taken back, and what can be taken back no more.
 */
struct qstill_undo_options {
    size_t size;
    bool dry_run;
    bool redo; /* the last undo of a revert, whatever else there is */
};
#define QSTILL_UNDO_OPTIONS_INIT                                               \
    {                                                                          \
        sizeof(struct qstill_undo_options), false, false                       \
    }
int qstill_undo(struct qstill_store *store, const char *vm,
                const struct qstill_undo_options *options,
                struct qstill_job **out, struct qstill_error *err);

/* Finishes or undoes an operation that died. Other verbs do it by themselves.
 * `vm` NULL: all VMs of the store. The job's text says what was done. */
int qstill_recover(struct qstill_store *store, const char *vm, bool dry_run,
                   struct qstill_job **out, struct qstill_error *err);

/* Layers that were written to after they were frozen, or replaced, which
 * create, revert, delete, undo and merges refuse or leave alone (CORRUPT), are
 * taken as they are from now on: what they show is what a revert brings back.
 * Those of snapshots, of deleted ones and of the trash alike; the job's text
 * names each. CORRUPT, and nothing is done, when one cannot be read. */
int qstill_accept(struct qstill_store *store, const char *vm, bool dry_run,
                  struct qstill_job **out, struct qstill_error *err);

/* Checks a snapshot's files: sums of the memory, images' metadata and
 * identity, the latter also of what they stand on. CORRUPT names the first
 * damage; BUSY when that may be what another operation is at work on. */
int qstill_verify(struct qstill_store *store, const char *vm, const char *snap,
                  struct qstill_job **out, struct qstill_error *err);

/* Starts a VM that is off, on its present heads. BUSY when it is on. */
int qstill_vm_start(struct qstill_store *store, const char *vm, bool paused,
                    struct qstill_error *err);

#ifdef __cplusplus
}
#endif

#endif
