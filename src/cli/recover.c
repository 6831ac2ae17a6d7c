/* SPDX-License-Identifier: MIT */
/* qstill recover: finishes or undoes what died half-way. Other verbs do it by
 * themselves; this one says what it did. */
#include "verbs.h"

#include <stdio.h>

#include "args.h"
#include "run.h"
#include "show.h"
#include "text.h"

static int recover_run(struct cli *cli, const struct args *args,
                       struct qstill_error *err)
{
    CLEANUP(run_job_freep) struct qstill_job *job = NULL;
    struct out o = OUT_INIT(stdout);
    struct qstill_store *store;
    const char *text;

    if (cli_store(cli, &store, err) < 0)
        return err->code;
    run_prepare(cli);
    if (qstill_recover(store, args_operand(args, 0), args_flag(args, "dry-run"),
                       &job, err) < 0 ||
        run_job(cli, job, err) < 0)
        return err->code;
    text = qstill_job_text(job);
    if (cli->json) {
        out_object(&o, NULL);
        show_lines_json(&o, "actions", text);
        out_end(&o);
        return 0;
    }
    text_safe_lines(stdout, text);
    if (!text[0])
        show_words(cli, "nothing to recover");
    return 0;
}

static const struct option_spec recover_options[] = {
    {"dry-run", NULL, OPTION_FLAG, false, "print what would be done"},
    {0},
};

const struct verb verb_recover = {
    .name = "recover",
    .summary = "Finishes or undoes an operation that died",
    .operands = {{"VM", true, false}},
    .options = recover_options,
    .run = recover_run,
};
