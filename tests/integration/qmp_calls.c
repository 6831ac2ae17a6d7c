/* SPDX-License-Identifier: MIT */
/*
 * The QMP layer at the end of a pipe, for tests with a real QEMU: reads lines
 * ["verb", argument...] and answers each with a line {"ok": VALUE} or {"error":
 * {"code", "message", "hint"}}. It adds nothing of its own: a verb is one call.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "qmp/block.h"
#include "qmp/graph.h"
#include "qmp/job.h"
#include "qmp/machine.h"
#include "qmp/migrate.h"
#include "qmp/monitor.h"
#include "qmp/ram.h"
#include "qmp/topology.h"
#include "qstill-qmp.h"

#define LIST_MAX 64

static struct qstill_qmp *q;
static struct qstill_qga *ga;

/* ------------------------------------------------------------------ arguments
 */

static const char *str(const json_t *args, size_t i)
{
    return json_string_value(json_array_get(args, i));
}

static int64_t num(const json_t *args, size_t i)
{
    return json_integer_value(json_array_get(args, i));
}

static const char *member(const json_t *args, size_t i, const char *key)
{
    return json_string_value(json_object_get(json_array_get(args, i), key));
}

static bool flag(const json_t *args, size_t i, const char *key)
{
    return json_is_true(json_object_get(json_array_get(args, i), key));
}

static json_t *s(const char *text)
{
    return json_string(text ? text : "");
}

static json_t *n(uint64_t value)
{
    return json_integer((json_int_t)value);
}

/* A call without a result. */
static json_t *done(int rc)
{
    return rc < 0 ? NULL : json_true();
}

/* ----------------------------------------------------------------- connection
 */

static json_t *v_open(const json_t *a, struct qstill_error *err)
{
    struct qstill_qmp_options o = QSTILL_QMP_OPTIONS_INIT;

    o.greeting_timeout_ms = (uint32_t)num(a, 2);
    qstill_qmp_close(q);
    q = NULL;
    return done(qstill_qmp_open(&q, str(a, 1), &o, err));
}

static json_t *v_close(const json_t *a, struct qstill_error *err)
{
    (void)a, (void)err;
    qstill_qmp_close(q);
    q = NULL;
    return json_true();
}

static json_t *v_pid(const json_t *a, struct qstill_error *err)
{
    pid_t pid;

    (void)a;
    return qstill_qmp_peer_pid(q, &pid, err) < 0 ? NULL : n((uint64_t)pid);
}

static json_t *v_execute(const json_t *a, struct qstill_error *err)
{
    json_t *args = json_deep_copy(json_array_get(a, 2)), *ret = NULL;
    json_t *given = json_is_object(args) ? json_incref(args) : NULL;

    json_decref(args);
    return qstill_qmp_execute(q, str(a, 1), given, (uint32_t)num(a, 3), &ret,
                              err) < 0
               ? NULL
               : ret;
}

static json_t *v_has(const json_t *a, struct qstill_error *err)
{
    const char *what = str(a, 1);
    bool has;
    int rc = -1;

    if (strcmp(what, "command") == 0)
        rc = qstill_qmp_has_command(q, str(a, 2), &has, err);
    else if (strcmp(what, "event") == 0)
        rc = qstill_qmp_has_event(q, str(a, 2), &has, err);
    else if (strcmp(what, "argument") == 0)
        rc = qstill_qmp_has_argument(q, str(a, 2), str(a, 3), &has, err);
    else if (strcmp(what, "value") == 0)
        rc =
            qstill_qmp_has_value(q, str(a, 2), str(a, 3), str(a, 4), &has, err);
    else if (strcmp(what, "member") == 0)
        rc = qstill_qmp_has_member(q, str(a, 2), str(a, 3), &has, err);
    return rc < 0 ? NULL : json_boolean(has);
}

/* -------------------------------------------------------------------- machine
 */

static json_t *v_status(const json_t *a, struct qstill_error *err)
{
    struct qmp_status st;

    (void)a;
    if (qmp_status_read(q, &st, err) < 0)
        return NULL;
    return json_pack("{s:b, s:s}", "running", st.running, "state", st.state);
}

static json_t *v_stop(const json_t *a, struct qstill_error *err)
{
    return done(qmp_stop(q, (uint32_t)num(a, 1), err));
}

static json_t *v_cont(const json_t *a, struct qstill_error *err)
{
    (void)a;
    return done(qmp_cont(q, err));
}

static json_t *v_reset(const json_t *a, struct qstill_error *err)
{
    (void)a;
    return done(qmp_system_reset(q, err));
}

static json_t *v_quit(const json_t *a, struct qstill_error *err)
{
    (void)a;
    return done(qmp_quit(q, err));
}

static json_t *v_machine(const json_t *a, struct qstill_error *err)
{
    CLEANUP(qmp_machine_fini) struct qmp_machine m = QMP_MACHINE_INIT;

    (void)a;
    if (qmp_machine_read(q, &m, err) < 0)
        return NULL;
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:b}", "version", m.version,
                     "package", m.package, "name", m.name, "uuid", m.uuid,
                     "type", m.type, "kvm", m.kvm);
}

static json_t *tristate(enum qmp_tristate t)
{
    return t == QMP_UNKNOWN ? json_null() : json_boolean(t == QMP_YES);
}

static json_t *v_cpus(const json_t *a, struct qstill_error *err)
{
    CLEANUP(qmp_cpus_fini) struct qmp_cpus c = QMP_CPUS_INIT;

    (void)a;
    if (qmp_cpus_read(q, &c, err) < 0)
        return NULL;
    return json_pack("{s:o, s:s, s:s, s:o, s:o, s:o}", "count", n(c.count),
                     "type", c.type, "model_id", c.model_id, "invtsc",
                     tristate(c.invtsc), "migratable", tristate(c.migratable),
                     "tsc", n(c.tsc_frequency));
}

/* As snapshots of before the sums left the firmware's registers out have it. */
static json_t *v_topology_before(const json_t *a, struct qstill_error *err)
{
    CLEANUP(qmp_names_fini) struct qmp_names now = QMP_NAMES_INIT;
    CLEANUP(qmp_names_fini) struct qmp_names before = QMP_NAMES_INIT;
    json_t *list;

    (void)a;
    if (qmp_topology_read_both(q, &now, &before, err) < 0)
        return NULL;
    list = json_array();
    for (size_t i = 0; i < before.count; i++)
        json_array_append_new(list, json_string(before.items[i]));
    return list;
}

static json_t *v_devices(const json_t *a, struct qstill_error *err)
{
    CLEANUP(qmp_devices_fini) struct qmp_devices d = QMP_DEVICES_INIT;
    json_t *list;

    (void)a;
    if (qmp_devices_read(q, &d, err) < 0)
        return NULL;
    list = json_array();
    for (size_t i = 0; i < d.count; i++)
        json_array_append_new(
            list, json_pack("{s:s, s:s, s:s}", "path", d.items[i].path, "id",
                            d.items[i].id, "type", d.items[i].type));
    return list;
}

/* ------------------------------------------------------------------ the graph
 */

static json_t *disk_json(const struct qmp_disk *d)
{
    json_t *o =
        json_pack("{s:s, s:s, s:s, s:s, s:s, s:b, s:s, s:s}", "device",
                  d->device, "qdev", d->qdev, "qdev_id", d->qdev_id,
                  "qdev_type", d->qdev_type, "node", d->node, "node_auto",
                  d->node_auto, "path", d->path, "driver", d->driver);
    json_t *more = json_pack(
        "{s:s, s:s, s:s, s:b, s:b, s:b, s:b, s:o}", "protocol", d->protocol,
        "protocol_node", d->protocol_node, "protocol_path", d->protocol_path,
        "read_only", d->read_only, "removable", d->removable, "cdrom", d->cdrom,
        "encrypted", d->encrypted, "virtual_size", n(d->virtual_size));

    json_object_update(o, more);
    json_decref(more);
    return o;
}

static json_t *v_disks(const json_t *a, struct qstill_error *err)
{
    CLEANUP(qmp_disks_fini) struct qmp_disks d = QMP_DISKS_INIT;
    json_t *list;

    (void)a;
    if (qmp_disks_read(q, &d, err) < 0)
        return NULL;
    list = json_array();
    for (size_t i = 0; i < d.count; i++)
        json_array_append_new(list, disk_json(&d.items[i]));
    return list;
}

static json_t *node_json(const struct qmp_node *d)
{
    json_t *o =
        json_pack("{s:s, s:b, s:s, s:s, s:s, s:b, s:b, s:b}", "name", d->name,
                  "auto", d->name_auto, "driver", d->driver, "path", d->path,
                  "backing_path", d->backing_path, "read_only", d->read_only,
                  "active", d->active, "filter", d->filter);
    json_t *more = json_pack(
        "{s:b, s:b, s:s, s:o, s:o, s:s, s:s}", "cache_direct", d->cache_direct,
        "cache_no_flush", d->cache_no_flush, "detect_zeroes", d->detect_zeroes,
        "virtual_size", n(d->virtual_size), "disk_size", n(d->disk_size),
        "file", d->file ? d->file->name : "", "below",
        d->below ? d->below->name : "");

    json_object_update(o, more);
    json_decref(more);
    return o;
}

static json_t *v_graph(const json_t *a, struct qstill_error *err)
{
    CLEANUP(qmp_graph_fini) struct qmp_graph g = QMP_GRAPH_INIT;
    json_t *list;

    (void)a;
    if (qmp_graph_read(q, &g, err) < 0)
        return NULL;
    list = json_array();
    for (size_t i = 0; i < g.count; i++)
        json_array_append_new(list, node_json(&g.nodes[i]));
    return json_pack("{s:i, s:o}", "source", (int)g.source, "nodes", list);
}

static json_t *v_chain(const json_t *a, struct qstill_error *err)
{
    CLEANUP(qmp_graph_fini) struct qmp_graph g = QMP_GRAPH_INIT;
    const struct qmp_node *chain[LIST_MAX];
    size_t count;
    json_t *list;

    if (qmp_graph_read(q, &g, err) < 0)
        return NULL;
    count = qmp_graph_chain(qmp_graph_find(&g, str(a, 1)), chain, LIST_MAX);
    list = json_array();
    for (size_t i = 0; i < count && i < LIST_MAX; i++)
        json_array_append_new(list,
                              json_pack("[s,s,s]", chain[i]->name,
                                        chain[i]->path, chain[i]->driver));
    return list;
}

static json_t *v_snapshot(const json_t *a, struct qstill_error *err)
{
    struct qmp_overlay o[LIST_MAX];
    size_t count = json_array_size(a) - 1;

    for (size_t i = 0; i < count && i < LIST_MAX; i++)
        o[i] = (struct qmp_overlay){
            .node = member(a, i + 1, "node"),
            .device = member(a, i + 1, "device"),
            .path = member(a, i + 1, "path"),
            .new_node = member(a, i + 1, "new_node"),
        };
    return done(qmp_snapshot_disks(q, o, count, err));
}

static struct qmp_blockdev blockdev_of(const json_t *a)
{
    return (struct qmp_blockdev){
        .node = member(a, 1, "node"),
        .driver = member(a, 1, "driver"),
        .path = member(a, 1, "path"),
        .file_node = member(a, 1, "file_node"),
        .protocol = member(a, 1, "protocol"),
        .backing = member(a, 1, "backing"),
        .backing_null = flag(a, 1, "backing_null"),
        .read_only = flag(a, 1, "read_only"),
        .cache_direct = flag(a, 1, "cache_direct"),
        .cache_no_flush = flag(a, 1, "cache_no_flush"),
        .discard = member(a, 1, "discard"),
        .detect_zeroes = member(a, 1, "detect_zeroes"),
    };
}

static json_t *v_add(const json_t *a, struct qstill_error *err)
{
    struct qmp_blockdev b = blockdev_of(a);

    return done(qmp_blockdev_add(q, &b, err));
}

static json_t *v_reopen(const json_t *a, struct qstill_error *err)
{
    struct qmp_blockdev b = blockdev_of(a);

    return done(qmp_blockdev_reopen(q, &b, err));
}

static json_t *v_node_reopen(const json_t *a, struct qstill_error *err)
{
    return done(qmp_node_reopen(q, str(a, 1), str(a, 2),
                                json_is_true(json_array_get(a, 3)), err));
}

static json_t *v_del(const json_t *a, struct qstill_error *err)
{
    enum qmp_missing missing = json_is_true(json_array_get(a, 2))
                                   ? QMP_MISSING_FINE
                                   : QMP_MISSING_FAILS;

    return done(qmp_blockdev_del(q, str(a, 1), missing, err));
}

static json_t *v_change_backing(const json_t *a, struct qstill_error *err)
{
    return done(
        qmp_change_backing_file(q, str(a, 1), str(a, 2), str(a, 3), err));
}

static json_t *v_set_drive(const json_t *a, struct qstill_error *err)
{
    return done(qmp_set_drive(q, str(a, 1), str(a, 2), err));
}

/* ----------------------------------------------------------------------- jobs
 */

static json_t *v_commit(const json_t *a, struct qstill_error *err)
{
    struct qmp_commit c = {
        .job = member(a, 1, "job"),
        .device = member(a, 1, "device"),
        .top_node = member(a, 1, "top_node"),
        .base_node = member(a, 1, "base_node"),
        .backing_file = member(a, 1, "backing_file"),
    };

    return done(qmp_block_commit(q, &c, err));
}

static json_t *v_stream(const json_t *a, struct qstill_error *err)
{
    struct qmp_stream st = {
        .job = member(a, 1, "job"),
        .device = member(a, 1, "device"),
        .base_node = member(a, 1, "base_node"),
        .bottom = member(a, 1, "bottom"),
        .backing_file = member(a, 1, "backing_file"),
        .speed = (uint64_t)json_integer_value(
            json_object_get(json_array_get(a, 1), "speed")),
    };

    return done(qmp_block_stream(q, &st, err));
}

static json_t *job_json(const struct qmp_job *j)
{
    return json_pack("{s:i, s:s, s:s, s:s, s:o, s:o}", "state", (int)j->state,
                     "status", j->status, "type", j->type, "error", j->error,
                     "done", n(j->done), "total", n(j->total));
}

static json_t *v_job(const json_t *a, struct qstill_error *err)
{
    struct qmp_job j;

    return qmp_job_read(q, str(a, 1), &j, err) < 0 ? NULL : job_json(&j);
}

static json_t *v_job_wait(const json_t *a, struct qstill_error *err)
{
    enum qmp_job_state until =
        strcmp(str(a, 2), "ready") == 0 ? QMP_JOB_READY : QMP_JOB_CONCLUDED;
    struct qmp_job j;

    if (qmp_job_wait(q, str(a, 1), until, (uint32_t)num(a, 3), &j, err) < 0)
        return NULL;
    return job_json(&j);
}

static json_t *v_job_complete(const json_t *a, struct qstill_error *err)
{
    return done(qmp_job_complete(q, str(a, 1), err));
}

static json_t *v_job_cancel(const json_t *a, struct qstill_error *err)
{
    return done(qmp_job_cancel(q, str(a, 1), err));
}

static json_t *v_job_dismiss(const json_t *a, struct qstill_error *err)
{
    return done(qmp_job_dismiss(q, str(a, 1), err));
}

static json_t *v_job_speed(const json_t *a, struct qstill_error *err)
{
    return done(qmp_job_set_speed(q, str(a, 1), (uint64_t)num(a, 2), err));
}

static json_t *v_job_finish(const json_t *a, struct qstill_error *err)
{
    return done(qmp_job_finish(q, str(a, 1), (uint32_t)num(a, 2), err));
}

static json_t *v_snapshot_load(const json_t *a, struct qstill_error *err)
{
    return done(qmp_snapshot_load(q, str(a, 1), str(a, 2), str(a, 3), err));
}

/* ------------------------------------------------------------------ migration
 */

static json_t *names_json(const struct qmp_names *names)
{
    json_t *list = json_array();

    for (size_t i = 0; i < names->count; i++)
        json_array_append_new(list, s(names->items[i]));
    return list;
}

static json_t *v_caps(const json_t *a, struct qstill_error *err)
{
    struct qmp_capability caps[LIST_MAX];
    size_t count = json_array_size(a) - 1;

    for (size_t i = 0; i < count && i < LIST_MAX; i++)
        caps[i] = (struct qmp_capability){
            str(json_array_get(a, i + 1), 0),
            json_is_true(json_array_get(json_array_get(a, i + 1), 1))};
    return done(qmp_migrate_set_capabilities(q, caps, count, err));
}

static json_t *v_caps_on(const json_t *a, struct qstill_error *err)
{
    CLEANUP(qmp_names_fini) struct qmp_names on = QMP_NAMES_INIT;

    (void)a;
    return qmp_migrate_capabilities_on(q, &on, err) < 0 ? NULL
                                                        : names_json(&on);
}

static json_t *v_params(const json_t *a, struct qstill_error *err)
{
    struct qmp_parameter params[LIST_MAX];
    size_t count = json_array_size(a) - 1;

    for (size_t i = 0; i < count && i < LIST_MAX; i++)
        params[i] = (struct qmp_parameter){str(json_array_get(a, i + 1), 0),
                                           num(json_array_get(a, i + 1), 1)};
    return done(qmp_migrate_set_parameters(q, params, count, err));
}

static json_t *v_param(const json_t *a, struct qstill_error *err)
{
    int64_t value;

    return qmp_migrate_get_parameter(q, str(a, 1), &value, err) < 0
               ? NULL
               : json_integer(value);
}

static json_t *v_migrate(const json_t *a, struct qstill_error *err)
{
    return done(qmp_migrate_start(q, str(a, 1), err));
}

static json_t *v_continue(const json_t *a, struct qstill_error *err)
{
    (void)a;
    return done(qmp_migrate_continue(q, err));
}

static json_t *v_cancel(const json_t *a, struct qstill_error *err)
{
    (void)a;
    return done(qmp_migrate_cancel(q, err));
}

static json_t *v_incoming(const json_t *a, struct qstill_error *err)
{
    return done(qmp_migrate_incoming(q, str(a, 1), err));
}

static json_t *v_migration(const json_t *a, struct qstill_error *err)
{
    CLEANUP(qmp_migration_fini) struct qmp_migration m = QMP_MIGRATION_INIT;

    (void)a;
    if (qmp_migration_read(q, &m, err) < 0)
        return NULL;
    return json_pack("{s:i, s:s, s:s, s:o, s:b, s:o, s:o, s:o, s:o}", "state",
                     (int)m.state, "status", m.status, "error", m.error,
                     "blocked", names_json(&m.blocked), "vfio", m.vfio, "total",
                     n(m.ram_total), "normal", n(m.ram_normal), "duplicate",
                     n(m.ram_duplicate), "passes", n(m.ram_passes));
}

static json_t *v_save_check(const json_t *a, struct qstill_error *err)
{
    (void)a;
    return done(qmp_save_devices_check(q, err));
}

static json_t *v_save(const json_t *a, struct qstill_error *err)
{
    return done(qmp_save_devices(q, num(a, 1), err));
}

/* --------------------------------------------------------- monitor and events
 */

static json_t *v_getfd(const json_t *a, struct qstill_error *err)
{
    return done(qmp_getfd(q, str(a, 1), (int)num(a, 2), err));
}

static json_t *v_closefd(const json_t *a, struct qstill_error *err)
{
    return done(qmp_closefd(q, str(a, 1), err));
}

static json_t *v_add_fd(const json_t *a, struct qstill_error *err)
{
    int64_t set;

    return qmp_add_fd(q, (int)num(a, 1), "probe", &set, err) < 0
               ? NULL
               : json_integer(set);
}

static json_t *v_add_fd_to(const json_t *a, struct qstill_error *err)
{
    return done(qmp_add_fd_to(q, num(a, 1), (int)num(a, 2), err));
}

static json_t *v_remove_fd(const json_t *a, struct qstill_error *err)
{
    return done(qmp_remove_fd(q, num(a, 1), err));
}

static json_t *v_qom_string(const json_t *a, struct qstill_error *err)
{
    CLEANUP(freep) char *text = NULL;

    return qmp_qom_get_string(q, str(a, 1), str(a, 2), &text, err) < 0
               ? NULL
               : s(text);
}

static json_t *v_qom_bool(const json_t *a, struct qstill_error *err)
{
    bool yes;

    return qmp_qom_get_bool(q, str(a, 1), str(a, 2), &yes, err) < 0
               ? NULL
               : json_boolean(yes);
}

static json_t *v_qom_set(const json_t *a, struct qstill_error *err)
{
    return done(qmp_qom_set_string(q, str(a, 1), str(a, 2), str(a, 3), err));
}

static json_t *v_event(const json_t *a, struct qstill_error *err)
{
    const char *names[LIST_MAX] = {NULL};
    struct qmp_event e;
    bool found;

    for (size_t i = 2; i < json_array_size(a) && i < LIST_MAX; i++)
        names[i - 2] = str(a, i);
    if (qmp_wait_event(q, names, (uint32_t)num(a, 1), &e, &found, err) < 0)
        return NULL;
    if (!found)
        return json_null();
    return json_pack("{s:s, s:s, s:s, s:s, s:I}", "name", e.name, "status",
                     e.status, "id", e.id, "error", e.error, "seconds",
                     (json_int_t)e.seconds);
}

static json_t *v_drop_events(const json_t *a, struct qstill_error *err)
{
    (void)a;
    return done(qmp_drop_events(q, err));
}

/* ------------------------------------------------------------------------ RAM
 */

static json_t *ram_json(const struct qmp_ram *ram)
{
    json_t *list = json_array();

    for (size_t i = 0; i < ram->count; i++) {
        const struct qmp_ram_block *b = &ram->blocks[i];

        json_array_append_new(
            list, json_pack("{s:s, s:o, s:o, s:o, s:o}", "name", b->name,
                            "page", n(b->page_size), "used", n(b->used),
                            "total", n(b->total), "hva", n(b->hva)));
    }
    return list;
}

/* ["ram", true]: look for the addresses that are missing */
static json_t *v_ram(const json_t *a, struct qstill_error *err)
{
    CLEANUP(qmp_ram_fini) struct qmp_ram ram = QMP_RAM_INIT;

    if (qmp_ram_read(q, &ram, err) < 0 ||
        (json_is_true(json_array_get(a, 1)) &&
         qmp_ram_find_addresses(q, &ram, err) < 0))
        return NULL;
    return ram_json(&ram);
}

/* All addresses by gpa2hva, whatever `info ramblock` says. */
static json_t *v_ram_by_map(const json_t *a, struct qstill_error *err)
{
    CLEANUP(qmp_ram_fini) struct qmp_ram ram = QMP_RAM_INIT;

    (void)a;
    if (qmp_ram_read(q, &ram, err) < 0)
        return NULL;
    for (size_t i = 0; i < ram.count; i++)
        ram.blocks[i].hva = 0;
    return qmp_ram_find_addresses(q, &ram, err) < 0 ? NULL : ram_json(&ram);
}

static json_t *v_map(const json_t *a, struct qstill_error *err)
{
    CLEANUP(qmp_ram_map_fini) struct qmp_ram_map map = QMP_RAM_MAP_INIT;
    json_t *list;

    (void)a;
    if (qmp_ram_map_read(q, &map, err) < 0)
        return NULL;
    list = json_array();
    for (size_t i = 0; i < map.count; i++)
        json_array_append_new(
            list, json_pack("{s:o, s:o, s:o, s:s, s:b}", "gpa",
                            n(map.ranges[i].gpa), "size", n(map.ranges[i].size),
                            "offset", n(map.ranges[i].offset), "region",
                            map.ranges[i].region, "rom", map.ranges[i].rom));
    return list;
}

static json_t *v_gpa2hva(const json_t *a, struct qstill_error *err)
{
    uint64_t hva;

    return qmp_gpa2hva(q, (uint64_t)num(a, 1), &hva, NULL, err) < 0 ? NULL
                                                                    : n(hva);
}

static json_t *v_memdevs(const json_t *a, struct qstill_error *err)
{
    CLEANUP(qmp_memdevs_fini) struct qmp_memdevs m = QMP_MEMDEVS_INIT;
    CLEANUP(qmp_ram_fini) struct qmp_ram ram = QMP_RAM_INIT;
    json_t *list;

    (void)a;
    if (qmp_ram_read(q, &ram, err) < 0 ||
        qmp_memdevs_read(q, &ram, &m, err) < 0)
        return NULL;
    list = json_array();
    for (size_t i = 0; i < m.count; i++)
        json_array_append_new(
            list, json_pack("{s:s, s:s, s:o, s:b, s:s, s:b, s:b}", "id",
                            m.items[i].id, "type", m.items[i].type, "size",
                            n(m.items[i].size), "share", m.items[i].share,
                            "mem_path", m.items[i].mem_path, "machine",
                            m.items[i].machine, "block", m.items[i].block));
    return list;
}

static json_t *v_roms(const json_t *a, struct qstill_error *err)
{
    CLEANUP(qmp_roms_fini) struct qmp_roms r = QMP_ROMS_INIT;
    json_t *list;

    (void)a;
    if (qmp_roms_read(q, &r, err) < 0)
        return NULL;
    list = json_array();
    for (size_t i = 0; i < r.count; i++)
        json_array_append_new(
            list,
            json_pack("{s:s, s:s, s:o, s:o, s:b, s:b}", "name", r.items[i].name,
                      "region", r.items[i].region, "addr", n(r.items[i].addr),
                      "size", n(r.items[i].size), "has_addr",
                      r.items[i].has_addr, "rom", r.items[i].rom));
    return list;
}

/* ---------------------------------------------------------------------- agent
 */

static json_t *v_ga_open(const json_t *a, struct qstill_error *err)
{
    struct qstill_qga_options o = QSTILL_QGA_OPTIONS_INIT;

    o.timeout_ms = (uint32_t)num(a, 2);
    qstill_qga_close(ga);
    ga = NULL;
    return done(qstill_qga_open(&ga, str(a, 1), &o, err));
}

static json_t *v_ga_ping(const json_t *a, struct qstill_error *err)
{
    (void)a;
    return done(qstill_qga_ping(ga, err));
}

static json_t *v_freeze(const json_t *a, struct qstill_error *err)
{
    uint32_t count;

    return qstill_qga_freeze(ga, (uint32_t)num(a, 1), &count, err) < 0
               ? NULL
               : n(count);
}

static json_t *v_thaw(const json_t *a, struct qstill_error *err)
{
    uint32_t count;

    return qstill_qga_thaw(ga, (uint32_t)num(a, 1), &count, err) < 0 ? NULL
                                                                     : n(count);
}

static json_t *v_frozen(const json_t *a, struct qstill_error *err)
{
    bool frozen;

    (void)a;
    return qstill_qga_is_frozen(ga, &frozen, err) < 0 ? NULL
                                                      : json_boolean(frozen);
}

/* ------------------------------------------------------------------------ main
 */

static const struct {
    const char *verb;
    json_t *(*call)(const json_t *args, struct qstill_error *err);
} verbs[] = {
    {"open", v_open},
    {"close", v_close},
    {"pid", v_pid},
    {"execute", v_execute},
    {"has", v_has},
    {"status", v_status},
    {"stop", v_stop},
    {"cont", v_cont},
    {"reset", v_reset},
    {"quit", v_quit},
    {"machine", v_machine},
    {"cpus", v_cpus},
    {"devices", v_devices},
    {"topology_before", v_topology_before},
    {"disks", v_disks},
    {"graph", v_graph},
    {"chain", v_chain},
    {"snapshot", v_snapshot},
    {"add", v_add},
    {"reopen", v_reopen},
    {"node_reopen", v_node_reopen},
    {"del", v_del},
    {"change_backing", v_change_backing},
    {"set_drive", v_set_drive},
    {"commit", v_commit},
    {"stream", v_stream},
    {"job", v_job},
    {"job_wait", v_job_wait},
    {"job_complete", v_job_complete},
    {"job_cancel", v_job_cancel},
    {"job_dismiss", v_job_dismiss},
    {"job_speed", v_job_speed},
    {"job_finish", v_job_finish},
    {"snapshot_load", v_snapshot_load},
    {"caps", v_caps},
    {"caps_on", v_caps_on},
    {"params", v_params},
    {"param", v_param},
    {"migrate", v_migrate},
    {"continue", v_continue},
    {"cancel", v_cancel},
    {"incoming", v_incoming},
    {"migration", v_migration},
    {"save_check", v_save_check},
    {"save", v_save},
    {"getfd", v_getfd},
    {"closefd", v_closefd},
    {"add_fd", v_add_fd},
    {"add_fd_to", v_add_fd_to},
    {"remove_fd", v_remove_fd},
    {"qom_string", v_qom_string},
    {"qom_bool", v_qom_bool},
    {"qom_set", v_qom_set},
    {"event", v_event},
    {"drop_events", v_drop_events},
    {"ram", v_ram},
    {"ram_by_map", v_ram_by_map},
    {"map", v_map},
    {"gpa2hva", v_gpa2hva},
    {"memdevs", v_memdevs},
    {"roms", v_roms},
    {"ga_open", v_ga_open},
    {"ga_ping", v_ga_ping},
    {"freeze", v_freeze},
    {"thaw", v_thaw},
    {"frozen", v_frozen},
};

static json_t *run(const json_t *args)
{
    struct qstill_error err = {0};
    json_t *ret = NULL;

    for (size_t i = 0; i < ARRAY_LEN(verbs); i++)
        if (str(args, 0) && strcmp(verbs[i].verb, str(args, 0)) == 0) {
            ret = verbs[i].call(args, &err);
            if (ret)
                return json_pack("{s:o}", "ok", ret);
            return json_pack("{s:{s:s, s:s, s:s}}", "error", "code",
                             qstill_code_name(err.code), "message", err.message,
                             "hint", err.hint);
        }
    fprintf(stderr, "qmp_calls: no verb '%s'\n", str(args, 0));
    exit(2);
}

int main(void)
{
    char *line = NULL;
    size_t size = 0;

    while (getline(&line, &size, stdin) > 0) {
        json_t *args = json_loads(line, 0, NULL);
        json_t *answer = run(args);

        json_dumpf(answer, stdout, JSON_COMPACT);
        putchar('\n');
        fflush(stdout);
        json_decref(answer);
        json_decref(args);
    }
    free(line);
    qstill_qmp_close(q);
    qstill_qga_close(ga);
    return 0;
}
