/* SPDX-License-Identifier: MIT */
/* qstill delete: takes snapshots out of the tree, wherever they stand. */
#include "verbs.h"

#include <stdio.h>
#include <string.h>

#include "args.h"
#include "find.h"
#include "run.h"
#include "show.h"

static bool in_list(const struct qstill_snapshot_list *list, const char *id)
{
    for (size_t i = 0; i < list->count; i++)
        if (strcmp(list->snapshots[i].id, id) == 0)
            return true;
    return false;
}

static bool is_damaged_in(const struct qstill_snapshot_list *list,
                          const char *id)
{
    for (size_t i = 0; i < list->damaged_count; i++)
        if (strcmp(list->damaged[i].id, id) == 0)
            return true;
    return false;
}

static void show_deleted(const struct cli *cli, const char *vm,
                         const struct qstill_snapshot_list *before,
                         const struct qstill_snapshot_list *after)
{
    struct out o = OUT_INIT(stdout);

    if (cli->json) {
        out_object(&o, NULL);
        out_text(&o, "vm", vm);
        out_array(&o, "deleted");
    }
    for (size_t i = 0; i < before->count; i++) {
        const struct qstill_snapshot *s = &before->snapshots[i];

        if (in_list(after, s->id))
            continue;
        show_words(cli, "%s: deleted", s->name);
        if (cli->json)
            out_text(&o, NULL, s->id);
    }
    for (size_t i = 0; i < before->damaged_count; i++) {
        const char *id = before->damaged[i].id;

        if (is_damaged_in(after, id))
            continue;
        show_words(cli, "%s: deleted", id);
        if (cli->json)
            out_text(&o, NULL, id);
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
    CLEANUP(find_list_freep) struct qstill_snapshot_list *before = NULL;
    CLEANUP(find_list_freep) struct qstill_snapshot_list *after = NULL;
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
    if (qstill_snapshot_list(store, vm, &before, err) < 0 ||
        qstill_delete(store, vm, args->operands + 1, args->operand_count - 1,
                      &options, &job, err) < 0 ||
        run_job(cli, job, err) < 0)
        return err->code;
    if (options.dry_run) {
        show_plan(cli, job);
        return 0;
    }
    show_account(cli, job);
    if (qstill_snapshot_list(store, vm, &after, err) < 0)
        return err->code;
    show_deleted(cli, vm, before, after);
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
