/* SPDX-License-Identifier: MIT */
/*
 * Who is whose child in the block graph. Three ways, the first that this QEMU
 * knows: 1. "children" of query-named-block-nodes; 2.
 * x-debug-query-block-graph;
 * 3. file names, refused where one name belongs to two nodes.
 */
#include "edges.h"

#include <string.h>

#include "client.h"
#include "field.h"

/* ------------------------------------------------------------------ one edge
 */

static struct qmp_node *find(const struct qmp_graph *g, const char *name)
{
    return (struct qmp_node *)(uintptr_t)qmp_graph_find(g, name);
}

/* Children of other roles (quorum's, a mirror's target, ...) are none of the
 * chain. A filter's only child may have either role. */
static void edge_add(struct qmp_node *parent, const char *role,
                     const struct qmp_node *child)
{
    bool is_file = strcmp(role, "file") == 0;

    if (is_file)
        parent->file = child;
    if (strcmp(role, "backing") == 0 ||
        (is_file && parent->filter && !parent->below))
        parent->below = child;
}

/* ----------------------------------------------------------------- 1 children
 */

static bool tells_children(const json_t *list)
{
    return json_is_array(json_object_get(json_array_get(list, 0), "children"));
}

static void from_children(struct qmp_graph *g, const json_t *list)
{
    size_t i, j;
    json_t *v, *c;

    json_array_foreach(list, i, v)
    {
        const json_t *children = json_object_get(v, "children");
        struct qmp_node *parent = find(g, field_string(v, "node-name", ""));

        json_array_foreach(children, j, c)
        {
            struct qmp_node *child = find(g, field_string(c, "node-name", ""));

            if (parent && child)
                edge_add(parent, field_string(c, "child", ""), child);
        }
    }
}

/* ------------------------------------------------------------- 2 debug graph
 */

/* The debug graph's numbers of nodes. */
struct numbered {
    int64_t number;
    struct qmp_node *node;
};

static int compare_numbered(const void *a, const void *b)
{
    int64_t x = ((const struct numbered *)a)->number;
    int64_t y = ((const struct numbered *)b)->number;

    return (x > y) - (x < y);
}

static struct qmp_node *by_number(const struct numbered *table, size_t count,
                                  int64_t number)
{
    struct numbered key = {number, NULL};
    const struct numbered *hit =
        bsearch(&key, table, count, sizeof(key), compare_numbered);

    return hit ? hit->node : NULL;
}

static int from_debug_graph(struct qmp_graph *g, const json_t *graph,
                            struct qstill_error *err)
{
    const json_t *nodes = json_object_get(graph, "nodes");
    const json_t *edges = json_object_get(graph, "edges");
    CLEANUP(freep) struct numbered *table = NULL;
    size_t i, count = json_array_size(nodes);
    json_t *v;

    table = calloc(count + 1, sizeof(*table));
    if (!table)
        return err_nomem(err);
    json_array_foreach(nodes, i, v)
    {
        bool driver = strcmp(field_string(v, "type", ""), "block-driver") == 0;

        table[i].number = field_i64(v, "id", -1);
        table[i].node = driver ? find(g, field_string(v, "name", "")) : NULL;
    }
    qsort(table, count, sizeof(*table), compare_numbered);
    json_array_foreach(edges, i, v)
    {
        struct qmp_node *parent =
            by_number(table, count, field_i64(v, "parent", -1));
        struct qmp_node *child =
            by_number(table, count, field_i64(v, "child", -1));

        if (parent && child)
            edge_add(parent, field_string(v, "name", ""), child);
    }
    return 0;
}

static int64_t number_of(const json_t *nodes, const char *name)
{
    size_t i;
    json_t *v;

    json_array_foreach(nodes, i, v)
    {
        if (strcmp(field_string(v, "type", ""), "block-driver") == 0 &&
            strcmp(field_string(v, "name", ""), name) == 0)
            return field_i64(v, "id", -1);
    }
    return -1;
}

static const char *name_of(const json_t *nodes, int64_t number)
{
    size_t i;
    json_t *v;

    json_array_foreach(nodes, i, v)
    {
        if (field_i64(v, "id", -1) == number)
            return field_string(v, "name", "");
    }
    return "";
}

int qmp_graph_backing(struct qstill_qmp *q, const struct qmp_graph *g,
                      const char *node, char **below, struct qstill_error *err)
{
    CLEANUP(json_decrefp) json_t *graph = NULL;
    const json_t *nodes, *edges;
    int64_t number;
    size_t i;
    json_t *v;

    *below = NULL;
    if (g->source != QMP_GRAPH_DEBUG)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "this QEMU does not tell edges alone");
    if (client_ask(q, "x-debug-query-block-graph", &graph, err) < 0)
        return err->code;
    nodes = json_object_get(graph, "nodes");
    edges = json_object_get(graph, "edges");
    number = number_of(nodes, node);
    json_array_foreach(edges, i, v)
    {
        if (number < 0 || field_i64(v, "parent", -1) != number ||
            strcmp(field_string(v, "name", ""), "backing") != 0)
            continue;
        *below = strdup(name_of(nodes, field_i64(v, "child", -1)));
        return *below ? 0 : err_nomem(err);
    }
    return 0;
}

/* ------------------------------------------------------------- 3 file names */

/* The node that has the file `path` open: as the protocol's node below `not`,
 * or as a format's. NULL for none. */
static int by_path(const struct qmp_graph *g, const char *path,
                   bool want_protocol, const struct qmp_node * not,
                   const struct qmp_node **out, struct qstill_error *err)
{
    const struct qmp_node *hit = NULL;

    for (size_t i = 0; path[0] && i < g->count; i++) {
        const struct qmp_node *n = &g->nodes[i];
        bool protocol = strcmp(n->driver, "file") == 0 ||
                        strcmp(n->driver, "host_device") == 0;

        if (n == not || n->filter || protocol != want_protocol ||
            strcmp(n->path, path) != 0)
            continue;
        if (hit)
            return err_set(err, QSTILL_E_PRECONDITION,
                           "QEMU does not tell how its block nodes hang"
                           " together, and '%s' is open twice",
                           path);
        hit = n;
    }
    *out = hit;
    return 0;
}

static int from_names(struct qmp_graph *g, const json_t *list,
                      struct qstill_error *err)
{
    size_t i;
    json_t *v;

    json_array_foreach(list, i, v)
    {
        const json_t *image = json_object_get(v, "image");
        struct qmp_node *n = find(g, field_string(v, "node-name", ""));
        const char *backing = field_string(image, "full-backing-filename",
                                           n ? n->backing_path : "");

        if (!n || n->filter || strcmp(n->driver, "file") == 0 ||
            strcmp(n->driver, "host_device") == 0)
            continue;
        if (by_path(g, n->path, true, n, &n->file, err) < 0 ||
            by_path(g, backing, false, n, &n->below, err) < 0)
            return err->code;
    }
    return 0;
}

/* -------------------------------------------------------------------- cycles
 */

static size_t index_of(const struct qmp_graph *g, const struct qmp_node *n)
{
    return (size_t)(n - g->nodes);
}

/* Takes away nodes without a parent until none is left to take: what remains
 * then is a cycle. */
static int check_cycles(const struct qmp_graph *g, struct qstill_error *err)
{
    CLEANUP(freep) size_t *parents = NULL;
    CLEANUP(freep) size_t *free_ones = NULL;
    size_t top = 0, gone = 0;

    parents = calloc(g->count + 1, sizeof(*parents));
    free_ones = calloc(g->count + 1, sizeof(*free_ones));
    if (!parents || !free_ones)
        return err_nomem(err);
    for (size_t i = 0; i < g->count; i++) {
        const struct qmp_node *children[] = {g->nodes[i].file,
                                             g->nodes[i].below};

        for (size_t c = 0; c < ARRAY_LEN(children); c++)
            if (children[c])
                parents[index_of(g, children[c])]++;
    }
    for (size_t i = 0; i < g->count; i++)
        if (parents[i] == 0)
            free_ones[top++] = i;
    for (; top > 0; gone++) {
        const struct qmp_node *n = &g->nodes[free_ones[--top]];
        const struct qmp_node *children[] = {n->file, n->below};

        for (size_t c = 0; c < ARRAY_LEN(children); c++)
            if (children[c] && --parents[index_of(g, children[c])] == 0)
                free_ones[top++] = index_of(g, children[c]);
    }
    if (gone < g->count)
        return err_set(err, QSTILL_E_CORRUPT,
                       "QEMU's block nodes are each other's children");
    return 0;
}

int edges_read(struct qstill_qmp *q, struct qmp_graph *g, const json_t *list,
               struct qstill_error *err)
{
    CLEANUP(json_decrefp) json_t *graph = NULL;
    int rc;

    if (tells_children(list)) {
        g->source = QMP_GRAPH_CHILDREN;
        from_children(g, list);
        return check_cycles(g, err);
    }
    rc = client_ask(q, "x-debug-query-block-graph", &graph, err);
    if (rc == 0) {
        g->source = QMP_GRAPH_DEBUG;
        rc = from_debug_graph(g, graph, err);
    } else if (rc == QSTILL_E_FAILED || rc == QSTILL_E_PRECONDITION) {
        err_clear(err);
        g->source = QMP_GRAPH_NAMES; /* it has none, or is told to refuse it */
        rc = from_names(g, list, err);
    }
    return rc < 0 ? rc : check_cycles(g, err);
}
