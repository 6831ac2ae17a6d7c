/* SPDX-License-Identifier: MIT */
#include "launch_discard.h"

#include <stdio.h>
#include <string.h>

#include "launch_disk.h"
#include "session.h"

/* What is looked for: of the format node, or of the protocol node below it. */
struct word {
    const char *key;
    const char *inner; /* of a protocol node inside its format node's option */
    const char *(*of)(const char *value); /* NULL: it cannot be told */
};

static const char *discard_of(const char *v)
{
    if (!v || strcmp(v, "ignore") == 0 || strcmp(v, "off") == 0)
        return "ignore";
    return strcmp(v, "unmap") == 0 || strcmp(v, "on") == 0 ? "unmap" : NULL;
}

static const char *detect_zeroes_of(const char *v)
{
    static const char *const known[] = {"off", "on", "unmap"};

    for (size_t i = 0; v && i < ARRAY_LEN(known); i++)
        if (strcmp(v, known[i]) == 0)
            return known[i];
    return v ? NULL : known[0];
}

static const char *aio_of(const char *v)
{
    static const char *const known[] = {"threads", "native", "io_uring"};

    for (size_t i = 0; v && i < ARRAY_LEN(known); i++)
        if (strcmp(v, known[i]) == 0)
            return known[i];
    return v ? NULL : known[0];
}

static const char *format_of(const char *v)
{
    static const char *const known[] = {"qcow2", "raw"};

    for (size_t i = 0; v && i < ARRAY_LEN(known); i++)
        if (strcmp(v, known[i]) == 0)
            return known[i];
    return NULL;
}

static const struct word driver = {"driver", NULL, format_of};
static const struct word discard = {"discard", NULL, discard_of};
static const struct word detect_zeroes = {"detect-zeroes", NULL,
                                          detect_zeroes_of};
static const struct word aio = {"aio", "file.aio", aio_of};

static const char *of_prefixed(const struct opts *o, const struct word *w,
                               const char *prefix)
{
    char key[NODE_PREFIX_MAX + OPTS_KEY_MAX];

    snprintf(key, sizeof(key), "%s%s", prefix, w->key);
    return w->of(opts_get(o, key));
}

/* Whether the node at `prefix` is over the one that is named `protocol`. */
static bool reads(const struct opts *o, const char *prefix,
                  const char *protocol)
{
    char key[NODE_PREFIX_MAX + OPTS_KEY_MAX];
    const char *file;

    snprintf(key, sizeof(key), "%sfile", prefix);
    file = opts_get(o, key);
    return file && strcmp(file, protocol) == 0;
}

/* The format node over a protocol node that has a -blockdev of its own. */
static const char *of_format_node(const struct launch_args *args,
                                  const struct word *w, const char *protocol)
{
    const char *found = NULL;

    for (size_t i = 0; i < args->count; i++) {
        CLEANUP(opts_fini) struct opts o = {0};
        struct qstill_error ignored = {0};
        char prefix[NODE_PREFIX_MAX] = "";

        if (!launch_arg_is(&args->v[i], "blockdev") ||
            launch_disk_opts(&args->v[i], &o, &ignored) < 0)
            continue;
        for (size_t k = 0; k < NODE_DEPTH_MAX; k++, strcat(prefix, "file.")) {
            if (!reads(&o, prefix, protocol))
                continue;
            if (found)
                return NULL;
            found = of_prefixed(&o, w, prefix);
        }
    }
    return found;
}

/* The protocol node is at `prefix`, inside its format node's option, which may
 * itself be inside of a filter's. */
static const char *of_inner(const struct opts *o, const struct word *w,
                            const char *prefix)
{
    char format[NODE_PREFIX_MAX];

    snprintf(format, sizeof(format), "%s", prefix);
    if (strlen(prefix) >= strlen("file."))
        format[strlen(prefix) - strlen("file.")] = '\0';
    return of_prefixed(o, w, w->inner ? prefix : format);
}

static const char *of_arg(const struct launch_args *args, const struct word *w,
                          const struct disk_place *place)
{
    const struct launch_arg *arg = &args->v[place->arg];
    CLEANUP(opts_fini) struct opts o = {0};
    struct qstill_error ignored = {0};
    const char *node;

    if (place->kind == PLACE_VALUE)
        return w->of(NULL);
    if (launch_disk_opts(arg, &o, &ignored) < 0)
        return NULL;
    if (w->inner && opts_get(&o, w->inner))
        return w->of(opts_get(&o, w->inner));
    if (launch_arg_is(arg, "drive"))
        return w->of(opts_get(&o, w->key));
    if (place->prefix[0] != '\0')
        return of_inner(&o, w, place->prefix);
    node = opts_get(&o, "node-name");
    if (!node)
        return NULL;
    if (w->inner) /* the option is that of the protocol node */
        return w->of(opts_get(&o, w->key));
    return of_format_node(args, w, node);
}

static const char *look_up(struct session *s, const struct vm_disk *d,
                           const struct word *w)
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
    return of_arg(&args, w, &place);
}

const char *launch_format(struct session *s, const struct vm_disk *d)
{
    return look_up(s, d, &driver);
}

const char *launch_discard(struct session *s, const struct vm_disk *d)
{
    return look_up(s, d, &discard);
}

const char *launch_detect_zeroes(struct session *s, const struct vm_disk *d)
{
    return look_up(s, d, &detect_zeroes);
}

const char *launch_aio(struct session *s, const struct vm_disk *d)
{
    return look_up(s, d, &aio);
}
