/* SPDX-License-Identifier: MIT */
/* qstill check: what would hinder a snapshot or its revert. Exits with the
 * status of a precondition when something does. */
#include "verbs.h"

#include <stdio.h>

#include "args.h"
#include "show.h"
#include "text.h"

static void check_json(const struct qstill_check_report *report)
{
    struct out o = OUT_INIT(stdout);

    out_object(&o, NULL);
    out_bool(&o, "ok", report->ok);
    out_array(&o, "problems");
    for (size_t i = 0; i < report->problem_count; i++) {
        out_object(&o, NULL);
        out_text(&o, "code", report->problems[i].code);
        out_text(&o, "message", report->problems[i].message);
        out_text(&o, "hint", report->problems[i].hint);
        out_end(&o);
    }
    out_end(&o);
    out_object(&o, "captureModes");
    for (size_t i = 0; i < report->mode_count; i++)
        out_text(&o, report->modes[i].mode, report->modes[i].reason);
    out_end(&o);
    out_end(&o);
}

static void check_words(const char *vm,
                        const struct qstill_check_report *report)
{
    for (size_t i = 0; i < report->problem_count; i++) {
        const struct qstill_problem *p = &report->problems[i];

        printf("%s: ", p->code);
        text_safe(stdout, p->message);
        if (p->hint && p->hint[0]) {
            fputs("\n    ", stdout);
            text_safe(stdout, p->hint);
        }
        putchar('\n');
    }
    for (size_t i = 0; i < report->mode_count; i++) {
        const struct qstill_capture_mode *m = &report->modes[i];

        printf("mode %-10s  ", m->mode);
        text_safe(stdout, m->reason ? m->reason : "can be used");
        putchar('\n');
    }
    if (report->ok)
        printf("%s: ok, nothing hinders a snapshot\n", vm);
}

static int check_run(struct cli *cli, const struct args *args,
                     struct qstill_error *err)
{
    struct qstill_check_options options = QSTILL_CHECK_OPTIONS_INIT;
    struct qstill_check_report *report = NULL;
    const char *vm = args_operand(args, 0);
    struct qstill_store *store;

    options.memory = args_flag(args, "memory");
    options.quiesce = args_flag(args, "quiesce");
    if (cli_store(cli, &store, err) < 0 ||
        qstill_check(store, vm, &options, &report, err) < 0)
        return err->code;
    if (cli->json)
        check_json(report);
    else
        check_words(vm, report);
    if (!report->ok)
        cli->status = -QSTILL_E_PRECONDITION;
    qstill_check_report_free(report);
    return 0;
}

static const struct option_spec check_options[] = {
    {"memory", NULL, OPTION_FLAG, false,
     "also what hinders a snapshot with memory and its revert"},
    {"quiesce", NULL, OPTION_FLAG, false,
     "also whether the guest agent answers"},
    {0},
};

const struct verb verb_check = {
    .name = "check",
    .summary = "Tells what would hinder a snapshot or its revert, and the fix",
    .operands = {{"VM", false, false}},
    .options = check_options,
    .run = check_run,
};
