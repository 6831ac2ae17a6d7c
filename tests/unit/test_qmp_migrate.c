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
#include "base/buf.h"
#include "base/error.h"
#include "qmp/machine.h"
#include "qmp/migrate.h"
#include "qmp/monitor.h"

static struct qstill_error err;

static void assert_event(struct qstill_qmp *q, const char *name,
                         const char *status)
{
    static const char *const names[] = {"MIGRATION", "STOP", "RESUME", NULL};
    struct qmp_event e;
    bool found = false;

    assert_int_equal(qmp_wait_event(q, names, 5000, &e, &found, &err), 0);
    assert_true(found);
    assert_string_equal(e.name, name);
    assert_string_equal(e.status, status);
}

static void a_background_snapshot_of_qemu_7_2(void **state)
{
    const struct qmp_capability caps[] = {{"events", true},
                                          {"background-snapshot", true}};
    const struct qmp_parameter fast = {"max-bandwidth", INT64_C(1) << 40};
    CLEANUP(qmp_names_fini) struct qmp_names on = QMP_NAMES_INIT;
    CLEANUP(qmp_migration_fini) struct qmp_migration m = QMP_MIGRATION_INIT;
    struct qstill_qmp *q;
    struct qmp_peer *p = qmp_peer_replay("background-7.2.txt", &q);
    int64_t value = 0;
    int out[2];

    (void)state;
    assert_int_equal(pipe(out), 0);
    assert_int_equal(qmp_migrate_set_capabilities(q, caps, 2, &err), 0);
    assert_int_equal(qmp_migrate_capabilities_on(q, &on, &err), 0);
    assert_int_equal(on.count, 2);
    assert_string_equal(on.items[1], "background-snapshot");
    assert_int_equal(qmp_migrate_set_parameters(q, &fast, 1, &err), 0);
    assert_int_equal(
        qmp_migrate_get_parameter(q, "max-bandwidth", &value, &err), 0);
    assert_int_equal(value, INT64_C(1) << 40);
    assert_int_equal(qmp_getfd(q, "out", out[1], &err), 0);
    /* the VM has never run: QEMU would abort */
    qmp_peer_error(&err, qmp_migrate_start(q, "out", &err),
                   QSTILL_E_PRECONDITION,
                   "background snapshot of a VM that is 'prelaunch'");
    assert_int_equal(qmp_closefd(q, "out", &err), 0);
    assert_int_equal(qmp_cont(q, &err), 0);
    assert_int_equal(qmp_stop(q, 0, &err), 0);
    assert_int_equal(qmp_drop_events(q, &err), 0);
    assert_int_equal(qmp_getfd(q, "out", out[1], &err), 0);
    assert_int_equal(qmp_migrate_start(q, "out", &err), 0);
    assert_event(q, "MIGRATION", "setup");
    assert_event(q, "MIGRATION", "active");
    assert_event(q, "RESUME", "");
    assert_event(q, "MIGRATION", "completed");
    assert_int_equal(qmp_migration_read(q, &m, &err), 0);
    assert_int_equal(m.state, QMP_MIGRATION_COMPLETED);
    assert_string_equal(m.status, "completed");
    assert_string_equal(m.error, "");
    assert_int_equal(m.blocked.count, 0);
    assert_true(m.ram_total > 32 << 20 && m.ram_normal > 0 &&
                m.ram_duplicate > 0 && m.total_ms > 0);
    assert_false(m.vfio);
    qmp_peer_close(p, q);
    close(out[0]);
    close(out[1]);
}

static void a_blocked_vm_of_qemu_7_2(void **state)
{
    CLEANUP(qmp_migration_fini) struct qmp_migration m = QMP_MIGRATION_INIT;
    struct qstill_qmp *q;
    struct qmp_peer *p = qmp_peer_replay("blocked-7.2.txt", &q);

    (void)state;
    assert_int_equal(qmp_migration_read(q, &m, &err), 0);
    assert_int_equal(m.state, QMP_MIGRATION_NONE);
    assert_int_equal(m.blocked.count, 2);
    assert_non_null(strstr(m.blocked.items[0], "vdi format"));
    qmp_peer_error(
        &err, qmp_save_devices_check(q, &err), QSTILL_E_PRECONDITION,
        "the state of a device cannot be saved: non-migratable device:"
        " 0000:00:01.0/1/usb-serial");
    qmp_peer_close(p, q);
}

/* A schema with just enough in it. */
#define SCHEMA                                                                 \
    "A {\"execute\":\"query-commands\"}\n"                                     \
    "= {\"return\":[{\"name\":\"xen-save-devices-state\"}]}\n"                 \
    "A {\"execute\":\"query-qmp-schema\"}\n"                                   \
    "= {\"return\":[{\"name\":\"xen-save-devices-state\",\"meta-type\":"       \
    "\"command\",\"arg-type\":\"0\"},{\"name\":\"migrate-incoming\","          \
    "\"meta-type\":\"command\",\"arg-type\":\"1\"},{\"name\":\"1\","           \
    "\"meta-type\":\"object\",\"members\":[{\"name\":\"uri\",\"type\":"        \
    "\"str\"}%s]},{\"name\":\"migrate-set-capabilities\",\"meta-type\":"       \
    "\"command\",\"arg-type\":\"2\"},{\"name\":\"2\",\"meta-type\":"           \
    "\"object\",\"members\":[{\"name\":\"capabilities\",\"type\":\"[3]\"}]},"  \
    "{\"name\":\"[3]\",\"meta-type\":\"array\",\"element-type\":\"3\"},"       \
    "{\"name\":\"3\",\"meta-type\":\"object\",\"members\":[{\"name\":"         \
    "\"capability\",\"type\":\"4\"}]},{\"name\":\"4\",\"meta-type\":\"enum\"," \
    "\"values\":[\"events\"]},{\"name\":\"migrate-set-parameters\","           \
    "\"meta-type\":\"command\",\"arg-type\":\"5\"},{\"name\":\"5\","           \
    "\"meta-type\":\"object\",\"members\":[{\"name\":\"max-bandwidth\","       \
    "\"type\":\"int\"}]}]}\n"

static struct qmp_peer *with_schema(const char *members, const char *script,
                                    struct qstill_qmp **q)
{
    CLEANUP(buf_fini) struct buf whole = BUF_INIT;

    buf_printf(&whole, SCHEMA "%s", members, script);
    return qmp_peer_client((char *)whole.data, q);
}

static void what_this_qemu_lacks_is_told_before_anything_is_set(void **state)
{
    const struct qmp_capability caps[] = {{"events", true},
                                          {"mapped-ram", true}};
    const struct qmp_parameter params[] = {{"max-bandwidth", 1},
                                           {"direct-io", 1}};
    struct qstill_qmp *q;
    struct qmp_peer *p = with_schema("", "", &q);
    bool knows = true;

    (void)state;
    qmp_peer_error(&err, qmp_migrate_set_capabilities(q, caps, 2, &err),
                   QSTILL_E_PRECONDITION,
                   "this QEMU has no migration capability 'mapped-ram'");
    qmp_peer_error(&err, qmp_migrate_set_parameters(q, params, 2, &err),
                   QSTILL_E_PRECONDITION,
                   "this QEMU has no migration parameter 'direct-io'");
    assert_int_equal(
        qmp_migrate_knows_capability(q, "mapped-ram", &knows, &err), 0);
    assert_false(knows);
    qmp_peer_close(p, q);
}

static void incoming_stays_alive_where_qemu_can(void **state)
{
    struct qstill_qmp *q;
    struct qmp_peer *p =
        with_schema("",
                    "C {\"execute\":\"migrate-incoming\",\"arguments\":{"
                    "\"uri\":\"fd:in\"}}\nS {\"return\":{}}",
                    &q);

    (void)state;
    assert_int_equal(qmp_migrate_incoming(q, "in", &err), 0);
    qmp_peer_close(p, q);
    p = with_schema(",{\"name\":\"exit-on-error\",\"type\":\"bool\"}",
                    "C {\"execute\":\"migrate-incoming\",\"arguments\":{"
                    "\"uri\":\"fd:in\",\"exit-on-error\":false}}\n"
                    "S {\"return\":{}}",
                    &q);
    assert_int_equal(qmp_migrate_incoming(q, "in", &err), 0);
    qmp_peer_close(p, q);
}

static void device_state_is_saved_with_live_false(void **state)
{
    struct qstill_qmp *q;
    struct qmp_peer *p =
        with_schema("",
                    "C {\"execute\":\"query-migrate\"}\nS {\"return\":{}}\n"
                    "C {\"execute\":\"xen-save-devices-state\",\"arguments\":{"
                    "\"filename\":\"/dev/fdset/5\",\"live\":false}}\n"
                    "S {\"return\":{}}\n"
                    "C {\"execute\":\"query-migrate\"}\n"
                    "S {\"return\":{\"status\":\"postcopy-device\"}}",
                    &q);

    (void)state;
    assert_int_equal(qmp_save_devices(q, 5, &err), 0);
    qmp_peer_error(&err, qmp_save_devices(q, 5, &err), QSTILL_E_BUSY,
                   "a migration is under way ('postcopy-device')");
    qmp_peer_close(p, q);
}

static void words_of_the_state_are_sorted_unknown_ones_are_under_way(void **s)
{
    (void)s;
    assert_int_equal(qmp_migration_state_of("none"), QMP_MIGRATION_NONE);
    assert_int_equal(qmp_migration_state_of("setup"), QMP_MIGRATION_ACTIVE);
    assert_int_equal(qmp_migration_state_of("failing"), QMP_MIGRATION_ACTIVE);
    assert_int_equal(qmp_migration_state_of("device"), QMP_MIGRATION_ACTIVE);
    assert_int_equal(qmp_migration_state_of("pre-switchover"),
                     QMP_MIGRATION_PRE_SWITCHOVER);
    assert_int_equal(qmp_migration_state_of("completed"),
                     QMP_MIGRATION_COMPLETED);
    assert_int_equal(qmp_migration_state_of("failed"), QMP_MIGRATION_FAILED);
    assert_int_equal(qmp_migration_state_of("cancelled"),
                     QMP_MIGRATION_CANCELLED);
    assert_int_equal(qmp_migration_state_of("cancelling"),
                     QMP_MIGRATION_ACTIVE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_background_snapshot_of_qemu_7_2),
        cmocka_unit_test(a_blocked_vm_of_qemu_7_2),
        cmocka_unit_test(what_this_qemu_lacks_is_told_before_anything_is_set),
        cmocka_unit_test(incoming_stays_alive_where_qemu_can),
        cmocka_unit_test(device_state_is_saved_with_live_false),
        cmocka_unit_test(
            words_of_the_state_are_sorted_unknown_ones_are_under_way),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
