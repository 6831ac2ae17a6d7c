/* SPDX-License-Identifier: MIT */
#include <stdio.h>
#include <string.h>

#include "verbs.h"

#include "args.h"
#include "output.h"
#include "qstill-image.h"
#include "run.h"
#include "show.h"
#include "text.h"

static void flatten_json(const struct qstill_image_flatten_result *r,
                         const struct qstill_job *plan)
{
    struct out o = OUT_INIT(stdout);

    out_object(&o, NULL);
    out_uint(&o, "bytesMoved", r->bytes_moved);
    out_uint(&o, "bytesShared", r->bytes_cloned);
    out_uint(&o, "bytesStored", r->bytes_stored);
    out_real(&o, "ms", r->ms);
    if (plan)
        show_lines_json(&o, "plan", qstill_job_text(plan));
    out_end(&o);
}

static void flatten_text(const struct cli *cli,
                         const struct qstill_image_flatten_result *r)
{
    char moved[TEXT_SIZE_MAX], shared[TEXT_SIZE_MAX], stored[TEXT_SIZE_MAX];

    show_words(cli, "flattened in %.3f s: %s moved, %s shared, %s stored",
               r->ms / 1000, text_size(moved, r->bytes_moved),
               text_size(shared, r->bytes_cloned),
               text_size(stored, r->bytes_stored));
}

static int run_flatten(struct cli *cli, const struct args *args,
                       struct qstill_error *err)
{
    struct qstill_image_flatten_options o = QSTILL_IMAGE_FLATTEN_OPTIONS_INIT;
    CLEANUP(run_job_freep) struct qstill_job *job = NULL;
    struct qstill_image_flatten_result result;

    o.format = args_text(args, "top-format");
    o.output_format = args_text(args, "format");
    o.compress = args_flag(args, "compress");
    o.bwlimit = args_number(args, "bwlimit");
    o.dry_run = args_flag(args, "dry-run");
    run_prepare(cli);
    if (qstill_image_flatten(args_operand(args, 0), args_operand(args, 1), &o,
                             &job, err) < 0 ||
        run_job(cli, job, err) < 0)
        return err->code;
    qstill_image_flatten_result(job, &result);
    if (!o.dry_run)
        show_notes(cli, job);
    if (cli->json)
        flatten_json(&result, o.dry_run ? job : NULL);
    else if (o.dry_run)
        show_plan(cli, job);
    else
        flatten_text(cli, &result);
    return 0;
}

static const struct option_spec flatten_options[] = {
    {"format", "qcow2|raw", OPTION_CHOICE, false,
     "format of OUT (default: qcow2)"},
    {"compress", NULL, OPTION_FLAG, false, "compress the clusters of OUT"},
    {"top-format", "qcow2|raw", OPTION_CHOICE, false,
     "format of TOP (default: by its first bytes)"},
    {"bwlimit", "SIZE", OPTION_SIZE, false,
     "guest bytes per second, with K M G T"},
    {"dry-run", NULL, OPTION_FLAG, false, "print what would be done"},
    {0},
};

const struct verb verb_image_flatten = {
    .name = "image flatten",
    .summary = "writes what a guest sees through a chain as one new image",
    .operands = {{"TOP", false, false}, {"OUT", false, false}},
    .options = flatten_options,
    .run = run_flatten,
};
