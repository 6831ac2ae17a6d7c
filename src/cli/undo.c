/* SPDX-License-Identifier: MIT */
/* qstill undo: takes back the last revert or delete. */
#include "verbs.h"

#include <stdio.h>

#include "args.h"
#include "run.h"
#include "show.h"
#include "text.h"

static int undo_run(struct cli *cli, const struct args *args,
                    struct qstill_error *err)
{
    struct qstill_undo_options options = QSTILL_UNDO_OPTIONS_INIT;
    CLEANUP(run_job_freep) struct qstill_job *job = NULL;
    struct out o = OUT_INIT(stdout);
    struct qstill_store *store;

    options.dry_run = args_flag(args, "dry-run");
    options.redo = args_flag(args, "redo");
    if (cli_store(cli, &store, err) < 0)
        return err->code;
    run_prepare(cli);
    if (qstill_undo(store, args_operand(args, 0), &options, &job, err) < 0 ||
        run_job(cli, job, err) < 0)
        return err->code;
    if (options.dry_run) {
        show_plan(cli, job);
        return 0;
    }
    if (!cli->json) {
        text_safe_lines(stdout, qstill_job_text(job));
        return 0;
    }
    out_object(&o, NULL);
    show_lines_json(&o, "actions", qstill_job_text(job));
    out_end(&o);
    return 0;
}

static const struct option_spec undo_options[] = {
    {"redo", NULL, OPTION_FLAG, false, "take the last undo of a revert back"},
    {"dry-run", NULL, OPTION_FLAG, false, "print what would be taken back"},
    {0},
};

const struct verb verb_undo = {
    .name = "undo",
    .summary = "Takes back the last revert or delete",
    .operands = {{"VM", false, false}},
    .options = undo_options,
    .run = undo_run,
};
