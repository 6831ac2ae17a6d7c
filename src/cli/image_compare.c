/* SPDX-License-Identifier: MIT */
#include "verbs.h"

#include <stdio.h>

#include "args.h"
#include "output.h"
#include "qstill-image.h"
#include "run.h"

/* Beyond the classes of errors: a script that asks whether images differ must
 * not take "I cannot tell" for an answer. */
enum { DIFFERENT = 1, CANNOT_TELL = 11 };

static void compare_json(bool equal, uint64_t offset)
{
    struct out o = OUT_INIT(stdout);

    out_object(&o, NULL);
    out_bool(&o, "equal", equal);
    if (!equal)
        out_uint(&o, "offset", offset);
    out_end(&o);
}

static int run_compare(struct cli *cli, const struct args *args,
                       struct qstill_error *err)
{
    CLEANUP(run_job_freep) struct qstill_job *job = NULL;
    const char *a = args_operand(args, 0), *b = args_operand(args, 1);
    uint64_t offset = 0;
    bool equal;

    run_prepare(cli);
    if (qstill_image_compare(a, args_text(args, "format"), b,
                             args_text(args, "format-b"), &job, err) < 0 ||
        run_job(cli, job, err) < 0)
        return err->code;
    equal = qstill_image_compare_equal(job, &offset);
    if (cli->json)
        compare_json(equal, offset);
    else if (equal)
        puts("equal");
    else
        printf("different, first at byte %llu\n", (unsigned long long)offset);
    cli->status = equal ? 0 : DIFFERENT;
    return 0;
}

static const struct option_spec compare_options[] = {
    {"format", "qcow2|raw", OPTION_CHOICE, false, "format of A"},
    {"format-b", "qcow2|raw", OPTION_CHOICE, false, "format of B"},
    {0},
};

const struct verb verb_image_compare = {
    .name = "image compare",
    .summary = "tells whether guests see the same in two images (exit 0 or 1)",
    .operands = {{"A", false, false}, {"B", false, false}},
    .options = compare_options,
    .failed = CANNOT_TELL,
    .run = run_compare,
};
