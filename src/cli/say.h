/* SPDX-License-Identifier: MIT */
/*
 * Standard error while a job is at work. Whoever does not read it (a terminal
 * after Ctrl-S, a pipe that is full) must not keep the job from going on, which
 * may have stopped or frozen a guest: what cannot be written at once is kept
 * until it can.
 */
#ifndef QSTILL_CLI_SAY_H
#define QSTILL_CLI_SAY_H

#include <stdbool.h>
#include <stdio.h>

/* A stream that never waits, or stderr where there is no memory for one. */
FILE *say_open(void);
/* Closes it, and writes what is left, waiting. */
void say_close(FILE *stream);
/* Writes what can be written without waiting. Whether nothing is left. */
bool say_push(void);

/* For signal handlers, too: whether standard error takes some bytes now. */
bool say_is_writable(void);

#endif
