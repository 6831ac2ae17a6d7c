/* SPDX-License-Identifier: MIT */
/* Snapshots by the words of the command line, and their lists' cleanup. */
#ifndef QSTILL_CLI_FIND_H
#define QSTILL_CLI_FIND_H

#include "cli.h"

/* The list of VM and SNAP in it; the caller frees the list. */
int find_snapshot(struct cli *cli, const char *vm, const char *snap,
                  struct qstill_snapshot_list **list,
                  const struct qstill_snapshot **out, struct qstill_error *err);

/* For CLEANUP. */
void find_list_freep(struct qstill_snapshot_list **list);
void find_vms_freep(struct qstill_vm_list **list);

#endif
