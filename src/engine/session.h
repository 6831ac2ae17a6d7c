/* SPDX-License-Identifier: MIT */
/*
 * One verb at work on one VM: the lock, the record, the tree and, when QEMU
 * runs, the connection to it with its own view of the disks.
 */
#ifndef QSTILL_ENGINE_SESSION_H
#define QSTILL_ENGINE_SESSION_H

#include "qmp/block.h"
#include "qmp/machine.h"
#include "store.h"
#include "tree.h"
#include "vmrecord.h"

struct qstill_job;
struct qstill_qmp;

struct session {
    struct qstill_store *store;
    char *vm;
    int vmfd;
    int snapsfd;
    int lockfd;
    struct vm_record rec;
    struct tree tree;
    struct qstill_qmp *qmp; /* NULL: the VM is off (or not asked yet) */
    int pid;                /* QEMU's; 0 when not known */
    int *held;              /* fds with locks on the heads: headlock.h */
    size_t held_count;
    struct qmp_status status;
    struct qmp_disks live;
    uint64_t bwlimit;       /* of merges, bytes per second; 0: none */
    struct qstill_job *job; /* that a merge tells how far it is, or NULL: then
                               it cannot be cancelled */
    struct qstill_job *rest_job;  /* the same of the merges that come behind an
                                     operation that is done: delete.h */
    struct qstill_job *first_job; /* while it is opened: the same of a fold that
                                     an abandoned operation has left */
    bool paranoid; /* compare what a guest sees before and after a merge */
};

/* Opens STORE/VM, takes the lock for `verb` (NULL: none, only reading),
 * finishes what an abandoned operation left, and loads record and tree. */
int session_open(struct session *s, struct qstill_store *store, const char *vm,
                 const char *verb, struct qstill_error *err);
/* The same for a job: what an abandoned operation left to be merged, which can
 * be the whole disk, is told as the job's progress and can be cancelled (the
 * next command, or recover, goes on). `bwlimit` becomes s->bwlimit. */
int session_open_for(struct session *s, struct qstill_store *store,
                     const char *vm, const char *verb, struct qstill_job *job,
                     uint64_t bwlimit, struct qstill_error *err);
void session_close(struct session *s);

/* Loads record and tree again. */
int session_reload(struct session *s, struct qstill_error *err);

/* Connects to QEMU and reads status and disks. A VM that is off (no socket, or
 * nobody listens) is no error: s->qmp stays NULL. BUSY when somebody writes to
 * its heads all the same. */
int session_connect(struct session *s, struct qstill_error *err);
/* Does not look at the heads: a QEMU may just be starting on them. */
int session_try(struct session *s, struct qstill_error *err);
/* Gives up held heads, too. */
void session_disconnect(struct session *s);
/* Reads status and disks again. */
int session_refresh(struct session *s, struct qstill_error *err);

/* After a migration that nobody has taken over, or whose guest has not been let
 * run yet (and this VM is that guest): its images are taken up, or no node
 * could stand on them. */
int session_wake_images(struct session *s, struct qstill_error *err);

/* For undoing: what QEMU has open now, over a new connection when there is none
 * or the old one is broken. A QEMU that is gone is off. */
int session_look_again(struct session *s, struct qstill_error *err);

/*
 * Whether QEMU could open an image and all that its header names below it
 * (reach_chain()). With SESSION_REACH_START one that we start from the launch
 * record, with the rights of its user. Else one with those of the running one,
 * or, where there is none or it does not see what we see, whatever can be told.
 * With SESSION_REACH_LOCKS nobody may write to them either (BUSY).
 */
enum { SESSION_REACH_START = 1, SESSION_REACH_LOCKS = 2 };
int session_reach(const struct session *s, const char *path, const char *format,
                  unsigned how, struct qstill_error *err);

/* QEMU's view of a disk of the record, or NULL. */
const struct qmp_disk *session_live_disk(const struct session *s,
                                         const struct vm_disk *d);
/* The absolute path of QEMU's present image of it. In arena of the record. */
const char *session_live_path(struct session *s, const struct vm_disk *d);

/* Each disk of a running VM must be on its recorded head (PRECONDITION else),
 * and that file the one that QEMU has open (CORRUPT else), with what to do. */
int session_check_heads(struct session *s, struct qstill_error *err);

/* Whether snapshots are of this disk, too: it has a medium that can be written.
 */
bool session_takes_part(const struct qmp_disk *q);

/* The guest of a running VM must write to no disk that the record does not have
 * (PRECONDITION else), with what to do: it is in no snapshot. */
int session_check_known(const struct session *s, struct qstill_error *err);

/* Whether the image file shows what the guest sees, and all of it (PRECONDITION
 * else): an overlay that stands on it would show another disk. */
int session_check_shape(const struct qmp_disk *q, struct qstill_error *err);
/* The same of all disks of the record, and of one that is not plugged in what
 * the record says. */
int session_check_shapes(const struct session *s, struct qstill_error *err);

/* Below the heads of a running VM the names must lead to the files that QEMU
 * has open (PRECONDITION else): whoever goes by them next, an overlay or a new
 * QEMU, would show another disk. */
int session_check_bases(const struct session *s, struct qstill_error *err);

/* QEMU must find a raw image by the name it knows: becoming a frozen layer, it
 * is opened anew by that name. PRECONDITION else, with what to do. Looks
 * through QEMU's own root and working directory; one that cannot be seen is
 * taken on trust. */
int session_check_names(struct session *s, struct qstill_error *err);

bool session_vm_is_paused(const struct session *s);

/* Resolves QEMU's file name: relative to its working directory, no json:. */
char *session_resolve(struct arena *a, const struct launch_record *launch,
                      const char *path);
/* The image that a disk came from, absolute, in the record's arena; NULL: out
 * of memory. Its path and its name stay the disk's, whatever a VM is started on
 * later. */
const char *session_first_image(struct vm_record *rec, const struct vm_disk *d);
/* The same file: by name, or by device and inode. */
bool session_same_file(const char *a, const char *b);

#endif
