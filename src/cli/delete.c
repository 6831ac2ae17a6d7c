/* SPDX-License-Identifier: MIT */
/* qstill delete: takes snapshots out of the tree, wherever they stand. */
#include "verbs.h"

#include <stdio.h>
#include <string.h>

#include "args.h"
#include "find.h"
#include "run.h"
#include "show.h"

static void show_deleted(const struct cli *cli, const char *vm,
                         const struct qstill_delete_result *result)
{
    struct out o = OUT_INIT(stdout);

    if (cli->json) {
        out_object(&o, NULL);
        out_text(&o, "vm", vm);
        out_array(&o, "deleted");
    }
    for (size_t i = 0; result && i < result->count; i++) {
        const struct qstill_deleted *d = &result->deleted[i];

        show_words(cli, "%s: deleted", d->name ? d->name : d->id);
        if (cli->json)
            out_text(&o, NULL, d->id);
    }
    if (cli->json) {
        out_end(&o);
        out_end(&o);
    }
}

static int delete_run(struct cli *cli, const struct args *args,
                      struct qstill_error *err)
{
    struct qstill_delete_options options = QSTILL_DELETE_OPTIONS_INIT;
    CLEANUP(run_job_freep) struct qstill_job *job = NULL;
    const char *vm = args_operand(args, 0);
    struct qstill_store *store;

    options.children = args_flag(args, "children");
    options.keep_hidden = args_flag(args, "keep-hidden");
    options.keep_trash = args_keep_trash(args);
    options.dry_run = args_flag(args, "dry-run");
    options.bwlimit = args_number(args, "bwlimit");
    options.paranoid = args_flag(args, "paranoid");
    options.force = args_flag(args, "force");
    if (cli_store(cli, &store, err) < 0)
        return err->code;
    run_prepare(cli);
    if (qstill_delete(store, vm, args->operands + 1, args->operand_count - 1,
                      &options, &job, err) < 0 ||
        run_job(cli, job, err) < 0)
        return err->code;
    if (options.dry_run) {
        show_plan(cli, job);
        return 0;
    }
    show_account(cli, job);
    show_deleted(cli, vm, qstill_delete_result(job));
    return 0;
}

static const struct option_spec delete_options[] = {
    {"children", NULL, OPTION_FLAG, false,
     "with all snapshots that descend from them"},
    {"keep-hidden", NULL, OPTION_FLAG, false,
     "let a disk file stay, unlisted, while several children share it"},
    {"keep-trash", "N", OPTION_NUMBER, false,
     "let undo take it back until N more operations have been"},
    {"bwlimit", "SIZE", OPTION_SIZE, false, "limit merges to SIZE a second"},
    {"paranoid", NULL, OPTION_FLAG, false,
     "compare what each remaining snapshot holds before and after"},
    {"force", NULL, OPTION_FLAG, false,
     "though what the disks were made on has changed"},
    {"dry-run", NULL, OPTION_FLAG, false,
     "print which files are merged how, and the bytes moved"},
    {0},
};

const struct verb verb_delete = {
    .name = "delete",
    .aliases = {"rm"},
    .summary = "Deletes snapshots, wherever they stand in the tree",
    .operands = {{"VM", false, false}, {"SNAP", false, true}},
    .options = delete_options,
    .run = delete_run,
};
