/* SPDX-License-Identifier: MIT */
#include "launch_discard.h"

#include <string.h>

#include "launch_disk.h"
#include "session.h"

static const char *word_of(const struct opts *o, const char *key)
{
    const char *v = opts_get(o, key);

    if (!v || strcmp(v, "ignore") == 0 || strcmp(v, "off") == 0)
        return "ignore";
    return strcmp(v, "unmap") == 0 || strcmp(v, "on") == 0 ? "unmap" : NULL;
}

/* The format node over a protocol node that has a -blockdev of its own. */
static const char *of_format_node(const struct launch_args *args,
                                  const char *protocol)
{
    const char *found = NULL;

    for (size_t i = 0; i < args->count; i++) {
        CLEANUP(opts_fini) struct opts o = {0};
        struct qstill_error ignored = {0};
        const char *file;

        if (!launch_arg_is(&args->v[i], "blockdev") ||
            launch_disk_opts(&args->v[i], &o, &ignored) < 0)
            continue;
        file = opts_get(&o, "file");
        if (!file || strcmp(file, protocol) != 0)
            continue;
        if (found)
            return NULL;
        found = word_of(&o, "discard");
    }
    return found;
}

static const char *of_arg(const struct launch_args *args,
                          const struct disk_place *place)
{
    const struct launch_arg *arg = &args->v[place->arg];
    CLEANUP(opts_fini) struct opts o = {0};
    struct qstill_error ignored = {0};
    const char *node;

    if (place->kind == PLACE_VALUE)
        return "ignore";
    if (launch_disk_opts(arg, &o, &ignored) < 0)
        return NULL;
    if (launch_arg_is(arg, "drive") || strcmp(place->prefix, "file.") == 0)
        return word_of(&o, "discard");
    node = opts_get(&o, "node-name");
    if (place->prefix[0] != '\0' || !node)
        return NULL;
    return of_format_node(args, node);
}

const char *launch_discard(struct session *s, const struct vm_disk *d)
{
    CLEANUP(launch_args_fini) struct launch_args args = {0};
    struct qstill_error ignored = {0};
    struct disk_place place;
    size_t places = 0;

    if (!s->rec.has_launch ||
        launch_args_parse(&args, s->rec.launch.argv, &ignored) < 0 ||
        launch_disk_find(&args, s->rec.launch.cwd, d->attach_path, &place,
                         &places, &ignored) < 0 ||
        places != 1)
        return NULL;
    return of_arg(&args, &place);
}
