/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "../lib/qmp_peer.h"
#include "base/error.h"
#include "qmp/block.h"
#include "qmp/graph.h"

static struct qstill_error err;

/* -------------------------------------------------------------------- disks */

static void check_disks(const struct qmp_disks *d)
{
    assert_int_equal(d->count, 4);
    assert_string_equal(d->items[0].device, "d0");
    assert_string_equal(d->items[0].qdev, "/machine/peripheral/vd0");
    assert_string_equal(d->items[0].qdev_id, "vd0");
    assert_string_equal(d->items[0].qdev_type, "virtio-blk-pci");
    assert_true(d->items[0].node_auto);
    assert_string_equal(d->items[0].path, "top.qcow2");
    assert_string_equal(d->items[0].driver, "qcow2");
    assert_string_equal(d->items[0].protocol, "file");
    assert_string_equal(d->items[0].protocol_path, "top.qcow2");
    assert_false(d->items[0].read_only || d->items[0].removable ||
                 d->items[0].cdrom || d->items[0].encrypted);
    assert_int_equal(d->items[0].virtual_size, 4 << 20);

    assert_string_equal(d->items[1].device, "cd0");
    assert_string_equal(d->items[1].qdev_id, "");
    assert_string_equal(d->items[1].qdev_type, "ide-cd");
    assert_true(d->items[1].read_only && d->items[1].removable &&
                d->items[1].cdrom);

    assert_string_equal(d->items[2].device, "v");
    assert_string_equal(d->items[2].qdev, "");
    assert_string_equal(d->items[2].driver, "vdi");

    assert_string_equal(d->items[3].device, "");
    assert_string_equal(d->items[3].qdev, "/machine/peripheral/sd0");
    assert_string_equal(d->items[3].qdev_id, "sd0");
    assert_string_equal(d->items[3].node, "r0");
    assert_false(d->items[3].node_auto);
    assert_string_equal(d->items[3].driver, "raw");
}

static void check_graph(const struct qmp_graph *g, const char *head)
{
    const struct qmp_node *chain[4], *top = qmp_graph_find(g, head);

    assert_int_equal(g->source, QMP_GRAPH_DEBUG);
    assert_int_equal(g->count, 10);
    assert_int_equal(qmp_graph_chain(top, chain, 4), 2);
    assert_ptr_equal(chain[0], top);
    assert_string_equal(chain[1]->path, "base.qcow2");
    assert_string_equal(top->backing_path, "base.qcow2");
    assert_true(chain[1]->read_only && !top->read_only && top->active);
    assert_string_equal(top->file->driver, "file");
    assert_string_equal(top->file->path, "top.qcow2");
    assert_null(top->file->file);
    assert_string_equal(top->detect_zeroes, "off");
    assert_int_equal(top->virtual_size, 4 << 20);
    assert_true(top->disk_size > 0);
    assert_null(qmp_graph_find(g, "nosuch"));
}

static void replay_disks(const char *name)
{
    CLEANUP(qmp_disks_fini) struct qmp_disks d = QMP_DISKS_INIT;
    CLEANUP(qmp_graph_fini) struct qmp_graph g = QMP_GRAPH_INIT;
    struct qstill_qmp *q;
    struct qmp_peer *p = qmp_peer_replay(name, &q);

    assert_int_equal(qmp_disks_read(q, &d, &err), 0);
    check_disks(&d);
    assert_int_equal(qmp_graph_read(q, &g, &err), 0);
    check_graph(&g, d.items[0].node);
    qmp_peer_close(p, q);
}

static void disks_and_chain_of_qemu_7_2(void **state)
{
    (void)state;
    replay_disks("disks-7.2.txt");
}

static void disks_and_chain_of_qemu_10_0(void **state)
{
    (void)state;
    replay_disks("disks-10.0.txt");
}

/* ---------------------------------------------------------------- the edges */

#define ASK_NODES                                                              \
    "C {\"execute\":\"query-named-block-nodes\",\"arguments\":{\"flat\":"      \
    "true}}\n"
#define ASK_EDGES "C {\"execute\":\"x-debug-query-block-graph\"}\n"
#define NO_EDGES                                                               \
    ASK_EDGES "S {\"error\":{\"class\":\"CommandNotFound\",\"desc\":\"no\"}}"

static int read_script(const char *script, struct qmp_graph *g)
{
    struct qstill_qmp *q;
    struct qmp_peer *p = qmp_peer_client(script, &q);
    int rc = qmp_graph_read(q, g, &err);

    qmp_peer_close(p, q);
    return rc;
}

/* The debug graph's other nodes and edges (devices, files) are none of it. */
static void what_a_node_is_backed_by_is_asked_alone(void **state)
{
    static const char script[] = ASK_EDGES
        "S {\"return\":{\"nodes\":[{\"id\":1,\"type\":\"block-backend\","
        "\"name\":\"top\"},{\"id\":2,\"type\":\"block-driver\",\"name\":"
        "\"top\"},{\"id\":3,\"type\":\"block-driver\",\"name\":\"mid\"},"
        "{\"id\":4,\"type\":\"block-driver\",\"name\":\"low\"}],\"edges\":["
        "{\"parent\":1,\"child\":2,\"name\":\"root\",\"perm\":[]},"
        "{\"parent\":2,\"child\":4,\"name\":\"file\",\"perm\":[]},"
        "{\"parent\":3,\"child\":4,\"name\":\"backing\",\"perm\":[]},"
        "{\"parent\":2,\"child\":3,\"name\":\"backing\",\"perm\":[]}]}}";
    static const struct {
        const char *node, *below;
    } cases[] = {{"top", "mid"}, {"mid", "low"}, {"low", NULL}, {"no", NULL}};
    struct qmp_graph g = {.source = QMP_GRAPH_DEBUG};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        CLEANUP(freep) char *below = NULL;
        struct qstill_qmp *q;
        struct qmp_peer *p = qmp_peer_client(script, &q);

        assert_int_equal(qmp_graph_backing(q, &g, cases[i].node, &below, &err),
                         0);
        qmp_peer_close(p, q);
        if (!cases[i].below)
            assert_null(below);
        else
            assert_string_equal(below, cases[i].below);
    }
    g.source = QMP_GRAPH_CHILDREN;
    assert_int_equal(qmp_graph_backing(NULL, &g, "top", &(char *){NULL}, &err),
                     QSTILL_E_PRECONDITION);
}

static void edges_come_with_the_nodes_since_10_1(void **state)
{
    CLEANUP(qmp_graph_fini) struct qmp_graph g = QMP_GRAPH_INIT;
    const struct qmp_node *chain[4];

    (void)state;
    assert_int_equal(
        read_script(
            ASK_NODES
            "S {\"return\":[{\"node-name\":\"top\",\"drv\":\"qcow2\","
            "\"file\":\"t\",\"children\":[{\"child\":\"backing\","
            "\"node-name\":\"thr\"},{\"child\":\"file\",\"node-name\":\"tf\"}]}"
            ",{\"node-name\":\"tf\",\"drv\":\"file\",\"file\":\"t\","
            "\"children\":[]},{\"node-name\":\"thr\",\"drv\":\"throttle\","
            "\"file\":\"b\",\"children\":[{\"child\":\"file\",\"node-name\":"
            "\"base\"}]},{\"node-name\":\"base\",\"drv\":\"raw\",\"file\":\"b\""
            ",\"children\":[]}]}",
            &g),
        0);
    assert_int_equal(g.source, QMP_GRAPH_CHILDREN);
    assert_int_equal(qmp_graph_chain(qmp_graph_find(&g, "top"), chain, 4), 2);
    assert_string_equal(chain[1]->name, "base");
    assert_true(qmp_graph_find(&g, "thr")->filter);
    assert_string_equal(qmp_graph_find(&g, "top")->file->name, "tf");
}

static void without_edges_names_must_do(void **state)
{
    CLEANUP(qmp_graph_fini) struct qmp_graph g = QMP_GRAPH_INIT;
    const struct qmp_node *chain[4];

    (void)state;
    assert_int_equal(
        read_script(ASK_NODES
                    "S {\"return\":[{\"node-name\":\"a\",\"drv\":\"qcow2\","
                    "\"file\":\"/d/t\",\"backing_file\":\"b\",\"image\":"
                    "{\"full-backing-filename\":\"/d/b\"}},"
                    "{\"node-name\":\"b\",\"drv\":\"raw\",\"file\":\"/d/b\"},"
                    "{\"node-name\":\"c\",\"drv\":\"file\",\"file\":\"/d/t\"},"
                    "{\"node-name\":\"d\",\"drv\":\"file\",\"file\":\"/d/b\"}"
                    "]}\n" NO_EDGES,
                    &g),
        0);
    assert_int_equal(g.source, QMP_GRAPH_NAMES);
    assert_int_equal(qmp_graph_chain(qmp_graph_find(&g, "a"), chain, 4), 2);
    assert_string_equal(chain[1]->name, "b");
    assert_string_equal(chain[1]->file->name, "d");
}

static void a_file_open_twice_cannot_be_told_by_name(void **state)
{
    CLEANUP(qmp_graph_fini) struct qmp_graph g = QMP_GRAPH_INIT;

    (void)state;
    qmp_peer_error(
        &err,
        read_script(ASK_NODES
                    "S {\"return\":[{\"node-name\":\"a\",\"drv\":\"qcow2\","
                    "\"file\":\"/d/t\",\"backing_file\":\"/d/b\"},"
                    "{\"node-name\":\"b\",\"drv\":\"raw\",\"file\":\"/d/b\"},"
                    "{\"node-name\":\"c\",\"drv\":\"raw\",\"file\":\"/d/b\"}"
                    "]}\n" NO_EDGES,
                    &g),
        QSTILL_E_PRECONDITION, "and '/d/b' is open twice");
}

static void a_cycle_of_nodes_is_corrupt(void **state)
{
    CLEANUP(qmp_graph_fini) struct qmp_graph g = QMP_GRAPH_INIT;

    (void)state;
    qmp_peer_error(
        &err,
        read_script(ASK_NODES
                    "S {\"return\":[{\"node-name\":\"a\",\"drv\":\"qcow2\"},"
                    "{\"node-name\":\"b\",\"drv\":\"qcow2\"}]}\n" ASK_EDGES
                    "S {\"return\":{\"nodes\":[{\"id\":1,\"type\":"
                    "\"block-driver\",\"name\":\"a\"},{\"id\":2,\"type\":"
                    "\"block-driver\",\"name\":\"b\"}],\"edges\":["
                    "{\"parent\":1,\"child\":2,\"name\":\"backing\"},"
                    "{\"parent\":2,\"child\":1,\"name\":\"backing\"}]}}",
                    &g),
        QSTILL_E_CORRUPT, "QEMU's block nodes are each other's children");
}

static void a_node_without_name_or_driver_fails(void **state)
{
    CLEANUP(qmp_graph_fini) struct qmp_graph g = QMP_GRAPH_INIT;

    (void)state;
    qmp_peer_error(
        &err, read_script(ASK_NODES "S {\"return\":[{\"drv\":\"raw\"}]}", &g),
        QSTILL_E_FAILED, "QEMU's answer has no usable 'node-name'");
    qmp_peer_error(&err,
                   read_script(ASK_NODES "S {\"return\":[{\"node-name\":\"a\","
                                         "\"drv\":7}]}",
                               &g),
                   QSTILL_E_FAILED, "QEMU's answer has no usable 'drv'");
}

/* ------------------------------------------------------------------ changes */

static void overlays_go_into_one_transaction(void **state)
{
    const struct qmp_overlay overlays[] = {
        {.node = "n0", .device = "ignored", .path = "/d/1", .new_node = "q1"},
        {.device = "drive1", .path = "/d/2", .new_node = "q2"},
    };
    const struct qmp_overlay latin1 = {
        .node = "n0", .path = "/d/\xe9", .new_node = "q1"};
    struct qstill_qmp *q;
    struct qmp_peer *p = qmp_peer_client(
        "C {\"execute\":\"transaction\",\"arguments\":{\"actions\":["
        "{\"type\":\"blockdev-snapshot-sync\",\"data\":{\"node-name\":\"n0\","
        "\"snapshot-file\":\"/d/1\",\"snapshot-node-name\":\"q1\","
        "\"format\":\"qcow2\",\"mode\":\"existing\"}},"
        "{\"type\":\"blockdev-snapshot-sync\",\"data\":{\"device\":\"drive1\","
        "\"snapshot-file\":\"/d/2\",\"snapshot-node-name\":\"q2\","
        "\"format\":\"qcow2\",\"mode\":\"existing\"}}]}}\n"
        "S {\"return\":{}}",
        &q);

    (void)state;
    assert_int_equal(qmp_snapshot_disks(q, overlays, 2, &err), 0);
    qmp_peer_error(&err, qmp_snapshot_disks(q, &latin1, 1, &err),
                   QSTILL_E_USAGE, "it is not UTF-8");
    qmp_peer_close(p, q);
}

static void a_node_is_added_with_all_its_options(void **state)
{
    struct qmp_blockdev b = {
        .node = "m",
        .driver = "qcow2",
        .path = "/d/m",
        .file_node = "mf",
        .backing = "base",
        .read_only = true,
        .cache_direct = true,
        .discard = "unmap",
        .detect_zeroes = "on",
    };
    struct qstill_qmp *q;
    struct qmp_peer *p = qmp_peer_client(
        "C {\"execute\":\"blockdev-add\",\"arguments\":{\"driver\":\"qcow2\","
        "\"node-name\":\"m\",\"read-only\":true,\"file\":{\"driver\":\"file\","
        "\"filename\":\"/d/m\",\"node-name\":\"mf\","
        "\"cache\":{\"direct\":true,\"no-flush\":false},\"discard\":\"unmap\"},"
        "\"cache\":{\"direct\":true,\"no-flush\":false},\"backing\":\"base\","
        "\"discard\":\"unmap\",\"detect-zeroes\":\"on\"}}\n"
        "S {\"return\":{}}\n"
        "C {\"execute\":\"blockdev-add\",\"arguments\":{\"driver\":\"raw\","
        "\"node-name\":\"r\",\"read-only\":false,\"file\":{\"driver\":"
        "\"host_device\",\"filename\":\"/dev/x\"},"
        "\"backing\":null}}\n"
        "S {\"return\":{}}",
        &q);

    (void)state;
    assert_int_equal(qmp_blockdev_add(q, &b, &err), 0);
    b = (struct qmp_blockdev){.node = "r",
                              .driver = "raw",
                              .path = "/dev/x",
                              .protocol = "host_device",
                              .backing_null = true};
    assert_int_equal(qmp_blockdev_add(q, &b, &err), 0);
    qmp_peer_close(p, q);
}

static void reopening_wants_a_name_and_a_protocol_node(void **state)
{
    struct qmp_blockdev b = {.node = "#block1", .driver = "qcow2"};
    struct qstill_qmp *q;
    struct qmp_peer *p = qmp_peer_client(
        "C {\"execute\":\"blockdev-reopen\",\"arguments\":{\"options\":[{"
        "\"driver\":\"qcow2\",\"node-name\":\"o3\",\"read-only\":false,"
        "\"file\":\"#block7\",\"backing\":\"mg\"}]}}\n"
        "S {\"return\":{}}",
        &q);

    (void)state;
    qmp_peer_error(&err, qmp_blockdev_reopen(q, &b, &err),
                   QSTILL_E_PRECONDITION,
                   "node '#block1' has an automatic name");
    b.node = "o3";
    qmp_peer_error(&err, qmp_blockdev_reopen(q, &b, &err), QSTILL_E_USAGE,
                   "reopening 'o3' wants its present protocol node");
    b.file_node = "#block7";
    b.backing = "mg";
    assert_int_equal(qmp_blockdev_reopen(q, &b, &err), 0);
    qmp_peer_close(p, q);
}

static void reopening_by_hmp_leaves_what_is_not_named(void **state)
{
    struct qstill_qmp *q;
    struct qmp_peer *p = qmp_peer_client(
        "C {\"execute\":\"human-monitor-command\",\"arguments\":{"
        "\"command-line\":\"qemu-io #block1 \\\"reopen -w -o backing=mg\\\"\""
        "}}\n"
        "S {\"return\":\"\"}\n"
        "C {\"execute\":\"human-monitor-command\",\"arguments\":{"
        "\"command-line\":\"qemu-io #block1 \\\"reopen -r\\\"\"}}\n"
        "S {\"return\":\"Could not open\\r\\n\"}",
        &q);

    (void)state;
    assert_int_equal(qmp_node_reopen(q, "#block1", "mg", false, &err), 0);
    qmp_peer_error(&err, qmp_node_reopen(q, "#block1", NULL, true, &err),
                   QSTILL_E_FAILED, "reopening node '#block1': Could not open");
    qmp_peer_close(p, q);
}

#define ASK(command) "C {\"execute\":\"" command "\"}\n"
#define VERSION(major)                                                         \
    "S {\"return\":{\"qemu\":{\"major\":" major ",\"minor\":2,\"micro\":1},"   \
    "\"package\":\"\"}}\n"

/* An old one dies of it when it has iothreads. */
static void whether_backing_nodes_can_be_swapped(void **state)
{
    static const struct {
        const char *talk;
        bool works;
    } cases[] = {
        {ASK("query-iothreads") "S {\"return\":[]}\n" ASK("query-version")
             VERSION("7"),
         true},
        {ASK("query-iothreads") "S {\"return\":[{\"id\":\"io0\"}]}\n" ASK(
             "query-version") VERSION("8"),
         false},
        {ASK("query-iothreads") "S {\"return\":[{\"id\":\"io0\"}]}\n" ASK(
             "query-version") VERSION("9"),
         true},
        {ASK("query-iothreads") "S {\"return\":{}}\n" ASK("query-version")
             VERSION("7"),
         false},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct qstill_qmp *q;
        struct qmp_peer *p = qmp_peer_client(cases[i].talk, &q);
        bool works = !cases[i].works;

        assert_int_equal(qmp_swap_works(q, &works, &err), 0);
        assert_int_equal(works, cases[i].works);
        qmp_peer_close(p, q);
    }
}

static void a_node_that_is_gone_is_told_apart(void **state)
{
    static const char gone[] =
        "C {\"execute\":\"blockdev-del\",\"arguments\":{\"node-name\":\"m\"}}\n"
        "S {\"error\":{\"class\":\"GenericError\",\"desc\":\"Failed to find\"}}"
        "\n" ASK_NODES "S {\"return\":[]}\n" ASK_EDGES
        "S {\"return\":{\"nodes\":[],\"edges\":[]}}";
    static const char used[] =
        "C {\"execute\":\"blockdev-del\",\"arguments\":{\"node-name\":\"m\"}}\n"
        "S {\"error\":{\"class\":\"GenericError\",\"desc\":\"Node m is in "
        "use\"}}\n" ASK_NODES
        "S {\"return\":[{\"node-name\":\"m\",\"drv\":\"raw\"}]}\n" ASK_EDGES
        "S {\"return\":{\"nodes\":[],\"edges\":[]}}";
    struct qstill_qmp *q;
    struct qmp_peer *p = qmp_peer_client(gone, &q);

    (void)state;
    qmp_peer_error(&err, qmp_blockdev_del(q, "m", QMP_MISSING_FAILS, &err),
                   QSTILL_E_NOT_FOUND, "Failed to find");
    qmp_peer_close(p, q);
    p = qmp_peer_client(gone, &q);
    assert_int_equal(qmp_blockdev_del(q, "m", QMP_MISSING_FINE, &err), 0);
    assert_int_equal(err.code, 0);
    qmp_peer_close(p, q);
    p = qmp_peer_client(used, &q);
    qmp_peer_error(&err, qmp_blockdev_del(q, "m", QMP_MISSING_FINE, &err),
                   QSTILL_E_FAILED, "Node m is in use");
    qmp_peer_close(p, q);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(disks_and_chain_of_qemu_7_2),
        cmocka_unit_test(disks_and_chain_of_qemu_10_0),
        cmocka_unit_test(what_a_node_is_backed_by_is_asked_alone),
        cmocka_unit_test(edges_come_with_the_nodes_since_10_1),
        cmocka_unit_test(without_edges_names_must_do),
        cmocka_unit_test(a_file_open_twice_cannot_be_told_by_name),
        cmocka_unit_test(a_cycle_of_nodes_is_corrupt),
        cmocka_unit_test(a_node_without_name_or_driver_fails),
        cmocka_unit_test(overlays_go_into_one_transaction),
        cmocka_unit_test(a_node_is_added_with_all_its_options),
        cmocka_unit_test(reopening_wants_a_name_and_a_protocol_node),
        cmocka_unit_test(reopening_by_hmp_leaves_what_is_not_named),
        cmocka_unit_test(whether_backing_nodes_can_be_swapped),
        cmocka_unit_test(a_node_that_is_gone_is_told_apart),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
