/* SPDX-License-Identifier: MIT */
/* Where in a command line a disk's image is opened. */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "launch_disk.h"

static const char *const image_options[] = {
    "hda", "hdb", "hdc",    "hdd",      "cdrom",
    "fda", "fdb", "pflash", "mtdblock", "sd",
};

bool launch_is_image(const struct launch_arg *arg)
{
    size_t i;

    if (!arg->word)
        return true;
    for (i = 0; i < ARRAY_LEN(image_options); i++)
        if (launch_arg_is(arg, image_options[i]))
            return true;
    return false;
}

char *launch_resolve(const char *cwd, const char *path)
{
    CLEANUP(buf_fini) struct buf b = BUF_INIT;

    if (path[0] == '/')
        return strdup(path);
    if (buf_printf(&b, "%s/%s", cwd[1] ? cwd : "", path) < 0)
        return NULL;
    return buf_take_string(&b);
}

bool launch_same_file(const char *cwd, const char *a, const char *b)
{
    CLEANUP(freep) char *ra = NULL;
    CLEANUP(freep) char *rb = NULL;
    struct stat sa, sb;

    if (strcmp(a, b) == 0)
        return true;
    ra = launch_resolve(cwd, a);
    rb = launch_resolve(cwd, b);
    if (!ra || !rb)
        return false;
    if (strcmp(ra, rb) == 0)
        return true;
    return stat(ra, &sa) == 0 && stat(rb, &sb) == 0 && sa.st_dev == sb.st_dev &&
           sa.st_ino == sb.st_ino;
}

const char *launch_plain_name(const char *name)
{
    if (strncmp(name, "file:", 5) == 0)
        return name + 5;
    return name[strcspn(name, ":/")] == ':' ? NULL : name;
}

/* As launch_same_file; what is of another protocol names no file of ours. */
static bool names_file(const char *cwd, const char *name, const char *path)
{
    const char *plain = launch_plain_name(name);

    if (!plain)
        return strcmp(name, path) == 0 && strncmp(name, "json:", 5) != 0;
    return launch_same_file(cwd, plain, path);
}

int launch_disk_opts(const struct launch_arg *arg, struct opts *out,
                     struct qstill_error *err)
{
    if (launch_arg_is(arg, "drive") && arg->value)
        return opts_parse(out, arg->value, NULL, err);
    if (launch_arg_is(arg, "blockdev") && arg->value)
        return opts_parse(out, arg->value, "driver", err);
    return err_set(err, QSTILL_E_PRECONDITION, "-%s opens no disk", arg->opt);
}

static void found(struct disk_place *out, size_t *places,
                  const struct disk_place *place)
{
    *out = *place;
    (*places)++;
}

static void find_in_opts(const struct opts *o, const char *cwd,
                         const char *path, bool drive, struct disk_place *place,
                         struct disk_place *out, size_t *places)
{
    const char *name = drive ? opts_get(o, "file") : NULL;
    int depth;

    place->kind = PLACE_DRIVE;
    place->prefix[0] = '\0';
    if (name && names_file(cwd, name, path))
        found(out, places, place);

    place->kind = PLACE_NODE;
    for (depth = 0; depth < NODE_DEPTH_MAX; depth++) {
        size_t n = strlen(place->prefix);
        char key[NODE_PREFIX_MAX + 16];

        snprintf(key, sizeof(key), "%sfilename", place->prefix);
        name = opts_get(o, key);
        if (name && launch_same_file(cwd, name, path))
            found(out, places, place);
        snprintf(place->prefix + n, sizeof(place->prefix) - n, "file.");
    }
}

int launch_disk_find(const struct launch_args *args, const char *cwd,
                     const char *path, struct disk_place *out, size_t *places,
                     struct qstill_error *err)
{
    size_t i;

    *places = 0;
    for (i = 0; i < args->count; i++) {
        CLEANUP(opts_fini) struct opts o = {0};
        const struct launch_arg *arg = &args->v[i];
        struct disk_place place = {i, PLACE_VALUE, ""};
        struct qstill_error scratch = {0};
        int rc;

        if (launch_is_image(arg)) {
            if (arg->value && names_file(cwd, arg->value, path))
                found(out, places, &place);
            continue;
        }
        rc = launch_disk_opts(arg, &o, &scratch);
        if (rc == QSTILL_E_PRECONDITION)
            continue; /* another option, or one that names no file of ours */
        if (rc < 0) {
            *err = scratch;
            return rc;
        }
        find_in_opts(&o, cwd, path, launch_arg_is(arg, "drive"), &place, out,
                     places);
    }
    return 0;
}
