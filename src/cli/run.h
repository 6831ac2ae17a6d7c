/* SPDX-License-Identifier: MIT */
/* Running a job in the foreground: progress, and signals that cancel it. */
#ifndef QSTILL_CLI_RUN_H
#define QSTILL_CLI_RUN_H

#include "cli.h"

/*
 * To be called before the job is made. From here on SIGINT, SIGTERM and SIGHUP
 * ask for a cancel (however often they come), and the terminal's stop signals
 * are ignored: a VM must not stand still because somebody typed ^Z.
 */
void run_prepare(const struct cli *cli);

/* Runs the job to its end and returns its result. The job stays the
 * caller's. */
int run_job(struct cli *cli, struct qstill_job *job, struct qstill_error *err);

/* For work between jobs: CANCELLED, with `err` set, when a signal has asked for
 * it; else 0. */
int run_cancelled(struct qstill_error *err);

void run_job_freep(struct qstill_job **job); /* for CLEANUP */

#endif
