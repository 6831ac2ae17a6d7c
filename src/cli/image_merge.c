/* SPDX-License-Identifier: MIT */
#include "verbs.h"

#include <stdlib.h>

#include "args.h"
#include "output.h"
#include "qstill-image.h"
#include "run.h"
#include "show.h"
#include "text.h"

static void free_listp(const char ***list)
{
    free(*list);
}

static void merge_json(const struct qstill_image_merge_result *r,
                       const struct qstill_job *plan)
{
    struct out o = OUT_INIT(stdout);

    out_object(&o, NULL);
    out_text(&o, "direction", r->direction);
    out_uint(&o, "bytesMoved", r->bytes_moved);
    out_uint(&o, "bytesShared", r->bytes_cloned);
    out_uint(&o, "bytesFreed", r->bytes_freed);
    out_uint(&o, "bitmapsDropped", r->bitmaps_dropped);
    out_real(&o, "ms", r->ms);
    if (plan)
        show_lines_json(&o, "plan", qstill_job_text(plan));
    out_end(&o);
}

static void merge_text(const struct cli *cli,
                       const struct qstill_image_merge_result *r)
{
    char moved[TEXT_SIZE_MAX], freed[TEXT_SIZE_MAX], shared[TEXT_SIZE_MAX];

    show_words(cli, "merged (%s) in %.3f s: %s moved, %s shared, %s freed",
               r->direction, r->ms / 1000, text_size(moved, r->bytes_moved),
               text_size(shared, r->bytes_cloned),
               text_size(freed, r->bytes_freed));
    if (r->bitmaps_dropped)
        show_words(cli, "%zu dirty bitmaps could not be kept (-v tells why)",
                   r->bitmaps_dropped);
}

static int run_merge(struct cli *cli, const struct args *args,
                     struct qstill_error *err)
{
    struct qstill_image_merge_options o = QSTILL_IMAGE_MERGE_OPTIONS_INIT;
    CLEANUP(run_job_freep) struct qstill_job *job = NULL;
    CLEANUP(free_listp) const char **drop = NULL;
    CLEANUP(free_listp) const char **children = NULL;
    struct qstill_image_merge_result result;

    drop = args_list(args, "drop", &o.drop_count);
    children = args_list(args, "child", &o.child_count);
    if ((o.drop_count && !drop) || (o.child_count && !children))
        return cli_fail(err, QSTILL_E_FAILED, "out of memory");
    o.drop = drop;
    o.children = children;
    o.direction = args_text(args, "direction");
    o.bwlimit = args_number(args, "bwlimit");
    o.dry_run = args_flag(args, "dry-run");
    run_prepare(cli);
    if (qstill_image_merge(args_operand(args, 0), &o, &job, err) < 0 ||
        run_job(cli, job, err) < 0) /* which tells all, then */
        return err->code;
    show_notes(cli, job);
    qstill_image_merge_result(job, &result);
    if (cli->json)
        merge_json(&result, o.dry_run ? job : NULL);
    else if (o.dry_run)
        show_plan(cli, job);
    else
        merge_text(cli, &result);
    return 0;
}

static const struct option_spec merge_options[] = {
    {"drop", "LAYER", OPTION_LIST, true,
     "a layer of TOP's chain that is to go; may be repeated"},
    {"direction", "auto|up|down|new", OPTION_CHOICE, false,
     "which file is kept: the upper one, the dropped one, or a new one"},
    {"child", "FILE", OPTION_LIST, false,
     "an overlay of a dropped layer in another folder; may be repeated"},
    {"bwlimit", "SIZE", OPTION_SIZE, false,
     "bytes per second for the copy, with K M G T"},
    {"dry-run", NULL, OPTION_FLAG, false, "print what would be done"},
    {0},
};

const struct verb verb_image_merge = {
    .name = "image merge",
    .summary =
        "takes layers out of a chain; all other files keep their content",
    .operands = {{"TOP", false, false}},
    .options = merge_options,
    .run = run_merge,
};
