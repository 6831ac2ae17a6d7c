/* SPDX-License-Identifier: MIT */
#include "launch_backing.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "layer_file.h"
#include "launch_disk.h"

/* As deep as a chain may be (qcow2/chain.h). */
#define NODES_MAX 256

#define A_CHAIN   "a backing chain"
#define A_NONE    "\"no backing file\""
#define AN_OPTION "options of a backing node"

/* One node of the command line: an option of its own, or a part of one. */
struct node {
    struct opts own; /* parsed for it, when it was named */
    const struct opts *o;
    char prefix[OPTS_KEY_MAX];
};

static void node_fini(struct node *n)
{
    opts_fini(&n->own);
}

static const char *get(const struct node *n, const char *word)
{
    char key[2 * OPTS_KEY_MAX];

    snprintf(key, sizeof(key), "%s%s", n->prefix, word);
    return opts_get(n->o, key);
}

static bool has(const struct node *n, const char *word)
{
    char key[2 * OPTS_KEY_MAX];

    snprintf(key, sizeof(key), "%s%s", n->prefix, word);
    return opts_has(n->o, key);
}

static int find_node(const struct launch_args *args, const char *name,
                     size_t *out)
{
    for (size_t i = 0; i < args->count; i++) {
        CLEANUP(opts_fini) struct opts o = {0};
        struct qstill_error ignored = {0};
        const char *has;

        if (!launch_arg_is(&args->v[i], "blockdev") ||
            launch_disk_opts(&args->v[i], &o, &ignored) < 0)
            continue;
        has = opts_get(&o, "node-name");
        if (has && strcmp(has, name) == 0) {
            *out = i;
            return 0;
        }
    }
    return -1;
}

/* The child `word` of a node: named, or spelled out inside of it. */
static int child(const struct launch_args *args, const struct node *n,
                 const char *word, struct node *out)
{
    const char *ref = get(n, word);
    struct qstill_error ignored = {0};
    size_t i;

    memset(out, 0, sizeof(*out));
    if (!ref) {
        int len = snprintf(out->prefix, sizeof(out->prefix), "%s%s.", n->prefix,
                           word);

        out->o = n->o;
        return len > 0 && (size_t)len < sizeof(out->prefix) ? 0 : -1;
    }
    if (find_node(args, ref, &i) < 0 ||
        launch_disk_opts(&args->v[i], &out->own, &ignored) < 0)
        return -1;
    out->o = &out->own;
    return 0;
}

/* Options of the node that change nothing of what is read through it. */
static bool is_plain(const struct node *n)
{
    static const char *const words[] = {
        "driver",
        "node-name",
        "read-only",
        "auto-read-only",
        "force-share",
        "discard",
        "cache",
        "detect-zeroes",
        "file",
        "backing",
        "filename",
        "aio",
        "locking",
        "format",
        "cache-size",
        "l2-cache-size",
        "cache-clean-interval",
        "refcount-cache-size",
        "l2-cache-entry-size",
        "lazy-refcounts",
        "x-check-cache-dropped",
    };
    size_t len = strlen(n->prefix);

    for (size_t i = 0; i < n->o->count; i++) {
        const char *key = n->o->pairs[i].key;
        size_t k;

        if (!key || strncmp(key, n->prefix, len) != 0)
            continue;
        key += len;
        for (k = 0; k < ARRAY_LEN(words); k++)
            if (strncmp(key, words[k], strlen(words[k])) == 0 &&
                strchr(".", key[strlen(words[k])]))
                break;
        if (k == ARRAY_LEN(words))
            return false;
    }
    return true;
}

/* The file that a format node reads. */
static const char *file_of(const struct launch_args *args, const struct node *n,
                           struct node *storage)
{
    const char *driver;

    if (child(args, n, "file", storage) < 0 || !is_plain(storage))
        return NULL;
    driver = get(storage, "driver");
    return driver && strcmp(driver, "file") != 0 ? NULL
                                                 : get(storage, "filename");
}

/* Whether the qcow2 image names a backing file; what cannot be read might. */
static bool may_have_backing(const char *path)
{
    CLEANUP(closep) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    uint8_t head[16]; /* magic, version, backing file offset */

    if (fd < 0 || pread(fd, head, sizeof(head), 0) != (ssize_t)sizeof(head))
        return true;
    return get_be32(head) != 0x514649fb || get_be64(head + 8) != 0;
}

static bool is_none(const struct node *n, const char *value)
{
    return value && (!*value || (n->o->json && strcmp(value, "null") == 0));
}

/* `below` must be the image that the header of `path` names: its file, and NULL
 * or what differs. */
static const char *compare(const struct launch_args *args, const char *cwd,
                           const struct node *below, const char *path,
                           char **file, bool *raw)
{
    CLEANUP(node_fini) struct node storage = {0};
    CLEANUP(layer_backing_fini) struct layer_backing said = {0};
    const char *driver = get(below, "driver"), *opened;
    const char *format = said.format;
    struct qstill_error ignored = {0};

    opened = file_of(args, below, &storage);
    if (!opened || layer_backing_read(path, &said, &ignored) < 0 ||
        !said.path || !launch_same_file(cwd, opened, said.path))
        return A_CHAIN;
    if (!is_plain(below))
        return AN_OPTION;
    /* where neither says it, or the header alone, QEMU decides as without it */
    if (driver &&
        (*format ? strcmp(format, driver) != 0 : strcmp(driver, "qcow2") != 0))
        return A_CHAIN;
    *raw = strcmp(driver ? driver : format, "raw") == 0;
    *file = take_ptr(&said.path);
    return NULL;
}

const char *launch_backing_differs(const struct launch_args *args,
                                   const char *cwd, const struct opts *o,
                                   const char *prefix, const char *path)
{
    CLEANUP(freep) char *image = launch_resolve(cwd, path);
    CLEANUP(node_fini) struct node n = {.o = o};
    const char *why = NULL;
    bool raw = false;

    if (!image || strlen(prefix) >= sizeof(n.prefix))
        return A_CHAIN;
    snprintf(n.prefix, sizeof(n.prefix), "%s", prefix);
    for (size_t i = 0; i < NODES_MAX && !raw && has(&n, "backing"); i++) {
        CLEANUP(freep) char *next = NULL;
        struct node below;

        if (is_none(&n, get(&n, "backing")))
            return may_have_backing(image) ? A_NONE : NULL;
        if (child(args, &n, "backing", &below) < 0) {
            node_fini(&below);
            return A_CHAIN;
        }
        why = compare(args, cwd, &below, image, &next, &raw);
        if (why) {
            node_fini(&below);
            return why;
        }
        /* parts of an option stay with the node that holds it */
        if (below.o == &below.own) {
            node_fini(&n);
            n = below;
            n.o = &n.own;
        } else {
            memcpy(n.prefix, below.prefix, sizeof(n.prefix));
        }
        free(image);
        image = take_ptr(&next);
    }
    return why;
}

/* ------------------------------------------------------------------- prune */

static bool means(const struct opts_pair *p, const char *node)
{
    return p->kind == OPTS_LITERAL ? strstr(p->value, node) != NULL
                                   : strcmp(p->value, node) == 0;
}

/* What cannot be read may name any. */
static bool names_node(const struct launch_arg *arg, const char *node)
{
    CLEANUP(opts_fini) struct opts o = {0};
    struct qstill_error ignored = {0};

    if (!arg->value)
        return false;
    if (launch_arg_is(arg, "readconfig"))
        return true;
    if (opts_parse(&o, arg->value, NULL, &ignored) < 0)
        return strstr(arg->value, node) != NULL;
    for (size_t i = 0; i < o.count; i++)
        if (o.pairs[i].value && means(&o.pairs[i], node))
            return true;
    return false;
}

static bool is_used(const struct launch_args *args, const char *node, size_t by)
{
    for (size_t i = 0; i < args->count; i++)
        if (i != by && names_node(&args->v[i], node))
            return true;
    return false;
}

static bool is_read_only(const struct opts *o)
{
    const char *v = opts_get(o, "read-only");

    return v && (strcmp(v, "on") == 0 || strcmp(v, "true") == 0);
}

/* Nobody has asked for its file to be written. */
static bool is_protocol(const struct opts *o)
{
    const char *driver = opts_get(o, "driver");

    return driver && strcmp(driver, "file") == 0;
}

bool launch_backing_prune(struct launch_args *args, const char *node)
{
    CLEANUP(opts_fini) struct opts o = {0};
    struct qstill_error ignored = {0};
    bool fine = true;
    size_t at;

    if (find_node(args, node, &at) < 0 ||
        launch_disk_opts(&args->v[at], &o, &ignored) < 0)
        return true;
    if (is_used(args, node, at))
        return is_read_only(&o) || is_protocol(&o);
    launch_args_drop(args, at);
    for (size_t i = 0; i < o.count; i++) {
        const struct opts_pair *p = &o.pairs[i];

        if (p->kind == OPTS_STRING &&
            (opts_key_is(p->key, "file") || opts_key_is(p->key, "backing")))
            fine = launch_backing_prune(args, p->value) && fine;
    }
    return fine;
}
