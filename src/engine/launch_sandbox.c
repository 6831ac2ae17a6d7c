/* SPDX-License-Identifier: MIT */
/* Whether a QEMU makes a seccomp filter of its own, read as QEMU reads it. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "launch.h"
#include "launch_args.h"
#include "launch_disk.h"
#include "launch_opts.h"

/* QEMU's own bound of a line; of a file it has none. */
enum { LINE_SIZE = 1024, CONFIG_MAX = 1 << 20 };

/* What is no boolean ends QEMU, so there is none. */
static void take(const char *value, bool *on)
{
    static const char *const yes[] = {"on", "yes", "true", "y"};

    *on = false;
    for (size_t i = 0; i < ARRAY_LEN(yes); i++)
        *on = *on || strcmp(value, yes[i]) == 0;
}

/* Several options are one, of which the last `enable` counts. */
static void read_option(const char *value, bool *on)
{
    CLEANUP(opts_fini) struct opts o = {0};
    struct qstill_error ignored = {0};

    if (opts_parse(&o, value, "enable", &ignored) < 0)
        return;
    for (size_t i = 0; i < o.count; i++) {
        const struct opts_pair *p = &o.pairs[i];

        if (!p->key || strcmp(p->key, "enable") == 0)
            take(p->value, on);
        else if (p->kind == OPTS_BARE && strcmp(p->key, "noenable") == 0)
            *on = false;
    }
}

/* The next start reads the file, too, as it is then. */
static void read_config(const char *path, bool *on)
{
    CLEANUP(closep)
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    char line[LINE_SIZE], word[64], value[LINE_SIZE];
    bool in_group = false;
    struct stat st;
    FILE *f;

    if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) ||
        st.st_size > CONFIG_MAX || !(f = fdopen(fd, "r")))
        return;
    fd = -1;
    while (fgets(line, sizeof(line), f)) {
        if (line[0] == '#')
            continue;
        if (line[0] == '[')
            in_group = sscanf(line, "[%63[^]]]", word) == 1 &&
                       strcmp(word, "sandbox") == 0;
        else if (in_group &&
                 sscanf(line, " %63s = \"%1023[^\"]\"", word, value) == 2 &&
                 strcmp(word, "enable") == 0)
            take(value, on);
    }
    fclose(f);
}

bool launch_has_sandbox(const struct launch_record *rec)
{
    CLEANUP(launch_args_fini) struct launch_args args = {0};
    struct qstill_error ignored = {0};
    bool on = false;

    if (launch_args_parse(&args, rec->argv, &ignored) < 0)
        return false;
    for (size_t i = 0; i < args.count; i++) {
        const struct launch_arg *arg = &args.v[i];
        CLEANUP(freep) char *path = NULL;

        if (!arg->value)
            continue;
        if (launch_arg_is(arg, "sandbox"))
            read_option(arg->value, &on);
        else if (launch_arg_is(arg, "readconfig") &&
                 (path = launch_resolve(rec->cwd, arg->value)))
            read_config(path, &on);
    }
    return on;
}
