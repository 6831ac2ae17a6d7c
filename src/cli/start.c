/* SPDX-License-Identifier: MIT */
/* qstill start, qstill path: for hosts whose own scripts start the VM. */
#include "verbs.h"

#include <stdio.h>
#include <stdlib.h>

#include "args.h"
#include "show.h"

static int start_run(struct cli *cli, const struct args *args,
                     struct qstill_error *err)
{
    const char *vm = args_operand(args, 0);
    bool paused = args_flag(args, "paused");
    const char *state = paused ? "paused" : "running";
    struct out o = OUT_INIT(stdout);
    struct qstill_store *store;

    if (cli_store(cli, &store, err) < 0 ||
        qstill_vm_start(store, vm, paused, err) < 0)
        return err->code;
    if (cli->json) {
        out_object(&o, NULL);
        out_text(&o, "vm", vm);
        out_text(&o, "state", state);
        out_end(&o);
    }
    show_words(cli, "%s: started, %s", vm, state);
    return 0;
}

static const struct option_spec start_options[] = {
    {"paused", NULL, OPTION_FLAG, false, "do not let the guest run yet"},
    {0},
};

const struct verb verb_start = {
    .name = "start",
    .summary = "Starts a VM that is off, on its present disks",
    .operands = {{"VM", false, false}},
    .options = start_options,
    .run = start_run,
};

static int path_run(struct cli *cli, const struct args *args,
                    struct qstill_error *err)
{
    const char *vm = args_operand(args, 0), *disk = args_operand(args, 1);
    struct out o = OUT_INIT(stdout);
    struct qstill_store *store;
    char *path;

    if (cli_store(cli, &store, err) < 0 ||
        qstill_vm_path(store, vm, disk, &path, err) < 0)
        return err->code;
    if (cli->json) {
        out_object(&o, NULL);
        out_text(&o, "vm", vm);
        out_text(&o, "disk", disk);
        out_text(&o, "path", path);
        out_end(&o);
    } else {
        puts(path); /* for scripts: the bytes as they are */
    }
    free(path);
    return 0;
}

const struct verb verb_path = {
    .name = "path",
    .summary = "Prints the file that a VM's disk is in now",
    .operands = {{"VM", false, false}, {"DISK", false, false}},
    .run = path_run,
};
