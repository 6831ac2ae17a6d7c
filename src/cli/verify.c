/* SPDX-License-Identifier: MIT */
/* qstill verify: reads all of a snapshot and checks it against its sums. */
#include "verbs.h"

#include <stdio.h>

#include "args.h"
#include "run.h"
#include "show.h"

static int verify_run(struct cli *cli, const struct args *args,
                      struct qstill_error *err)
{
    CLEANUP(run_job_freep) struct qstill_job *job = NULL;
    const char *vm = args_operand(args, 0), *snap = args_operand(args, 1);
    struct qstill_store *store;
    struct out o = OUT_INIT(stdout);

    if (cli_store(cli, &store, err) < 0)
        return err->code;
    run_prepare(cli);
    if (qstill_verify(store, vm, snap, &job, err) < 0 ||
        run_job(cli, job, err) < 0)
        return err->code;
    show_account(cli, job);
    if (cli->json) {
        out_object(&o, NULL);
        out_text(&o, "vm", vm);
        out_text(&o, "snapshot", snap);
        out_bool(&o, "ok", true);
        show_lines_json(&o, "report", qstill_job_text(job));
        out_end(&o);
    }
    show_words(cli, "%s: no damage found", snap);
    return 0;
}

const struct verb verb_verify = {
    .name = "verify",
    .summary = "Checks the files of a snapshot against their sums",
    .operands = {{"VM", false, false}, {"SNAP", false, false}},
    .run = verify_run,
};
