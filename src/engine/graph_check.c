/* SPDX-License-Identifier: MIT */
#include "graph_check.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "launch_opts.h"
#include "layer_file.h"
#include "opened.h"
#include "session.h"

/* A protocol node that is read as it is shows what a raw one would. */
static bool same_format(const char *said, const char *driver)
{
    return !*said || strcmp(said, driver) == 0 ||
           (strcmp(said, "raw") == 0 && (strcmp(driver, "file") == 0 ||
                                         strcmp(driver, "host_device") == 0));
}

/* A name that QEMU has kept may lead elsewhere by now, or nowhere, as when a
 * link has moved: then the files that it has open tell. */
static bool same_file(int pid, const char *said, const char *live)
{
    CLEANUP(opened_fini) struct opened o = {0};
    struct qstill_error ignored = {0};

    if (session_same_file(said, live))
        return true;
    return pid > 0 && opened_read(&o, pid, &ignored) == 0 && o.known &&
           !opened_has(&o, live) && opened_has(&o, said);
}

static bool is_as_said(const struct layer_backing *s,
                       const struct qmp_image *below, const char *path, int pid)
{
    if (!below)
        return !s->any;
    if (!s->any)
        return false;
    return !s->path || path[0] != '/' ||
           (!below->part && same_format(s->format, below->driver) &&
            same_file(pid, s->path, path));
}

/* ------------------------------------------------- what a header says of more
 *
 * A "json:{...}" in a header may give the image that it names another backing
 * than that image's own header does ("backing" inside), and so on further down.
 * QEMU writes such names itself, over a chain that the command line had
 * changed.
 */

struct told {
    struct opts o;
    char
        prefix[OPTS_KEY_MAX]; /* of the image that is looked at, "" or "...." */
};

static void told_fini(struct told *t)
{
    opts_fini(&t->o);
    *t = (struct told){0};
}

/* True when it went well. */
static bool down(struct told *t, const char *word)
{
    size_t n = strlen(t->prefix);
    int len = snprintf(t->prefix + n, sizeof(t->prefix) - n, "%s.", word);

    return len > 0 && (size_t)len < sizeof(t->prefix) - n;
}

static const char *get(const struct told *t, const char *word)
{
    char key[2 * OPTS_KEY_MAX];

    snprintf(key, sizeof(key), "%s%s", t->prefix, word);
    return opts_get(&t->o, key);
}

/* What only passes its child on is no image of the chain. */
static bool pass_filters(struct told *t)
{
    const char *driver = get(t, "driver");

    for (; driver && qmp_is_filter(driver); driver = get(t, "driver"))
        if (!down(t, "file"))
            return false;
    return true;
}

/* Of the image that `said` names. */
static void told_begin(struct told *t, const struct layer_backing *said)
{
    struct qstill_error ignored = {0};

    told_fini(t);
    if (said->json &&
        (opts_parse(&t->o, said->json, NULL, &ignored) < 0 || !pass_filters(t)))
        told_fini(t);
}

/* The file of the format node at the prefix, or NULL. */
static const char *told_file(const struct told *t)
{
    const char *protocol = get(t, "file.driver");

    return protocol && strcmp(protocol, "file") != 0 ? NULL
                                                     : get(t, "file.filename");
}

/* Whether something was told of what is below the present image; then *out is
 * that, and the image below is the present one. */
static bool told_below(struct told *t, struct layer_backing *out,
                       struct qstill_error *err)
{
    char key[2 * OPTS_KEY_MAX];
    const char *v, *path;

    snprintf(key, sizeof(key), "%sbacking", t->prefix);
    if (!opts_has(&t->o, key))
        return false;
    v = opts_get(&t->o, key);
    out->any = !v || (*v && strcmp(v, "null") != 0);
    if (!out->any || !down(t, "backing") || !pass_filters(t)) {
        told_fini(t);
        return true;
    }
    v = get(t, "driver");
    path = told_file(t);
    snprintf(out->format, sizeof(out->format), "%s", v ? v : "");
    out->path = path && path[0] == '/' ? strdup(path) : NULL;
    if (path && path[0] == '/' && !out->path)
        err_nomem(err);
    return true;
}

/* What the headers say is below the image `path`: *out->any is also true where
 * that cannot be read. Goes down by one. */
static int read_said(struct told *t, const char *path, const char *driver,
                     struct layer_backing *out, bool *known,
                     struct qstill_error *err)
{
    struct qstill_error ignored = {0};

    *known = told_below(t, out, err);
    if (*known)
        return err->code;
    *known =
        layer_is_qcow2(driver) && layer_backing_read(path, out, &ignored) == 0;
    told_begin(t, out);
    return 0;
}

/* --------------------------------------------------------------------- check
 */

static int differs(const struct qmp_disk *q, const char *image,
                   const struct layer_backing *s, const struct qmp_image *below,
                   const char *path, struct qstill_error *err)
{
    err_set(err, QSTILL_E_PRECONDITION,
            "disk %s: below %s QEMU has %s%s%s%s, and the image's header names "
            "%s%s%s%s",
            *q->qdev_id ? q->qdev_id : q->device, image,
            below && below->part ? "a part of " : "", below ? path : "nothing",
            below ? " as " : "", below ? below->driver : "",
            s->path  ? s->path
            : s->any ? "another"
                     : "nothing",
            *s->format ? " (" : "", s->format, *s->format ? ")" : "");
    return err_hint(
        err, "start the VM with the image's own chain (no \"backing\" on "
             "the command line), or write the other one into its "
             "header while the VM is off: qemu-img rebase -u");
}

int graph_check_chain(const struct launch_record *launch, int pid,
                      const struct qmp_disk *q, struct qstill_error *err)
{
    CLEANUP(arena_fini) struct arena a = ARENA_INIT;
    CLEANUP(told_fini) struct told told = {0};

    for (size_t i = 0; i < q->chain_count; i++) {
        CLEANUP(layer_backing_fini) struct layer_backing said = {0};
        bool known;
        const struct qmp_image *below =
            i + 1 < q->chain_count ? &q->chain[i + 1] : NULL;
        const char *path = session_resolve(&a, launch, q->chain[i].path);
        const char *lower =
            below ? session_resolve(&a, launch, below->path) : "";

        if (!path || !lower)
            return err_nomem(err);
        if (read_said(&told, path, q->chain[i].driver, &said, &known, err) < 0)
            return err->code;
        if (!known || is_as_said(&said, below, lower, pid))
            continue;
        return differs(q, path, &said, below, lower, err);
    }
    return 0;
}

/* What no name leads to is told by reach_chain(); what is no file of its own
 * (a device, a descriptor) is taken on trust. A QEMU in a container may know it
 * by a name that leads there in its root only. */
static bool is_replaced(const struct opened *o, int pid, const char *path)
{
    char inside[PATH_MAX];
    struct stat st;

    if (path[0] != '/' || strncmp(path, "/dev/", 5) == 0 ||
        strncmp(path, "/proc/", 6) == 0 || stat(path, &st) < 0 ||
        !S_ISREG(st.st_mode) || opened_has(o, path))
        return false;
    return snprintf(inside, sizeof(inside), "/proc/%d/root%s", pid, path) >=
               (int)sizeof(inside) ||
           !opened_has(o, inside);
}

static const char *find_replaced(struct arena *a,
                                 const struct launch_record *launch, int pid,
                                 const struct qmp_disk *q,
                                 struct qstill_error *err)
{
    CLEANUP(opened_fini) struct opened o = {0};

    if (opened_read(&o, pid, err) < 0)
        return NULL;
    for (size_t i = 1; o.known && i < q->chain_count; i++) {
        const char *path = session_resolve(a, launch, q->chain[i].path);

        if (!path)
            err_nomem(err);
        if (!path || is_replaced(&o, pid, path))
            return path;
    }
    return NULL;
}

int graph_check_open(const struct launch_record *launch, int pid,
                     const struct qmp_disk *q, struct qstill_error *err)
{
    CLEANUP(arena_fini) struct arena a = ARENA_INIT;
    const char *path = find_replaced(&a, launch, pid, q, err);

    /* it may just have been opened anew while the list was read */
    if (path)
        path = find_replaced(&a, launch, pid, q, err);
    if (!path)
        return err->code;
    err_set(err, QSTILL_E_PRECONDITION,
            "disk %s: %s below it is another file now than the one that QEMU "
            "has open by that name",
            *q->qdev_id ? q->qdev_id : q->device, path);
    return err_hint(err,
                    "let the name lead to the file that the disk was made on "
                    "(one of /proc/%d/fd) again, or no start and no revert to "
                    "a new process would show the same disk",
                    pid);
}
