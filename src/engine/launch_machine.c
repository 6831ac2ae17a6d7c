/* SPDX-License-Identifier: MIT */
#include "launch_machine.h"

#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "launch_args.h"
#include "launch_opts.h"

/* What QEMU makes of it when no version is given. */
static const char *const families[][2] = {
    {"pc", "pc-i440fx-"},
    {"q35", "pc-q35-"},
};

static bool is_machine(const struct launch_arg *arg)
{
    return arg->value &&
           (launch_arg_is(arg, "machine") || launch_arg_is(arg, "M"));
}

/* The last one counts, as QEMU merges them; "pc" without any. */
static int find_type(const struct launch_args *args, char *out, size_t size,
                     struct qstill_error *err)
{
    snprintf(out, size, "pc");
    for (size_t i = 0; i < args->count; i++) {
        CLEANUP(opts_fini) struct opts o = {0};
        const char *type;

        if (!is_machine(&args->v[i]))
            continue;
        if (opts_parse(&o, args->v[i].value, "type", err) < 0)
            return err->code;
        type = opts_get(&o, "type");
        if (type)
            snprintf(out, size, "%s", type);
    }
    return 0;
}

int launch_machine_pin(struct launch_args *args, const char *type,
                       struct qstill_error *err)
{
    char now[64];

    if (find_type(args, now, sizeof(now), err) < 0)
        return err->code;
    for (size_t i = 0; i < ARRAY_LEN(families); i++)
        if (strcmp(now, families[i][0]) == 0 &&
            strncmp(type, families[i][1], strlen(families[i][1])) == 0)
            return launch_args_add(args, "-machine", type, err);
    return 0;
}
