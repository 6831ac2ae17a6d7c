/* SPDX-License-Identifier: MIT */
/* Snapshots by the words of the command line. */
#include "find.h"

int find_snapshot(struct cli *cli, const char *vm, const char *snap,
                  struct qstill_snapshot_list **list,
                  const struct qstill_snapshot **out, struct qstill_error *err)
{
    struct qstill_store *store;

    if (cli_store(cli, &store, err) < 0 ||
        qstill_snapshot_list(store, vm, list, err) < 0)
        return err->code;
    return qstill_snapshot_find(*list, snap, out, err);
}

void find_list_freep(struct qstill_snapshot_list **list)
{
    if (*list)
        qstill_snapshot_list_free(*list);
}

void find_vms_freep(struct qstill_vm_list **list)
{
    if (*list)
        qstill_vm_list_free(*list);
}
