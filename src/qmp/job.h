/* SPDX-License-Identifier: MIT */
/*
 * QEMU's own jobs: commit, stream and snapshot-load. All are started with
 * auto-dismiss off, so that the result can be read; the caller dismisses.
 */
#ifndef QSTILL_QMP_JOB_H
#define QSTILL_QMP_JOB_H

#include "base/error.h"

struct qstill_qmp;

struct qmp_commit {
    const char *job;    /* id for the new job; required */
    const char *device; /* the disk's root: node name or -drive id; required */
    const char *top_node;     /* NULL: the root. Of it, and of what only
                                 filters are above, the job becomes ready, and
                                 qmp_job_complete() pivots */
    const char *base_node;    /* NULL: the chain's base */
    const char *backing_file; /* string for the header above; NULL: base's */
    uint64_t speed;           /* bytes per second; 0: no limit */
    bool held;                /* its end waits for qmp_job_finalize() */
};
int qmp_block_commit(struct qstill_qmp *q, const struct qmp_commit *c,
                     struct qstill_error *err);

struct qmp_stream {
    const char *job;          /* required */
    const char *device;       /* the node that is filled; required */
    const char *base_node;    /* stays as its backing node, or */
    const char *bottom;       /* the last node that is copied from */
    const char *backing_file; /* string for the header; NULL: QEMU's choice */
    uint64_t speed;
};
int qmp_block_stream(struct qstill_qmp *q, const struct qmp_stream *s,
                     struct qstill_error *err);

/* Loads VM state from the internal snapshot `tag` of node `vmstate` alone; no
 * other disk is touched. The VM must be stopped and stays so. */
int qmp_snapshot_load(struct qstill_qmp *q, const char *job, const char *tag,
                      const char *vmstate, struct qstill_error *err);

enum qmp_job_state {
    QMP_JOB_BUSY,     /* created, running, paused, waiting, ... */
    QMP_JOB_READY,    /* ready or standby: wants qmp_job_complete() */
    QMP_JOB_PENDING,  /* a held one has done its work: qmp_job_finalize(). What
                         is written to the disk meanwhile waits for that */
    QMP_JOB_CONCLUDED /* over: `error` says how */
};
struct qmp_job {
    enum qmp_job_state state;
    char status[32]; /* QEMU's word */
    char type[32];
    char error[512]; /* "" when it went well, or is not over */
    uint64_t done;   /* progress, in units of its own */
    uint64_t total;
};
struct qmp_block_job {
    char id[64];
    char type[32];
};
/* The first block job (backup, mirror, commit, stream), whosever it is. */
int qmp_block_job_any(struct qstill_qmp *q, struct qmp_block_job *out,
                      bool *any, struct qstill_error *err);

/* NOT_FOUND when there is no such job. */
int qmp_job_read(struct qstill_qmp *q, const char *job, struct qmp_job *out,
                 struct qstill_error *err);

/*
 * Waits until the job has come to that state, or to a later one; *out is its
 * state then. UNREACHABLE when it
 * takes longer than timeout_ms. A job that concluded with an error is no
 * failure here: see out->error. Events that are no job's stay queued.
 */
int qmp_job_wait(struct qstill_qmp *q, const char *job,
                 enum qmp_job_state until, uint32_t timeout_ms,
                 struct qmp_job *out, struct qstill_error *err);

int qmp_job_complete(struct qstill_qmp *q, const char *job,
                     struct qstill_error *err);
int qmp_job_finalize(struct qstill_qmp *q, const char *job,
                     struct qstill_error *err);
/* A ready or pending commit that is cancelled leaves the old chain in place.
 * Fine when the job is over or gone. */
int qmp_job_cancel(struct qstill_qmp *q, const char *job,
                   struct qstill_error *err);
/* Only of a concluded job. Fine when it is gone. */
int qmp_job_dismiss(struct qstill_qmp *q, const char *job,
                    struct qstill_error *err);
/* Bytes per second for a running block job; 0: no limit. */
int qmp_job_set_speed(struct qstill_qmp *q, const char *job, uint64_t speed,
                      struct qstill_error *err);

/* Waits for the end, dismisses, and turns the job's own error into FAILED with
 * its text. On a timeout the job is left as it is. */
int qmp_job_finish(struct qstill_qmp *q, const char *job, uint32_t timeout_ms,
                   struct qstill_error *err);

#endif
