/* SPDX-License-Identifier: MIT */
/* qstill rename: another name for a snapshot. */
#include "verbs.h"

#include <stdio.h>

#include "args.h"
#include "find.h"
#include "show.h"

static int rename_run(struct cli *cli, const struct args *args,
                      struct qstill_error *err)
{
    CLEANUP(find_list_freep) struct qstill_snapshot_list *list = NULL;
    const char *vm = args_operand(args, 0), *snap = args_operand(args, 1);
    const char *name = args_operand(args, 2);
    const struct qstill_snapshot *s;
    struct qstill_store *store;
    struct out o = OUT_INIT(stdout);

    if (cli_store(cli, &store, err) < 0 ||
        qstill_snapshot_rename(store, vm, snap, name, err) < 0)
        return err->code;
    if (cli->json) {
        if (find_snapshot(cli, vm, name, &list, &s, err) < 0)
            return err->code;
        show_snapshot_json(&o, NULL, s);
    }
    show_words(cli, "%s: now called %s", snap, name);
    return 0;
}

const struct verb verb_rename = {
    .name = "rename",
    .summary = "Gives a snapshot another name",
    .operands = {{"VM", false, false},
                 {"SNAP", false, false},
                 {"NEW", false, false}},
    .run = rename_run,
};
