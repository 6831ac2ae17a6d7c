/* SPDX-License-Identifier: MIT */
#include "block.h"

#include <string.h>

#include "base/buf.h"
#include "client.h"
#include "edges.h"
#include "field.h"
#include "monitor.h"

#define AUTO_PREFIX  "#" /* no user may name a node so */
#define VIRTIO_CHILD "/virtio-backend"
#define PERIPHERAL   "/machine/peripheral/"

/* Nodes that show their child's content as it is. */
static const char *const filters[] = {
    "throttle",   "copy-on-read", "compress",          "preallocate",
    "commit_top", "mirror_top",   "copy-before-write", "blkdebug",
    "blkverify",  "blklogwrites", "blkreplay",         "snapshot-access",
};

/* --------------------------------------------------------------------- nodes
 */

bool qmp_is_filter(const char *driver)
{
    for (size_t i = 0; i < ARRAY_LEN(filters); i++)
        if (strcmp(driver, filters[i]) == 0)
            return true;
    return false;
}

static void node_fini(struct qmp_node *n)
{
    free(n->name);
    free(n->driver);
    free(n->path);
    free(n->backing_path);
    free(n->detect_zeroes);
}

/* What is filled in by a failed call is freed with the graph. */
static int node_fill(struct qmp_node *n, const json_t *v,
                     struct qstill_error *err)
{
    const json_t *image = json_object_get(v, "image");
    const json_t *cache = json_object_get(v, "cache");

    if (field_need(v, "node-name", &n->name, err) < 0 ||
        field_need(v, "drv", &n->driver, err) < 0 ||
        field_dup(v, "file", &n->path, err) < 0 ||
        field_dup(v, "backing_file", &n->backing_path, err) < 0 ||
        field_dup(v, "detect_zeroes", &n->detect_zeroes, err) < 0)
        return err->code;
    n->name_auto = strncmp(n->name, AUTO_PREFIX, strlen(AUTO_PREFIX)) == 0;
    n->filter = qmp_is_filter(n->driver);
    n->read_only = field_bool(v, "ro", false);
    n->active = field_bool(v, "active", true);
    n->encrypted = field_bool(v, "encrypted", false);
    n->cache_direct = field_bool(cache, "direct", false);
    n->cache_no_flush = field_bool(cache, "no-flush", false);
    n->virtual_size = field_u64(image, "virtual-size", 0);
    n->data_elsewhere =
        *field_string(
            json_object_get(json_object_get(image, "format-specific"), "data"),
            "data-file", "") != '\0';
    n->disk_size = field_u64(image, "actual-size", 0);
    return 0;
}

static int compare_nodes(const void *a, const void *b)
{
    return strcmp(((const struct qmp_node *)a)->name,
                  ((const struct qmp_node *)b)->name);
}

static int nodes_fill(struct qmp_graph *g, const json_t *list,
                      struct qstill_error *err)
{
    size_t i;
    json_t *v;

    g->nodes = calloc(json_array_size(list) + 1, sizeof(*g->nodes));
    if (!g->nodes)
        return err_nomem(err);
    json_array_foreach(list, i, v)
    {
        g->count = i + 1;
        if (node_fill(&g->nodes[i], v, err) < 0)
            return err->code;
    }
    qsort(g->nodes, g->count, sizeof(*g->nodes), compare_nodes);
    return 0;
}

int qmp_graph_read(struct qstill_qmp *q, struct qmp_graph *out,
                   struct qstill_error *err)
{
    CLEANUP(qmp_graph_fini) struct qmp_graph g = QMP_GRAPH_INIT;
    CLEANUP(json_decrefp) json_t *list = NULL;

    if (client_call(q, "query-named-block-nodes",
                    json_pack("{s:b}", "flat", true), &list, err) < 0)
        return err->code;
    if (nodes_fill(&g, list, err) < 0 || edges_read(q, &g, list, err) < 0)
        return err_wrap(err, "reading the block graph");
    *out = g;
    g = (struct qmp_graph)QMP_GRAPH_INIT;
    return 0;
}

void qmp_graph_fini(struct qmp_graph *g)
{
    for (size_t i = 0; i < g->count; i++)
        node_fini(&g->nodes[i]);
    free(g->nodes);
    *g = (struct qmp_graph)QMP_GRAPH_INIT;
}

const struct qmp_node *qmp_graph_find(const struct qmp_graph *g,
                                      const char *name)
{
    struct qmp_node key = {.name = (char *)(uintptr_t)name};

    if (g->count == 0)
        return NULL;
    return bsearch(&key, g->nodes, g->count, sizeof(key), compare_nodes);
}

size_t qmp_graph_chain(const struct qmp_node *head, const struct qmp_node **out,
                       size_t max)
{
    size_t n = 0;

    for (; head; head = head->below) {
        if (head->filter)
            continue;
        if (n < max)
            out[n] = head;
        n++;
    }
    return n;
}

/* QMP has no command for it; HMP's qemu-io is in every build. */
int qmp_node_flush(struct qstill_qmp *q, const char *node,
                   struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf line = BUF_INIT;
    CLEANUP(freep) char *command = NULL;
    CLEANUP(freep) char *said = NULL;

    if (buf_printf(&line, "qemu-io %s flush", node) < 0 ||
        !(command = buf_take_string(&line)))
        return err_nomem(err);
    if (qmp_hmp(q, command, &said, err) < 0)
        return err->code;
    if (said && said[strspn(said, " \r\n")] != '\0')
        return err_set(err, QSTILL_E_FAILED, "QEMU cannot flush node '%s': %s",
                       node, said);
    return 0;
}

/* --------------------------------------------------------------------- disks
 */

static void chain_fini(struct qmp_disk *d)
{
    for (size_t i = 0; i < d->chain_count; i++) {
        free(d->chain[i].driver);
        free(d->chain[i].path);
    }
    free(d->chain);
    d->chain = NULL;
    d->chain_count = 0;
}

static void disk_fini(struct qmp_disk *d)
{
    free(d->device);
    free(d->qdev);
    free(d->qdev_id);
    free(d->qdev_type);
    free(d->root);
    free(d->filter);
    free(d->node);
    free(d->path);
    free(d->driver);
    free(d->protocol);
    free(d->protocol_node);
    free(d->protocol_path);
    free(d->odd);
    chain_fini(d);
}

void qmp_disks_fini(struct qmp_disks *d)
{
    for (size_t i = 0; i < d->count; i++)
        disk_fini(&d->items[i]);
    free(d->items);
    *d = (struct qmp_disks)QMP_DISKS_INIT;
}

/*
 * query-block names the device by its id, or by its QOM path when it has none.
 * A virtio disk is two objects: the inner one holds the medium, and the outer
 * one has the id and the property "drive".
 */
static int qdev_fill(struct qmp_disk *d, const char *qdev,
                     struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf path = BUF_INIT;
    const char *prefix = qdev[0] == '/' || qdev[0] == '\0' ? "" : PERIPHERAL;
    size_t len = strlen(qdev), tail = strlen(VIRTIO_CHILD);
    const char *id = "";

    if (len > tail && strcmp(qdev + len - tail, VIRTIO_CHILD) == 0)
        len -= tail;
    if (buf_printf(&path, "%s%.*s", prefix, (int)len, qdev) < 0)
        return err_nomem(err);
    d->qdev = buf_take_string(&path);
    if (d->qdev && strncmp(d->qdev, PERIPHERAL, strlen(PERIPHERAL)) == 0)
        id = d->qdev + strlen(PERIPHERAL);
    d->qdev_id = strdup(strchr(id, '/') ? "" : id);
    return d->qdev && d->qdev_id ? 0 : err_nomem(err);
}

static int qdev_type_fill(struct qstill_qmp *q, struct qmp_disk *d,
                          struct qstill_error *err)
{
    int rc = QSTILL_E_NOT_FOUND;

    if (d->qdev[0])
        rc = qmp_qom_get_string(q, d->qdev, "type", &d->qdev_type, err);
    if (rc == QSTILL_E_NOT_FOUND) {
        d->qdev_type = strdup("");
        rc = d->qdev_type ? err_clear(err) : err_nomem(err);
    }
    if (rc < 0)
        return rc;
    d->cdrom = strcmp(d->qdev_type, "ide-cd") == 0 ||
               strcmp(d->qdev_type, "scsi-cd") == 0;
    return 0;
}

/* The last node below one on the way of "file": the one that does I/O. */
static const struct qmp_node *protocol_of(const struct qmp_node *n)
{
    while (n && (n->file || (n->filter && n->below)))
        n = n->file ? n->file : n->below;
    return n;
}

static int protocol_fill(struct qmp_disk *d, const struct qmp_graph *g,
                         struct qstill_error *err)
{
    const struct qmp_node *n = protocol_of(qmp_graph_find(g, d->node));

    d->protocol = strdup(n ? n->driver : "");
    d->protocol_node = strdup(n ? n->name : "");
    d->protocol_path = strdup(n ? n->path : "");
    if (!d->protocol || !d->protocol_node || !d->protocol_path)
        return err_nomem(err);
    return 0;
}

static enum qmp_shape shape_of(const struct qmp_node *n)
{
    const struct qmp_node *f = n->file;

    if (n->filter || (f && (f->filter || f->file || f->below)))
        return QMP_SHAPE_STACKED;
    if (f && strcmp(n->driver, "raw") == 0 && f->virtual_size != 0 &&
        n->virtual_size != f->virtual_size)
        return QMP_SHAPE_PART;
    return n->data_elsewhere ? QMP_SHAPE_ELSEWHERE : QMP_SHAPE_PLAIN;
}

static int chain_fill(struct qmp_disk *d, const struct qmp_graph *g,
                      struct qstill_error *err)
{
    const struct qmp_node *n = qmp_graph_find(g, d->node);
    size_t count = qmp_graph_chain(n, NULL, 0);

    d->chain = calloc(count + 1, sizeof(*d->chain));
    if (!d->chain)
        return err_nomem(err);
    for (; n; n = n->below) {
        struct qmp_image *i = &d->chain[d->chain_count];

        if (n->filter)
            continue;
        d->chain_count++;
        i->driver = strdup(n->driver);
        i->path = strdup(protocol_of(n)->path);
        i->part = shape_of(n) == QMP_SHAPE_PART;
        if (!i->driver || !i->path)
            return err_nomem(err);
    }
    return 0;
}

/* Overlays of ours were made over what had been looked at; those who had not
 * are made good by looking again. A job's filter on top is none of the disk's.
 */
static int shape_fill(struct qmp_disk *d, const struct qmp_graph *g,
                      struct qstill_error *err)
{
    const struct qmp_node *n = qmp_graph_find(g, d->node);
    bool ours = true;

    d->active = !n || n->active;
    for (; n && ours && d->shape == QMP_SHAPE_PLAIN; n = n->below) {
        d->shape = shape_of(n);
        if (d->shape != QMP_SHAPE_PLAIN) {
            free(d->odd);
            d->odd = strdup(n->name);
        }
        ours = strncmp(n->name, "qs", 2) == 0;
    }
    return d->shape != QMP_SHAPE_PLAIN && !d->odd ? err_nomem(err) : 0;
}

static bool is_throttle(const struct qmp_node *n)
{
    return strcmp(n->driver, "throttle") == 0;
}

static bool is_of_job(const struct qmp_node *n)
{
    return strcmp(n->driver, "commit_top") == 0 ||
           strcmp(n->driver, "mirror_top") == 0;
}

/* Right below the root QEMU passes over a job's node by itself. */
static const struct qmp_node *head_below(const struct qmp_node *root,
                                         const struct qmp_node **filter)
{
    const struct qmp_node *n = root;

    while (n && (is_throttle(n) || is_of_job(n))) {
        if (is_throttle(n))
            *filter = n;
        n = n->below;
    }
    return n;
}

/* With limits of its own as nodes on top (-blockdev driver=throttle) a disk is
 * what is below them; they stay where they are whatever comes under them. */
static int head_fill(struct qmp_disk *d, const struct qmp_graph *g,
                     struct qstill_error *err)
{
    const struct qmp_node *root = qmp_graph_find(g, d->root);
    const struct qmp_node *filter = NULL, *head = NULL;

    if (root && is_throttle(root))
        head = head_below(root, &filter);
    if (!head || !head->file) {
        d->node = strdup(d->root);
        return d->node ? 0 : err_nomem(err);
    }
    free(d->path);
    free(d->driver);
    d->node = strdup(head->name);
    d->path = strdup(head->path);
    d->driver = strdup(head->driver);
    d->filter = strdup(filter->name);
    d->encrypted = head->encrypted;
    return d->node && d->path && d->driver && d->filter ? 0 : err_nomem(err);
}

static int disk_fill(struct qstill_qmp *q, struct qmp_disk *d, const json_t *v,
                     const struct qmp_graph *g, struct qstill_error *err)
{
    const json_t *inserted = json_object_get(v, "inserted");

    d->encrypted = field_bool(inserted, "encrypted", false);
    if (field_dup(v, "device", &d->device, err) < 0 ||
        field_need(inserted, "node-name", &d->root, err) < 0 ||
        field_dup(inserted, "file", &d->path, err) < 0 ||
        field_need(inserted, "drv", &d->driver, err) < 0 ||
        field_need_u64(json_object_get(inserted, "image"), "virtual-size",
                       &d->virtual_size, err) < 0 ||
        head_fill(d, g, err) < 0)
        return err->code;
    d->node_auto = strncmp(d->node, AUTO_PREFIX, strlen(AUTO_PREFIX)) == 0;
    d->read_only = field_bool(inserted, "ro", false);
    d->removable = field_bool(v, "removable", false);
    if (qdev_fill(d, field_string(v, "qdev", ""), err) < 0 ||
        qdev_type_fill(q, d, err) < 0 || protocol_fill(d, g, err) < 0 ||
        chain_fill(d, g, err) < 0)
        return err->code;
    return shape_fill(d, g, err);
}

int qmp_disk_move(struct qmp_disk *d, const struct qmp_graph *g,
                  const char *node, struct qstill_error *err)
{
    const struct qmp_node *n = qmp_graph_find(g, node);
    struct qmp_disk to = {0};

    to.root = strdup(d->filter ? d->root : node);
    to.node = strdup(node);
    to.path = strdup(n ? n->path : "");
    to.driver = strdup(n ? n->driver : "");
    if (!to.root || !to.node || !to.path || !to.driver ||
        protocol_fill(&to, g, err) < 0 || chain_fill(&to, g, err) < 0) {
        disk_fini(&to);
        return err_nomem(err);
    }
    free(d->root);
    free(d->node);
    free(d->path);
    free(d->driver);
    free(d->protocol);
    free(d->protocol_node);
    free(d->protocol_path);
    d->root = to.root;
    d->node = to.node;
    d->path = to.path;
    d->driver = to.driver;
    d->protocol = to.protocol;
    d->protocol_node = to.protocol_node;
    d->protocol_path = to.protocol_path;
    chain_fini(d);
    d->chain = to.chain;
    d->chain_count = to.chain_count;
    d->node_auto = strncmp(node, AUTO_PREFIX, strlen(AUTO_PREFIX)) == 0;
    d->encrypted = n && n->encrypted;
    return 0;
}

int qmp_disks_read(struct qstill_qmp *q, struct qmp_disks *out,
                   struct qstill_error *err)
{
    CLEANUP(qmp_graph_fini) struct qmp_graph g = QMP_GRAPH_INIT;
    CLEANUP(qmp_disks_fini) struct qmp_disks d = QMP_DISKS_INIT;
    CLEANUP(json_decrefp) json_t *list = NULL;
    size_t i;
    json_t *v;

    if (qmp_graph_read(q, &g, err) < 0 ||
        client_ask(q, "query-block", &list, err) < 0)
        return err->code;
    d.items = calloc(json_array_size(list) + 1, sizeof(*d.items));
    if (!d.items)
        return err_nomem(err);
    json_array_foreach(list, i, v)
    {
        if (!json_object_get(v, "inserted"))
            continue;
        if (disk_fill(q, &d.items[d.count++], v, &g, err) < 0)
            return err_wrap(err, "reading the VM's disks");
    }
    *out = d;
    d = (struct qmp_disks)QMP_DISKS_INIT;
    return 0;
}
