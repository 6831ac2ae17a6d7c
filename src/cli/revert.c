/* SPDX-License-Identifier: MIT */
/* qstill revert: takes a VM back to a snapshot. */
#include "verbs.h"

#include <stdio.h>

#include "args.h"
#include "find.h"
#include "run.h"
#include "show.h"

static const struct {
    const char *option;
    enum qstill_run_state state;
} run_states[] = {
    {"start", QSTILL_STATE_RUNNING},
    {"paused", QSTILL_STATE_PAUSED},
    {"stopped", QSTILL_STATE_STOPPED},
};

static int read_state(const struct cli *cli, const struct args *args,
                      enum qstill_run_state *state, struct qstill_error *err)
{
    const char *given = NULL;

    for (size_t i = 0; i < ARRAY_LEN(run_states); i++) {
        if (!args_flag(args, run_states[i].option))
            continue;
        if (given)
            return cli_usage(cli, err, "--%s and --%s exclude each other",
                             given, run_states[i].option);
        given = run_states[i].option;
        *state = run_states[i].state;
    }
    return 0;
}

static void revert_json(const char *vm, const char *snap,
                        const struct qstill_revert_result *result)
{
    struct out o = OUT_INIT(stdout);

    out_object(&o, NULL);
    out_text(&o, "vm", vm);
    out_text(&o, "snapshot", snap);
    out_text(&o, "state", result->state);
    out_text(&o, "restore", result->restore);
    if (result->kept) {
        out_object(&o, "kept");
        out_text(&o, "id", result->kept);
        out_bool(&o, "memory", result->kept_memory);
        out_text(&o, "reason", result->kept_reason);
        out_end(&o);
    } else {
        out_null(&o, "kept");
    }
    out_object(&o, "ms");
    for (size_t i = 0; i < result->time_count; i++)
        out_real(&o, result->times[i].phase, result->times[i].ms);
    out_end(&o);
    out_end(&o);
}

static void revert_words(const struct cli *cli, const char *vm,
                         const char *snap,
                         const struct qstill_revert_result *result)
{
    double total =
        result->time_count ? result->times[result->time_count - 1].ms : 0;

    show_words(cli, "%s: back at %s, %s (%s, %.0f ms)", vm, snap, result->state,
               result->restore, total);
}

static int revert_run(struct cli *cli, const struct args *args,
                      struct qstill_error *err)
{
    struct qstill_revert_options options = QSTILL_REVERT_OPTIONS_INIT;
    CLEANUP(run_job_freep) struct qstill_job *job = NULL;
    CLEANUP(find_list_freep) struct qstill_snapshot_list *list = NULL;
    const char *vm = args_operand(args, 0), *snap = args_operand(args, 1);
    const struct qstill_revert_result *result;
    const struct qstill_snapshot *s;
    struct qstill_store *store;

    if (read_state(cli, args, &options.state, err) < 0 ||
        cli_store(cli, &store, err) < 0)
        return err->code;
    options.restore = args_text(args, "restore");
    options.keep = args_flag(args, "keep");
    options.force = args_flag(args, "force");
    options.keep_trash = args_keep_trash(args);
    options.dry_run = args_flag(args, "dry-run");
    run_prepare(cli);
    if (qstill_revert(store, vm, snap, &options, &job, err) < 0 ||
        run_job(cli, job, err) < 0)
        return err->code;
    result = qstill_revert_result(job);
    if (options.dry_run || !result) {
        show_plan(cli, job);
        return 0;
    }
    show_account(cli, job);
    revert_words(cli, vm, snap, result);
    if (!cli->json)
        return 0;
    if (find_snapshot(cli, vm, snap, &list, &s, err) < 0)
        return err->code;
    revert_json(vm, s->id, result);
    return 0;
}

static const struct option_spec revert_options[] = {
    {"start", NULL, OPTION_FLAG, false, "have the VM run afterwards"},
    {"paused", NULL, OPTION_FLAG, false, "have it stand at the snapshot"},
    {"stopped", NULL, OPTION_FLAG, false, "have no QEMU process afterwards"},
    {"restore", "auto|inplace|mapped|eager", OPTION_CHOICE, false,
     "how the memory comes back"},
    {"keep", NULL, OPTION_FLAG, false, "make a snapshot of what would be lost"},
    {"force", NULL, OPTION_FLAG, false,
     "go on in spite of differences that can be survived"},
    {"keep-trash", "N", OPTION_NUMBER, false,
     "let undo take it back until N more operations have been"},
    {"dry-run", NULL, OPTION_FLAG, false, "print what would be done"},
    {0},
};

const struct verb verb_revert = {
    .name = "revert",
    .aliases = {"rollback", "restore"},
    .summary = "Takes a VM back to a snapshot",
    .operands = {{"VM", false, false}, {"SNAP", false, false}},
    .options = revert_options,
    .run = revert_run,
};
