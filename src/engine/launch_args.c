/* SPDX-License-Identifier: MIT */
#include "launch_args.h"

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "launch.h"

/* The kernel's 2 MiB for an argv hold at most this many words of a few
 * bytes; QEMU's longest command lines have hundreds. */
enum { ARGS_MAX = 64 * 1024 };

/* QEMU's options without an argument, of all versions since 4.0. */
static const char *const flag_options[] = {
    "?",
    "S",
    "alt-grab",
    "async-teardown",
    "audio-help",
    "ctrl-grab",
    "curses",
    "daemonize",
    "enable-fips",
    "enable-hax",
    "enable-kvm",
    "enable-sync-profile",
    "full-screen",
    "h",
    "help",
    "localtime",
    "mem-prealloc",
    "no-acpi",
    "no-fd-bootchk",
    "no-frame",
    "no-hpet",
    "no-kvm",
    "no-kvm-irqchip",
    "no-kvm-pit",
    "no-kvm-pit-reinjection",
    "no-quit",
    "no-reboot",
    "no-shutdown",
    "no-user-config",
    "nodefaults",
    "nodefconfig",
    "nographic",
    "old-param",
    "only-migratable",
    "portrait",
    "preconfig",
    "s",
    "sdl",
    "semihosting",
    "singlestep",
    "snapshot",
    "usb",
    "version",
    "win2k-hack",
    "xen-attach",
    "xen-create",
    "xen-domid-restrict",
};

/* Options whose argument is free text that may begin with '-'. Of all other
 * options an argument that does so would be a mistake, so what is in neither
 * table takes the next word unless it looks like an option. */
static const char *const text_options[] = {
    "append", "name", "D", "initrd", "kernel", "dtb", "bios", "pidfile",
};

static bool in_table(const char *const *table, size_t n, const char *opt)
{
    size_t i;

    for (i = 0; i < n; i++)
        if (strcmp(table[i], opt) == 0)
            return true;
    return false;
}

static bool takes_next(const char *opt, const char *next)
{
    if (!next || in_table(flag_options, ARRAY_LEN(flag_options), opt))
        return false;
    return next[0] != '-' ||
           in_table(text_options, ARRAY_LEN(text_options), opt);
}

static const char *without_dashes(const char *word)
{
    return word + 1 + (word[1] == '-');
}

int launch_args_add(struct launch_args *args, const char *word,
                    const char *value, struct qstill_error *err)
{
    struct launch_arg arg = {NULL, "", NULL};

    if (args->count >= ARGS_MAX)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "the command line has more than %d options", ARGS_MAX);
    if (args->count == args->cap) {
        size_t cap = args->cap ? args->cap * 2 : 32;
        struct launch_arg *v = realloc(args->v, cap * sizeof(*v));

        if (!v)
            return err_nomem(err);
        args->v = v;
        args->cap = cap;
    }
    if ((word && !(arg.word = strdup(word))) ||
        (value && !(arg.value = strdup(value)))) {
        free(arg.word);
        return err_nomem(err);
    }
    if (word)
        arg.opt = without_dashes(arg.word);
    args->v[args->count++] = arg;
    return 0;
}

int launch_args_parse(struct launch_args *out, char *const *argv,
                      struct qstill_error *err)
{
    CLEANUP(launch_args_fini) struct launch_args args = {0};
    size_t i;

    for (i = argv[0] ? 1 : 0; argv[i]; i++) {
        const char *word = argv[i], *value = NULL;

        if (word[0] != '-') {
            value = word;
            word = NULL;
        } else if (takes_next(without_dashes(word), argv[i + 1])) {
            value = argv[++i];
        }
        if (launch_args_add(&args, word, value, err) < 0)
            return err->code;
    }
    *out = args;
    memset(&args, 0, sizeof(args));
    return 0;
}

static void arg_fini(struct launch_arg *arg)
{
    free(arg->word);
    free(arg->value);
}

void launch_args_fini(struct launch_args *args)
{
    size_t i;

    for (i = 0; i < args->count; i++)
        arg_fini(&args->v[i]);
    free(args->v);
    memset(args, 0, sizeof(*args));
}

void launch_args_drop(struct launch_args *args, size_t i)
{
    arg_fini(&args->v[i]);
    args->count--;
    memmove(&args->v[i], &args->v[i + 1],
            (args->count - i) * sizeof(args->v[0]));
}

int launch_arg_name(struct launch_arg *arg, const char *word,
                    struct qstill_error *err)
{
    char *copy = strdup(word);

    if (!copy)
        return err_nomem(err);
    free(arg->word);
    arg->word = copy;
    arg->opt = without_dashes(copy);
    return 0;
}

void launch_arg_replace(struct launch_arg *arg, char *value)
{
    free(arg->value);
    arg->value = value;
}

bool launch_arg_is(const struct launch_arg *arg, const char *opt)
{
    return strcmp(arg->opt, opt) == 0;
}

void launch_argv_free(char **argv)
{
    size_t i;

    for (i = 0; argv && argv[i]; i++)
        free(argv[i]);
    free(argv);
}

static void argv_freep(char ***argv)
{
    launch_argv_free(*argv);
}

static int push(char **argv, size_t *n, const char *word)
{
    if (word && !(argv[(*n)++] = strdup(word)))
        return -1;
    return 0;
}

int launch_args_emit(const struct launch_args *args, const char *exe,
                     char ***out, struct qstill_error *err)
{
    CLEANUP(argv_freep)
    char **argv = calloc(2 * args->count + 2, sizeof(*argv));
    size_t i, n = 0;

    if (!argv || push(argv, &n, exe) < 0)
        return err_nomem(err);
    for (i = 0; i < args->count; i++)
        if (push(argv, &n, args->v[i].word) < 0 ||
            push(argv, &n, args->v[i].value) < 0)
            return err_nomem(err);
    *out = take_ptr(&argv);
    return 0;
}
