/* SPDX-License-Identifier: MIT */
#include "graph.h"

#include <string.h>

#include "block.h"
#include "client.h"
#include "field.h"
#include "monitor.h"

/* ----------------------------------------------------------- building options
 */

/* Each of these is true when it went well; NULL values are left out. Takes the
 * value, into what may be no object. */
static bool put(json_t *object, const char *key, json_t *value)
{
    return json_object_set_new(object, key, value) == 0;
}

static bool put_string(json_t *object, const char *key, const char *value)
{
    return !value || put(object, key, json_string(value));
}

static bool put_cache(json_t *o, const struct qmp_blockdev *b)
{
    if (!b->cache_direct && !b->cache_no_flush)
        return true;
    return put(o, "cache",
               json_pack("{s:b, s:b}", "direct", b->cache_direct, "no-flush",
                         b->cache_no_flush));
}

/* The protocol node: a new one with the format node's cache mode, or the name
 * of one that exists. It has no read-only of its own: so it takes the format
 * node's, and follows when QEMU makes that read-only (a snapshot). Else it
 * would stay open for writing, which an immutable layer refuses next time. */
static bool put_file(json_t *o, const struct qmp_blockdev *b)
{
    json_t *file;

    if (!b->path)
        return put_string(o, "file", b->file_node);
    file = json_pack("{s:s, s:s}", "driver", b->protocol ? b->protocol : "file",
                     "filename", b->path);
    if (!put_string(file, "node-name", b->file_node) || !put_cache(file, b) ||
        !put_string(file, "aio", b->aio) ||
        !put_string(file, "discard", b->discard)) {
        json_decref(file);
        return false;
    }
    return put(o, "file", file);
}

/* The node's options, or NULL when they cannot be sent. */
static json_t *options_of(const struct qmp_blockdev *b)
{
    json_t *o = json_pack("{s:s, s:s, s:b}", "driver", b->driver, "node-name",
                          b->node, "read-only", b->read_only);

    if (put_file(o, b) && put_cache(o, b) &&
        put_string(o, "backing", b->backing) &&
        (!b->backing_null || b->backing || put(o, "backing", json_null())) &&
        put_string(o, "discard", b->discard) &&
        put_string(o, "detect-zeroes", b->detect_zeroes))
        return o;
    json_decref(o);
    return NULL;
}

/* -------------------------------------------------------------------- nodes */

int qmp_blockdev_add(struct qstill_qmp *q, const struct qmp_blockdev *b,
                     struct qstill_error *err)
{
    return client_call(q, "blockdev-add", options_of(b), NULL, err);
}

/* Whether QEMU certainly has no such node: it says so in free text only. */
static bool node_is_missing(struct qstill_qmp *q, const char *node)
{
    CLEANUP(qmp_graph_fini) struct qmp_graph g = QMP_GRAPH_INIT;
    struct qstill_error ignored;

    return qmp_graph_read(q, &g, &ignored) == 0 && !qmp_graph_find(&g, node);
}

int qmp_blockdev_del(struct qstill_qmp *q, const char *node,
                     enum qmp_missing missing, struct qstill_error *err)
{
    int rc = client_call(q, "blockdev-del",
                         json_pack("{s:s}", "node-name", node), NULL, err);

    if (rc != QSTILL_E_FAILED || missing == QMP_MISSING_UNASKED ||
        !node_is_missing(q, node))
        return rc;
    if (missing == QMP_MISSING_FINE)
        return err_clear(err);
    err->code = QSTILL_E_NOT_FOUND;
    return err->code;
}

int qmp_blockdev_reopen(struct qstill_qmp *q, const struct qmp_blockdev *b,
                        struct qstill_error *err)
{
    json_t *options = NULL;

    if (b->node[0] == '#')
        return err_set(err, QSTILL_E_PRECONDITION,
                       "node '%s' has an automatic name: QEMU cannot reopen it",
                       b->node);
    if (!b->file_node || b->path)
        return err_set(err, QSTILL_E_USAGE,
                       "reopening '%s' wants its present protocol node",
                       b->node);
    options = options_of(b);
    return client_call(
        q, "blockdev-reopen",
        options ? json_pack("{s:[o]}", "options", options) : NULL, NULL, err);
}

/* What it prints is an error. */
static int reopen_by_hmp(struct qstill_qmp *q, const char *node, bool read_only,
                         const char *key, const char *value,
                         struct qstill_error *err)
{
    CLEANUP(freep) char *line = NULL;
    CLEANUP(freep) char *said = NULL;

    if (asprintf(&line, "qemu-io %s \"reopen %s%s%s%s%s\"", node,
                 read_only ? "-r" : "-w", value ? " -o " : "", value ? key : "",
                 value ? "=" : "", value ? value : "") < 0) {
        line = NULL;
        return err_nomem(err);
    }
    if (qmp_hmp(q, line, &said, err) < 0)
        return err->code;
    said[strcspn(said, "\r\n")] = '\0';
    if (said[0])
        return err_set(err, QSTILL_E_FAILED, "reopening node '%s': %s", node,
                       said);
    return 0;
}

int qmp_node_reopen(struct qstill_qmp *q, const char *node, const char *backing,
                    bool read_only, struct qstill_error *err)
{
    return reopen_by_hmp(q, node, read_only, "backing", backing, err);
}

int qmp_filter_reopen(struct qstill_qmp *q, const struct qmp_node *filter,
                      const char *node, struct qstill_error *err)
{
    return reopen_by_hmp(q, filter->name, filter->read_only, "file", node, err);
}

int qmp_node_detect_zeroes(struct qstill_qmp *q, const struct qmp_node *node,
                           const char *value, struct qstill_error *err)
{
    return reopen_by_hmp(q, node->name, node->read_only, "detect-zeroes", value,
                         err);
}

int qmp_swap_works(struct qstill_qmp *q, bool *works, struct qstill_error *err)
{
    CLEANUP(json_decrefp) json_t *threads = NULL;
    CLEANUP(json_decrefp) json_t *version = NULL;

    if (client_ask(q, "query-iothreads", &threads, err) < 0 ||
        client_ask(q, "query-version", &version, err) < 0)
        return err->code;
    *works = (json_is_array(threads) && json_array_size(threads) == 0) ||
             field_u64(json_object_get(version, "qemu"), "major", 0) >= 9;
    return 0;
}

int qmp_change_backing_file(struct qstill_qmp *q, const char *device,
                            const char *node, const char *backing_path,
                            struct qstill_error *err)
{
    return client_call(q, "change-backing-file",
                       json_pack("{s:s, s:s, s:s}", "device", device,
                                 "image-node-name", node, "backing-file",
                                 backing_path),
                       NULL, err);
}

int qmp_set_drive(struct qstill_qmp *q, const char *qdev, const char *node,
                  struct qstill_error *err)
{
    return qmp_qom_set_string(q, qdev, "drive", node, err);
}

/* ----------------------------------------------------------------- overlays */

static json_t *snapshot_action(const struct qmp_overlay *o)
{
    json_t *data = json_pack("{s:s, s:s, s:s, s:s}", "snapshot-file", o->path,
                             "snapshot-node-name", o->new_node, "format",
                             "qcow2", "mode", "existing");

    if (put_string(data, "node-name", o->node) &&
        (o->node || put_string(data, "device", o->device)))
        return json_pack("{s:s, s:o}", "type", "blockdev-snapshot-sync", "data",
                         data);
    json_decref(data);
    return NULL;
}

int qmp_snapshot_disks(struct qstill_qmp *q, const struct qmp_overlay *overlays,
                       size_t count, struct qstill_error *err)
{
    json_t *actions = json_array();

    for (size_t i = 0; i < count; i++)
        if (json_array_append_new(actions, snapshot_action(&overlays[i])) < 0) {
            json_decref(actions);
            return err_set(err, QSTILL_E_USAGE,
                           "overlay '%s' cannot be named to QEMU: it is not"
                           " UTF-8",
                           overlays[i].path);
        }
    return client_call(q, "transaction", json_pack("{s:o}", "actions", actions),
                       NULL, err);
}

int qmp_blocks_activate(struct qstill_qmp *q, struct qstill_error *err)
{
    CLEANUP(json_decrefp) json_t *args = json_pack("{s:b}", "active", 1);

    if (!args)
        return err_nomem(err);
    if (qstill_qmp_execute(q, "blockdev-set-active", args, 0, NULL, err) < 0 &&
        err->code == QSTILL_E_PRECONDITION) /* no such command */
        err_clear(err);
    return err->code;
}
