/* SPDX-License-Identifier: MIT */
/* The command line of the next start. */
#include "launch.h"

#include <string.h>

#include "base/cleanup.h"
#include "launch_args.h"
#include "launch_disk.h"
#include "launch_machine.h"
#include "launch_ram.h"

/* How the recorded process began, or came to its user: not for the next. */
static const char *const stripped[] = {
    "S",
    "incoming",
    "loadvm",
    "runas",
};

static bool is_stripped(const struct launch_arg *arg)
{
    size_t i;

    for (i = 0; i < ARRAY_LEN(stripped); i++)
        if (launch_arg_is(arg, stripped[i]))
            return true;
    return false;
}

/* -run-with user=NAME is the newer -runas; exit-with-parent= would end the
 * next QEMU together with the command that started it. */
static int strip_run_with(struct launch_args *args, size_t i,
                          struct qstill_error *err)
{
    CLEANUP(opts_fini) struct opts o = {0};
    struct qstill_error scratch = {0};
    char *text;

    if (opts_parse(&o, args->v[i].value, NULL, &scratch) < 0)
        return 0; /* QEMU had not taken it either */
    if (!opts_has(&o, "user") && !opts_has(&o, "exit-with-parent"))
        return 0;
    opts_del(&o, "user");
    opts_del(&o, "exit-with-parent");
    if (o.count == 0) {
        launch_args_drop(args, i);
        return 0;
    }
    if (opts_emit(&o, &text, err) < 0)
        return err->code;
    launch_arg_replace(&args->v[i], text);
    return 0;
}

static int strip_start(struct launch_args *args, struct qstill_error *err)
{
    size_t i = args->count;

    while (i-- > 0) {
        const struct launch_arg *arg = &args->v[i];

        if (is_stripped(arg))
            launch_args_drop(args, i);
        else if (launch_arg_is(arg, "run-with") && arg->value &&
                 strip_run_with(args, i, err) < 0)
            return err->code;
    }
    return 0;
}

/* Two disks over one image would both be found at its one place. */
static int check_distinct(const struct launch_record *rec,
                          const struct launch_change *c,
                          struct qstill_error *err)
{
    size_t i, k;

    for (i = 0; i < c->disk_count; i++)
        for (k = 0; k < i; k++)
            if (launch_same_file(rec->cwd, c->disks[i].attach_path,
                                 c->disks[k].attach_path))
                return err_set(err, QSTILL_E_PRECONDITION,
                               "disks %s and %s are both %s", c->disks[k].name,
                               c->disks[i].name, c->disks[i].attach_path);
    return 0;
}

int launch_build(const struct launch_record *rec,
                 const struct launch_change *change, char ***argv_out,
                 struct qstill_error *err)
{
    CLEANUP(launch_args_fini) struct launch_args args = {0};
    CLEANUP(launch_loose_fini) struct launch_loose loose = {0};
    size_t i;

    if (launch_args_parse(&args, rec->argv, err) < 0 ||
        strip_start(&args, err) < 0 || launch_ram_unmap(&args, err) < 0 ||
        check_distinct(rec, change, err) < 0)
        return err->code;
    for (i = 0; i < change->disk_count; i++)
        if (launch_disk_put(&args, rec->cwd, &change->disks[i], &loose, err) <
            0)
            return err->code;
    for (i = 0; i < loose.count; i++)
        if (launch_disk_let_go(&args, &loose, i, err) < 0)
            return err->code;
    if (launch_ram_map(&args, change, err) < 0 ||
        (change->machine &&
         launch_machine_pin(&args, change->machine, err) < 0))
        return err->code;
    if (change->paused && launch_args_add(&args, "-S", NULL, err) < 0)
        return err->code;
    if (change->incoming &&
        launch_args_add(&args, "-incoming", change->incoming, err) < 0)
        return err->code;
    return launch_args_emit(&args, rec->exe, argv_out, err);
}
