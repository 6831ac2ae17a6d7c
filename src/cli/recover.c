/* SPDX-License-Identifier: MIT */
/* qstill recover: finishes or undoes what died half-way. Other verbs do it by
 * themselves; this one says what it did. */
#include "verbs.h"

#include <stdio.h>

#include "args.h"
#include "run.h"
#include "show.h"
#include "text.h"

static void print(const struct cli *cli, const char *accepted, const char *text)
{
    struct out o = OUT_INIT(stdout);

    if (cli->json) {
        out_object(&o, NULL);
        show_lines_json(&o, "actions", text);
        if (accepted)
            show_lines_json(&o, "accepted", accepted);
        out_end(&o);
        return;
    }
    text_safe_lines(stdout, text);
    if (!text[0] && !(accepted && accepted[0]))
        show_words(cli, "nothing to recover");
}

static int accept_layers(struct cli *cli, struct qstill_store *store,
                         const char *vm, bool dry_run, struct qstill_job **job,
                         struct qstill_error *err)
{
    if (!vm)
        return cli_usage(cli, err, "--force needs the name of the VM");
    if (qstill_accept(store, vm, dry_run, job, err) < 0 ||
        run_job(cli, *job, err) < 0)
        return err->code;
    if (!cli->json)
        text_safe_lines(stdout, qstill_job_text(*job));
    return 0;
}

/* What was taken as it is may be merged now: the recovery comes after it. */
static int recover_run(struct cli *cli, const struct args *args,
                       struct qstill_error *err)
{
    CLEANUP(run_job_freep) struct qstill_job *job = NULL;
    CLEANUP(run_job_freep) struct qstill_job *accept = NULL;
    const char *vm = args_operand(args, 0), *accepted = NULL;
    bool dry_run = args_flag(args, "dry-run");
    struct qstill_store *store;

    if (cli_store(cli, &store, err) < 0)
        return err->code;
    run_prepare(cli);
    if (args_flag(args, "force")) {
        if (accept_layers(cli, store, vm, dry_run, &accept, err) < 0)
            return err->code;
        accepted = qstill_job_text(accept);
    }
    if (dry_run && accepted && accepted[0]) {
        print(cli, accepted, ""); /* nothing else goes on before that */
        return 0;
    }
    if (qstill_recover(store, vm, dry_run, &job, err) < 0 ||
        run_job(cli, job, err) < 0)
        return err->code;
    print(cli, accepted, qstill_job_text(job));
    return 0;
}

static const struct option_spec recover_options[] = {
    {"force", NULL, OPTION_FLAG, false,
     "take changed layers of this VM as they are"},
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
