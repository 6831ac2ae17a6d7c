/* SPDX-License-Identifier: MIT */
/* VMs and snapshots as the verbs show them: one shape for every verb. */
#ifndef QSTILL_CLI_SHOW_H
#define QSTILL_CLI_SHOW_H

#include "cli.h"
#include "output.h"

/* The JSON objects of the manual: a VM of `vms`, a snapshot of `info`. */
void show_vm_json(struct out *o, const char *key, const struct qstill_vm *vm);
void show_snapshot_json(struct out *o, const char *key,
                        const struct qstill_snapshot *s);

/* The damaged ones of a list: an array of {"id", "message", "hint"}; and, for
 * people, a warning for each on stderr, unless -q. */
void show_damaged_json(struct out *o, const char *key,
                       const struct qstill_snapshot_list *list);
void show_damaged(const struct cli *cli, const char *vm,
                  const struct qstill_snapshot_list *list);

/* The lines of `text` as an array of strings. */
void show_lines_json(struct out *o, const char *key, const char *text);

/* The plan of a --dry-run: {"plan":[...]} or the lines, on stdout. */
void show_plan(const struct cli *cli, const struct qstill_job *job);

/* With -v, what a finished job has to tell, on stderr. */
void show_account(const struct cli *cli, const struct qstill_job *job);

/* Of its text the lines that begin with "note: ", on stderr; not with -q. */
void show_notes(const struct cli *cli, const struct qstill_job *job);

/* Words for people on stderr, one line; not with --json or -q. */
void show_words(const struct cli *cli, const char *fmt, ...) PRINTF_LIKE(2, 3);

#endif
