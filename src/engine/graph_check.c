/* SPDX-License-Identifier: MIT */
#include "graph_check.h"

#include <string.h>

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

    for (size_t i = 0; i < q->chain_count; i++) {
        CLEANUP(layer_backing_fini) struct layer_backing said = {0};
        struct qstill_error ignored = {0};
        const struct qmp_image *below =
            i + 1 < q->chain_count ? &q->chain[i + 1] : NULL;
        const char *path = session_resolve(&a, launch, q->chain[i].path);
        const char *lower =
            below ? session_resolve(&a, launch, below->path) : "";

        if (!path || !lower)
            return err_nomem(err);
        if (!layer_is_qcow2(q->chain[i].driver) ||
            layer_backing_read(path, &said, &ignored) < 0 ||
            is_as_said(&said, below, lower, pid))
            continue;
        return differs(q, path, &said, below, lower, err);
    }
    return 0;
}
