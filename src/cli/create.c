/* SPDX-License-Identifier: MIT */
/* qstill create: takes a snapshot and shows it. */
#include "verbs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "args.h"
#include "find.h"
#include "run.h"
#include "show.h"
#include "text.h"

static void free_stringsp(const char ***strings)
{
    free(*strings);
}

/* "K=V" with a key, no key twice. */
static int check_labels(const struct cli *cli, const char *const *labels,
                        size_t count, struct qstill_error *err)
{
    for (size_t i = 0; i < count; i++) {
        size_t key = strcspn(labels[i], "=");

        if (key == 0 || !labels[i][key])
            return cli_usage(cli, err, "--label: '%s' is not KEY=VALUE",
                             labels[i]);
        for (size_t k = 0; k < i; k++)
            if (strncmp(labels[k], labels[i], key + 1) == 0)
                return cli_usage(cli, err, "--label: '%.*s' is given twice",
                                 (int)key, labels[i]);
    }
    return 0;
}

static int read_options(const struct cli *cli, const struct args *args,
                        const char ***labels,
                        struct qstill_create_options *options,
                        struct qstill_error *err)
{
    *labels = args_list(args, "label", &options->label_count);
    if (options->label_count && !*labels)
        return cli_fail(err, QSTILL_E_FAILED, "out of memory");
    options->labels = *labels;
    options->description = args_text(args, "description");
    options->memory = args_flag(args, "memory");
    options->quiesce = args_flag(args, "quiesce");
    options->mode = args_text(args, "mode");
    options->max_pause_ms = (uint32_t)args_number(args, "max-pause-ms");
    options->bwlimit = args_number(args, "bwlimit");
    options->disk_dir = args_text(args, "disk-dir");
    options->freeze_timeout_ms =
        (uint32_t)args_number(args, "freeze-timeout-ms");
    options->no_protect = args_flag(args, "no-protect");
    options->dry_run = args_flag(args, "dry-run");
    if (args_text(args, "max-pause-ms") && options->max_pause_ms == 0)
        return cli_usage(cli, err,
                         "--max-pause-ms: no pause at all cannot be "
                         "promised");
    if (options->mode && !options->memory)
        return cli_usage(cli, err, "--mode needs --memory");
    return check_labels(cli, options->labels, options->label_count, err);
}

static void create_words(const struct cli *cli, const struct qstill_snapshot *s)
{
    char size[TEXT_SIZE_MAX], stored[TEXT_SIZE_MAX];
    const char *plural = s->disk_count == 1 ? "" : "s";

    if (!s->memory_included) {
        show_words(cli, "%s: %zu disk%s", s->name, s->disk_count, plural);
        return;
    }
    show_words(cli,
               "%s: %zu disk%s and %s of memory (%s stored), mode %s, "
               "paused %.1f ms",
               s->name, s->disk_count, plural, text_size(size, s->memory_bytes),
               text_size(stored, s->memory_written), s->mode, s->pause_ms);
    if (s->mode_reason && s->mode_reason[0])
        show_words(cli, "mode %s: %s", s->mode, s->mode_reason);
}

static int show_created(struct cli *cli, const char *vm, const char *id,
                        struct qstill_error *err)
{
    CLEANUP(find_list_freep) struct qstill_snapshot_list *list = NULL;
    const struct qstill_snapshot *s;
    struct out o = OUT_INIT(stdout);

    if (find_snapshot(cli, vm, id, &list, &s, err) < 0)
        return err->code;
    if (cli->json) {
        show_snapshot_json(&o, NULL, s);
        return 0;
    }
    create_words(cli, s);
    puts(s->id);
    return 0;
}

/* What cannot be read now is there all the same: whoever was told of a failure
 * would create it again. */
static void show_id(struct cli *cli, const char *id, struct qstill_error *err)
{
    struct out o = OUT_INIT(stdout);

    fprintf(stderr,
            "qstill: create: the snapshot is made, but cannot be read: ");
    text_safe(stderr, err->message);
    fputc('\n', stderr);
    *err = (struct qstill_error){0};
    if (!cli->json) {
        puts(id);
        return;
    }
    out_object(&o, NULL);
    out_text(&o, "id", id);
    out_end(&o);
}

static int create_run(struct cli *cli, const struct args *args,
                      struct qstill_error *err)
{
    struct qstill_create_options options = QSTILL_CREATE_OPTIONS_INIT;
    CLEANUP(run_job_freep) struct qstill_job *job = NULL;
    CLEANUP(free_stringsp) const char **labels = NULL;
    const char *vm = args_operand(args, 0);
    struct qstill_store *store;
    char id[64];

    if (read_options(cli, args, &labels, &options, err) < 0 ||
        cli_store(cli, &store, err) < 0)
        return err->code;
    run_prepare(cli);
    if (qstill_create(store, vm, args_operand(args, 1), &options, &job, err) <
            0 ||
        run_job(cli, job, err) < 0)
        return err->code;
    if (options.dry_run) {
        show_plan(cli, job);
        return 0;
    }
    show_account(cli, job);
    snprintf(id, sizeof(id), "%s", qstill_create_id(job));
    run_job_freep(&job); /* its descriptors may be what is lacking */
    if (show_created(cli, vm, id, err) == 0)
        return 0;
    show_id(cli, id, err);
    return 0;
}

static const struct option_spec create_options[] = {
    {"description", "TEXT", OPTION_TEXT, false, "what it is for"},
    {"label", "KEY=VALUE", OPTION_LIST, false, "a label; may be repeated"},
    {"memory", NULL, OPTION_FLAG, false, "with the live memory"},
    {"quiesce", NULL, OPTION_FLAG, false,
     "freeze the guest's filesystems through its agent"},
    {"mode", "auto|cow|background|precopy|paused", OPTION_CHOICE, false,
     "how the memory is captured"},
    {"max-pause-ms", "N", OPTION_NUMBER, false,
     "fail rather than stop the guest for longer"},
    {"bwlimit", "SIZE", OPTION_SIZE, false,
     "bytes per second for the copy, with K M G T"},
    {"disk-dir", "DIR", OPTION_FILE, false,
     "where the new disk files go, instead of beside the old"},
    {"freeze-timeout-ms", "N", OPTION_NUMBER, false,
     "give up when --quiesce has not frozen the guest by then"},
    {"no-protect", NULL, OPTION_FLAG, false,
     "do not make frozen disk files immutable"},
    {"dry-run", NULL, OPTION_FLAG, false, "print what would be done"},
    {0},
};

const struct verb verb_create = {
    .name = "create",
    .aliases = {"save"},
    .summary = "Takes a snapshot of a VM's disks, and of its memory",
    .operands = {{"VM", false, false}, {"NAME", false, false}},
    .options = create_options,
    .run = create_run,
};
