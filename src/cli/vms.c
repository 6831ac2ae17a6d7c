/* SPDX-License-Identifier: MIT */
/* qstill vms: the attached VMs and how they are. */
#include "verbs.h"

#include <stdio.h>

#include "args.h"
#include "find.h"
#include "show.h"
#include "text.h"

static int vms_table(const struct qstill_vm_list *list,
                     struct qstill_error *err)
{
    CLEANUP(table_fini) struct table t;

    table_init(&t, "llrrll");
    table_cell(&t, "NAME");
    table_cell(&t, "STATE");
    table_cell(&t, "SNAPSHOTS");
    table_cell(&t, "DISKS");
    table_cell(&t, "CURRENT");
    table_cell(&t, "QMP");
    for (size_t i = 0; i < list->count; i++) {
        const struct qstill_vm *vm = &list->vms[i];

        table_cell(&t, vm->name);
        table_cell(&t, vm->state);
        table_cellf(&t, "%zu", vm->snapshots);
        table_cellf(&t, "%zu", vm->disks);
        table_cell(&t, vm->current);
        table_cell(&t, vm->qmp);
    }
    if (table_print(&t, stdout) < 0)
        return cli_fail(err, QSTILL_E_FAILED, "out of memory");
    return 0;
}

static int vms_run(struct cli *cli, const struct args *args,
                   struct qstill_error *err)
{
    CLEANUP(find_vms_freep) struct qstill_vm_list *list = NULL;
    struct out o = OUT_INIT(stdout);
    struct qstill_store *store;

    (void)args;
    if (cli_store(cli, &store, err) < 0 ||
        qstill_vm_list(store, &list, err) < 0)
        return err->code;
    if (!cli->json && list->count == 0) {
        show_words(cli, "no VM is attached; see 'qstill attach --help'");
        return 0;
    }
    if (!cli->json)
        return vms_table(list, err);
    out_object(&o, NULL);
    out_array(&o, "vms");
    for (size_t i = 0; i < list->count; i++)
        show_vm_json(&o, NULL, &list->vms[i]);
    out_end(&o);
    out_end(&o);
    return 0;
}

const struct verb verb_vms = {
    .name = "vms",
    .summary = "Lists the attached VMs",
    .run = vms_run,
};
