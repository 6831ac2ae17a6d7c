/* SPDX-License-Identifier: MIT */
/* The sockets and pipes that a command line has QEMU make and connect to. */
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "launch_files_impl.h"
#include "launch_opts.h"

/* "server" alone is "on". */
static bool is_on(const struct opts *o, const char *key)
{
    const char *v = opts_get(o, key);

    return v && strcmp(v, "off") != 0 && strcmp(v, "no") != 0 &&
           strcmp(v, "n") != 0 && strcmp(v, "false") != 0;
}

static bool tries_again(const struct opts *o)
{
    const char *s = opts_get(o, "reconnect");
    const char *ms = opts_get(o, "reconnect-ms");

    return (s && strcmp(s, "0") != 0) || (ms && strcmp(ms, "0") != 0);
}

/* The unix socket of a character device; `listens`: of one that can be nothing
 * else. */
static int check_unix(struct files *f, const struct launch_arg *arg,
                      const struct opts *o, bool listens)
{
    if (is_on(o, "abstract"))
        return 0;
    if (listens || is_on(o, "server"))
        return files_check_name(f, arg, SOCKET, opts_get(o, "path"));
    return tries_again(o) ? 0
                          : files_check_name(f, arg, PEER, opts_get(o, "path"));
}

/* NAME.in and NAME.out, or NAME for both ways. */
static int check_pipe(struct files *f, const struct launch_arg *arg,
                      const char *name)
{
    struct qstill_error why = {0};
    bool both = true;

    for (int out = 0; out < 2 && both; out++) {
        CLEANUP(freep) char *end = NULL;

        if (asprintf(&end, "%s.%s", name, out ? "out" : "in") < 0)
            return err_nomem(f->err);
        both = files_look(f, end, REACH_DEVICE, &why) == 0;
    }
    if (both)
        return 0;
    err_clear(&why);
    files_look(f, name, REACH_DEVICE, &why);
    return files_judge(f, arg, &why);
}

static int check_chardev(struct files *f, const struct launch_arg *arg)
{
    CLEANUP(opts_fini) struct opts o = {0};
    struct qstill_error ignored = {0};
    const char *type, *path;

    if (opts_parse(&o, arg->value, "backend", &ignored) < 0)
        return 0;
    type = opts_get(&o, "backend");
    path = opts_get(&o, "path");
    if (!type || !path)
        return 0;
    if (strcmp(type, "socket") == 0)
        return check_unix(f, arg, &o, false);
    return strcmp(type, "pipe") == 0 ? check_pipe(f, arg, path) : 0;
}

/* "mon:unix:PATH,server=on", "file:PATH", "pipe:PATH", "/dev/ttyS0": of -serial
 * and its like; -vnc. */
static int check_line(struct files *f, const struct launch_arg *arg)
{
    static const char *const lines[] = {"serial", "parallel",   "monitor",
                                        "qmp",    "qmp-pretty", "debugcon",
                                        "gdb",    "vnc"};
    CLEANUP(opts_fini) struct opts o = {0};
    struct qstill_error ignored = {0};
    const char *v = arg->value;
    bool is = false;

    for (size_t i = 0; i < ARRAY_LEN(lines); i++)
        is = is || launch_arg_is(arg, lines[i]);
    if (!is)
        return 0;
    v += strncmp(v, "mon:", 4) == 0 ? 4 : 0;
    if (strncmp(v, "file:", 5) == 0)
        return files_check_name(f, arg, MADE, v + 5);
    if (strncmp(v, "pipe:", 5) == 0)
        return check_pipe(f, arg, v + 5);
    if (strncmp(v, "/dev/", 5) == 0)
        return files_check_name(f, arg, DEVICE, v);
    if (strncmp(v, "unix:", 5) != 0 ||
        opts_parse(&o, v + 5, "path", &ignored) < 0)
        return 0;
    return check_unix(f, arg, &o,
                      launch_arg_is(arg, "vnc") && !is_on(&o, "reverse"));
}

/* Of -netdev stream one that connects tells of its failure and goes on. */
static int check_netdev(struct files *f, const struct launch_arg *arg)
{
    static const struct {
        const char *type, *kind, *path, *abstract;
    } made[] = {
        {"stream", "addr.type", "addr.path", "addr.abstract"},
        {"dgram", "local.type", "local.path", "local.abstract"},
    };
    CLEANUP(opts_fini) struct opts o = {0};
    struct qstill_error ignored = {0};
    const char *type, *kind;

    if (opts_parse(&o, arg->value, "type", &ignored) < 0)
        return 0;
    type = opts_get(&o, "type");
    for (size_t i = 0; type && i < ARRAY_LEN(made); i++) {
        kind = opts_get(&o, made[i].kind);
        if (strcmp(type, made[i].type) == 0 && kind &&
            strcmp(kind, "unix") == 0 && !is_on(&o, made[i].abstract) &&
            (strcmp(type, "stream") != 0 || is_on(&o, "server")))
            return files_check_name(f, arg, SOCKET, opts_get(&o, made[i].path));
    }
    return 0;
}

static int check_spice(struct files *f, const struct launch_arg *arg)
{
    CLEANUP(opts_fini) struct opts o = {0};
    struct qstill_error ignored = {0};

    return opts_parse(&o, arg->value, NULL, &ignored) < 0 || !is_on(&o, "unix")
               ? 0
               : files_check_name(f, arg, SOCKET, opts_get(&o, "addr"));
}

int files_check_lines(struct files *f, const struct launch_arg *arg)
{
    if (!arg->value)
        return 0;
    if (launch_arg_is(arg, "chardev"))
        return check_chardev(f, arg);
    if (launch_arg_is(arg, "netdev"))
        return check_netdev(f, arg);
    if (launch_arg_is(arg, "spice"))
        return check_spice(f, arg);
    return check_line(f, arg);
}
