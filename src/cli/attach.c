/* SPDX-License-Identifier: MIT */
/* qstill attach, qstill detach: which VMs the store knows. */
#include "verbs.h"

#include <stdio.h>
#include <string.h>

#include "args.h"
#include "find.h"
#include "show.h"

static int show_attached(struct cli *cli, struct qstill_store *store,
                         const char *name, struct qstill_error *err)
{
    CLEANUP(find_vms_freep) struct qstill_vm_list *list = NULL;
    struct out o = OUT_INIT(stdout);

    if (qstill_vm_list(store, &list, err) < 0)
        return err->code;
    for (size_t i = 0; i < list->count; i++) {
        const struct qstill_vm *vm = &list->vms[i];

        if (strcmp(vm->name, name) != 0)
            continue;
        if (cli->json)
            show_vm_json(&o, NULL, vm);
        show_words(cli, "%s: attached, %s, %zu disk%s", name, vm->state,
                   vm->disks, vm->disks == 1 ? "" : "s");
        return 0;
    }
    return cli_fail(err, QSTILL_E_NOT_FOUND,
                    "VM %s was attached, and is gone already", name);
}

static int attach_run(struct cli *cli, const struct args *args,
                      struct qstill_error *err)
{
    struct qstill_attach_options options = QSTILL_ATTACH_OPTIONS_INIT;
    const char *name = args_operand(args, 0);
    struct qstill_store *store;

    options.qmp = args_text(args, "qmp");
    options.agent = args_text(args, "agent");
    options.launcher = args_text(args, "launcher");
    if (cli_store(cli, &store, err) < 0 ||
        qstill_vm_attach(store, name, &options, err) < 0)
        return err->code;
    return show_attached(cli, store, name, err);
}

static const struct option_spec attach_options[] = {
    {"qmp", "SOCK", OPTION_FILE, true,
     "the QMP unix socket; no other client may hold it"},
    {"agent", "SOCK", OPTION_FILE, false,
     "the unix socket of the guest agent, for --quiesce"},
    {"launcher", "CMD", OPTION_TEXT, false,
     "how to start the VM when its own command line will not do"},
    {0},
};

const struct verb verb_attach = {
    .name = "attach",
    .summary = "Makes a running VM known under a name",
    .operands = {{"VM", false, false}},
    .options = attach_options,
    .run = attach_run,
};

static int detach_run(struct cli *cli, const struct args *args,
                      struct qstill_error *err)
{
    const char *name = args_operand(args, 0);
    struct qstill_store *store;
    struct out o = OUT_INIT(stdout);

    if (cli_store(cli, &store, err) < 0 ||
        qstill_vm_detach(store, name, err) < 0)
        return err->code;
    if (cli->json) {
        out_object(&o, NULL);
        out_text(&o, "vm", name);
        out_end(&o);
    }
    show_words(cli, "%s: detached", name);
    return 0;
}

const struct verb verb_detach = {
    .name = "detach",
    .summary = "Forgets a VM that has no snapshots",
    .operands = {{"VM", false, false}},
    .run = detach_run,
};
