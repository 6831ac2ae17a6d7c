/* SPDX-License-Identifier: MIT */
/* The images that a command line has QEMU open, with what is below them. */
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "launch_disk.h"
#include "launch_files_impl.h"
#include "launch_opts.h"

bool launch_may_share(const char *arg)
{
    return strstr(arg, "share-rw") || strstr(arg, "force-share") ||
           strstr(arg, "locking");
}

/* A node may share what it opens, and a device all that is in it. */
static bool takes_locks(const struct files *f, const struct launch_arg *arg)
{
    if (arg->value && launch_may_share(arg->value))
        return false;
    for (size_t i = 0; i < f->args->count; i++)
        if (f->args->v[i].value && strstr(f->args->v[i].value, "share-rw"))
            return false;
    return true;
}

/* `format`: NULL when QEMU guesses; "raw" also for what has no backing file. */
static int check_image(struct files *f, const struct launch_arg *arg,
                       const char *name, const char *format)
{
    const char *file = name && *name ? launch_plain_name(name) : NULL;
    CLEANUP(freep) char *path = NULL;
    struct qstill_error why = {0};
    struct reach reach;

    if (!file || files_is_descriptor(file))
        return 0;
    for (size_t i = 0; i < f->disk_count; i++)
        if (launch_same_file(f->rec->cwd, file, f->disks[i].attach_path))
            return 0; /* its head is looked at elsewhere */
    path = launch_resolve(f->rec->cwd, file);
    if (!path)
        return err_nomem(f->err);
    reach = f->reach;
    reach.locks = takes_locks(f, arg);
    reach.own = f->pid;
    reach_chain(&reach, path, format, &why);
    return files_judge(f, arg, &why);
}

/* A key of `o` with another last word: "a.file.filename" -> "a.driver". */
static const char *sibling(const struct opts *o, const char *key, size_t up,
                           const char *word, char *out, size_t size)
{
    size_t n = strlen(key);

    for (; up > 0; up--) {
        while (n > 0 && key[n - 1] != '.')
            n--;
        if (up > 1 && n > 0)
            n--; /* the dot */
    }
    snprintf(out, size, "%.*s%s", (int)n, key, word);
    return opts_get(o, out);
}

/* How the node that reads the file opens it: the one around it in the same
 * option, or the one that names it in another. */
static const char *format_of(const struct files *f,
                             const struct launch_arg *arg, const struct opts *o,
                             const char *key)
{
    static const char *const naming[] = {"qcow2", "qed", "vmdk"};
    char text[OPTS_KEY_MAX];
    const char *node = opts_get(o, "node-name");

    if (strcmp(key, "file") == 0 || strcmp(key, "file.filename") == 0 ||
        (launch_arg_is(arg, "drive") && strcmp(key, "filename") == 0)) {
        const char *format = opts_get(o, "format");

        if (opts_has(o, "backing") || opts_has(o, "data-file"))
            return "raw"; /* its files are told here, or nothing is */
        return format ? format : opts_get(o, "driver");
    }
    if (strchr(key, '.')) {
        if (strstr(key, "data-file."))
            return "raw";
        sibling(o, key, 2, "backing", text, sizeof(text));
        if (opts_has(o, text))
            return "raw";
        sibling(o, key, 2, "data-file", text, sizeof(text));
        if (opts_has(o, text))
            return "raw";
        return sibling(o, key, 2, "driver", text, sizeof(text));
    }
    for (size_t i = 0; node && i < f->args->count; i++) {
        CLEANUP(opts_fini) struct opts over = {0};
        struct qstill_error ignored = {0};
        const char *file, *driver;

        if (!launch_arg_is(&f->args->v[i], "blockdev") ||
            launch_disk_opts(&f->args->v[i], &over, &ignored) < 0)
            continue;
        file = opts_get(&over, "file");
        driver = opts_get(&over, "driver");
        for (size_t k = 0; k < ARRAY_LEN(naming); k++)
            if (file && strcmp(file, node) == 0 && driver &&
                strcmp(driver, naming[k]) == 0)
                return opts_has(&over, "backing") ||
                               opts_has(&over, "data-file")
                           ? "raw"
                           : naming[k];
    }
    return "raw";
}

/* Whether a key names a file: "file" of -drive, "filename" at any depth. */
static bool names_file(const struct launch_arg *arg, const struct opts *o,
                       const char *key)
{
    if (opts_key_is(key, "filename"))
        return true;
    /* in JSON it is a node's name */
    return key && !o->json && launch_arg_is(arg, "drive") &&
           strcmp(key, "file") == 0;
}

static int check_nodes(struct files *f, const struct launch_arg *arg,
                       const struct opts *o)
{
    for (size_t i = 0; i < o->count; i++) {
        const struct opts_pair *p = &o->pairs[i];

        if (!names_file(arg, o, p->key))
            continue;
        if (strncmp(p->value, "json:", 5) == 0) {
            CLEANUP(opts_fini) struct opts inner = {0};
            struct qstill_error ignored = {0};

            if (opts_parse(&inner, p->value + 5, NULL, &ignored) == 0 &&
                inner.json && check_nodes(f, arg, &inner) < 0)
                return f->err->code;
        } else if (check_image(f, arg, p->value, format_of(f, arg, o, p->key)) <
                   0) {
            return f->err->code;
        }
    }
    return 0;
}

/* QEMU opens all of them again, also what has been ejected since. */
int files_check_images(struct files *f, const struct launch_arg *arg)
{
    CLEANUP(opts_fini) struct opts o = {0};
    struct qstill_error ignored = {0};

    if (launch_is_image(arg))
        return check_image(f, arg, arg->value, NULL);
    if ((!launch_arg_is(arg, "drive") && !launch_arg_is(arg, "blockdev")) ||
        launch_disk_opts(arg, &o, &ignored) < 0)
        return 0;
    return check_nodes(f, arg, &o);
}
