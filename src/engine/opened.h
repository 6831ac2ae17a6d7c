/* SPDX-License-Identifier: MIT */
/*
 * The files that a process has open, whatever their names are by now.
 */
#ifndef QSTILL_ENGINE_OPENED_H
#define QSTILL_ENGINE_OPENED_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/error.h"

struct opened {
    struct opened_file {
        dev_t dev;
        ino_t ino;
    } * files; /* regular ones */
    size_t count;
    bool known; /* false: the process is gone, or not ours to look into */
};

int opened_read(struct opened *o, int pid, struct qstill_error *err);
void opened_fini(struct opened *o);
/* Whether one of them is the file that has that name now. */
bool opened_has(const struct opened *o, const char *path);
/* A process that has it open, not this one nor `except` (0: none); 0 when none
 * can be seen. Looks at all of /proc: for messages, and what is rare. */
int opened_by(const char *path, int except);
/* "process 123 (qemu-system-x86)"; of 0 "what has it open". */
void opened_describe(int pid, char *out, size_t size);
/* The next process after `pid`, by number, that has the argument -`name` (or
 * --`name`) on its command line; 0: none. */
int opened_next(int pid, const char *name);

#endif
