/* SPDX-License-Identifier: MIT */
/*
 * Progress on standard error: a bar on a terminal, a plain line a second
 * elsewhere, nothing with -q. Work that is over at once shows nothing.
 */
#ifndef QSTILL_CLI_PROGRESS_H
#define QSTILL_CLI_PROGRESS_H

#include "cli.h"

struct progress {
    struct cli *cli;
    bool terminal;
    char phase[32];
    double phase_began; /* seconds, monotonic */
    double shown;       /* when something was drawn last */
};

void progress_init(struct progress *p, struct cli *cli);
/* A tick of qstill_job_run(); `user` is the struct progress. */
void progress_tick(void *user, const struct qstill_progress *now);
/* Ends the bar's line, and with -v tells the last phase's time. */
void progress_end(struct progress *p);

/* Takes a half-drawn bar away before something else is printed. */
void progress_clear(struct cli *cli);

#endif
