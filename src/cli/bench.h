/* SPDX-License-Identifier: MIT */
/* What the three benchmarks of `qstill bench` share: samples, a table of ways
 * with the first as the measure, and how they are shown. */
#ifndef QSTILL_CLI_BENCH_H
#define QSTILL_CLI_BENCH_H

#include "args.h"
#include "bench_guest.h"

enum { BENCH_REPS_MAX = 100, BENCH_ROWS_MAX = 12, BENCH_REPS_DEFAULT = 3 };

struct bench_samples {
    double v[BENCH_REPS_MAX];
    size_t n;
};
void bench_add(struct bench_samples *s, double v);
/* Of no samples: 0. */
double bench_median(const struct bench_samples *s);
double bench_max(const struct bench_samples *s);

/* One way to do the work. */
struct bench_row {
    const char *name;
    bool ours;
    struct bench_samples ms;    /* the work */
    struct bench_samples pause; /* that the guest stood still; may be empty */
    uint64_t bytes;             /* of the result; 0: no matter */
    char skipped[256];          /* why there are no samples */
};

struct bench_report {
    const char *what;  /* "memory" */
    const char *unit;  /* what one sample is, for people */
    const char *accel; /* of the VM, or NULL */
    uint64_t size;
    size_t reps;
    size_t count;
    struct bench_row rows[BENCH_ROWS_MAX];
    /* Of `memory`: stalls of the guest's writes under our snapshots, and as
     * long without. The quantiles are of the `slowest` slowest. */
    bool has_stalls;
    uint64_t slowest;
    struct guest_took stalls, idle;
};

/* A further row; there is room for BENCH_ROWS_MAX. */
struct bench_row *bench_row(struct bench_report *r, const char *name,
                            bool ours);
/* A way that cannot be gone here is told, not fatal: keeps the message of
 * `err` and clears it. CANCELLED stays an error. */
int bench_skip(struct bench_row *row, struct qstill_error *err);

/* JSON, or a table and the histogram. */
int bench_show(const struct cli *cli, const struct bench_report *r,
               struct qstill_error *err);

/* --reps, within its bounds. */
int bench_reps(const struct cli *cli, const struct args *args, size_t *out,
               struct qstill_error *err);

/* Runs a job without its progress; frees it. */
int bench_job(struct cli *cli, struct qstill_job *job,
              struct qstill_error *err);

#endif
