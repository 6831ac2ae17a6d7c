/* SPDX-License-Identifier: MIT */
/* Programs that `qstill bench` starts: QEMU and qemu-img. */
#ifndef QSTILL_CLI_BENCH_SPAWN_H
#define QSTILL_CLI_BENCH_SPAWN_H

#include <sys/types.h>

#include "cli.h"

/* Starts argv[0], found by PATH, in the folder `cwd`, its output in the file
 * `log` there. NOT_FOUND when there is no such program. */
int bench_spawn(const char *const *argv, const char *cwd, const char *log,
                pid_t *out, struct qstill_error *err);

/* The last line of that file; returns `out`. */
const char *bench_last_words(const char *cwd, const char *log, char out[200]);

#endif
