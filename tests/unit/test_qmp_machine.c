/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "../lib/qmp_peer.h"
#include "base/error.h"
#include "qmp/machine.h"
#include "qmp/monitor.h"

static struct qstill_error err;

static void assert_event(struct qstill_qmp *q, const char *name)
{
    static const char *const names[] = {"MIGRATION", "STOP", "RESUME", NULL};
    struct qmp_event e;
    bool found = false;

    assert_int_equal(qmp_wait_event(q, names, 5000, &e, &found, &err), 0);
    assert_true(found);
    assert_string_equal(e.name, name);
    assert_true(e.seconds > 0 && e.microseconds >= 0);
    assert_string_equal(e.status, "");
}

static void a_machine_of_qemu_7_2(void **state)
{
    CLEANUP(qmp_machine_fini) struct qmp_machine m = QMP_MACHINE_INIT;
    CLEANUP(qmp_cpus_fini) struct qmp_cpus c = QMP_CPUS_INIT;
    CLEANUP(qmp_devices_fini) struct qmp_devices d = QMP_DEVICES_INIT;
    struct qstill_qmp *q;
    struct qmp_peer *p = qmp_peer_replay("machine-7.2.txt", &q);
    struct qmp_status st;

    (void)state;
    assert_int_equal(qmp_machine_read(q, &m, &err), 0);
    assert_string_equal(m.version, "7.2.22");
    assert_non_null(strstr(m.package, "Debian"));
    assert_string_equal(m.name, "vm one");
    assert_string_equal(m.uuid, "11111111-2222-3333-4444-555555555555");
    assert_string_equal(m.type, "pc-i440fx-7.2");
    assert_false(m.kvm);

    assert_int_equal(qmp_cpus_read(q, &c, &err), 0);
    assert_int_equal(c.count, 1);
    assert_string_equal(c.type, "max-x86_64-cpu");
    assert_non_null(strstr(c.model_id, "QEMU TCG CPU"));
    assert_int_equal(c.invtsc, QMP_NO);
    assert_int_equal(c.migratable, QMP_NO);
    assert_int_equal(c.tsc_frequency, 0);

    assert_int_equal(qmp_devices_read(q, &d, &err), 0);
    assert_int_equal(d.count, 2);
    assert_string_equal(d.items[0].path, "/machine/peripheral/usb0");
    assert_string_equal(d.items[0].id, "usb0");
    assert_string_equal(d.items[0].type, "usb-ehci");
    assert_string_equal(d.items[1].id, "");
    assert_string_equal(d.items[1].type, "VGA");

    assert_int_equal(qmp_status_read(q, &st, &err), 0);
    assert_false(st.running);
    assert_string_equal(st.state, "prelaunch");
    assert_int_equal(qmp_cont(q, &err), 0);
    assert_int_equal(qmp_status_read(q, &st, &err), 0);
    assert_true(st.running);
    assert_int_equal(qmp_stop(q, 0, &err), 0);
    assert_event(q, "RESUME");
    assert_event(q, "STOP");
    assert_int_equal(qmp_quit(q, &err), 0);
    qmp_peer_close(p, q);
}

static void an_accelerator_of_qemu_11(void **state)
{
    static const char *const names[] = {"tcg", "kvm", "xen"};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        CLEANUP(qmp_machine_fini) struct qmp_machine m = QMP_MACHINE_INIT;
        char script[1024];
        struct qstill_qmp *q;
        struct qmp_peer *p;

        snprintf(script, sizeof(script),
                 "C {\"execute\":\"query-version\"}\n"
                 "S {\"return\":{\"qemu\":{\"major\":11}}}\n"
                 "C {\"execute\":\"query-name\"}\nS {\"return\":{}}\n"
                 "C {\"execute\":\"query-uuid\"}\nS {\"return\":{}}\n"
                 "C {\"execute\":\"qom-get\",\"arguments\":"
                 "{\"path\":\"/machine\",\"property\":\"type\"}}\n"
                 "S {\"return\":\"pc-q35-11.1-machine\"}\n"
                 "C {\"execute\":\"query-accelerators\"}\n"
                 "S {\"return\":{\"enabled\":\"%s\"}}\n",
                 names[i]);
        p = qmp_peer_client(script, &q);
        assert_int_equal(qmp_machine_read(q, &m, &err), 0);
        assert_string_equal(m.version, "11.0.0");
        assert_int_equal(m.kvm, strcmp(names[i], "kvm") == 0);
        qmp_peer_close(p, q);
    }
}

static void a_quit_without_an_answer_is_one(void **state)
{
    struct qstill_qmp *q;
    struct qmp_peer *p = qmp_peer_client("C {\"execute\":\"quit\"}\nCLOSE", &q);

    (void)state;
    assert_int_equal(qmp_quit(q, &err), 0);
    qmp_peer_close(p, q);
    p = qmp_peer_client("C {\"execute\":\"quit\"}\nS {\"error\":{\"class\":"
                        "\"GenericError\",\"desc\":\"no\"}}",
                        &q);
    qmp_peer_error(&err, qmp_quit(q, &err), QSTILL_E_FAILED,
                   "QEMU refuses 'quit': no");
    qmp_peer_close(p, q);
}

#define GET                                                                    \
    "C {\"execute\":\"qom-get\",\"arguments\":{\"path\":\"/m\",\"property\":"  \
    "\"p\"}}\n"
#define REFUSED                                                                \
    "S {\"error\":{\"class\":\"GenericError\",\"desc\":\"some text\"}}\n"
#define LIST                                                                   \
    "C {\"execute\":\"qom-list\",\"arguments\":{\"path\":\"/m\"}}\n"           \
    "S {\"return\":[{\"name\":\"type\",\"type\":\"string\"}"

static void a_missing_property_is_found_missing(void **state)
{
    char *text = NULL;
    uint64_t n;
    bool yes;
    struct qstill_qmp *q;
    struct qmp_peer *p = qmp_peer_client(
        GET REFUSED LIST
        "]}\n" /* not there */
        GET REFUSED LIST ",{\"name\":\"p\",\"type\":\"bool\"}]}\n" /* refused */
        GET
        "S {\"error\":{\"class\":\"DeviceNotFound\",\"desc\":\"none\"}}\n" GET
            REFUSED
        "C {\"execute\":\"qom-list\",\"arguments\":{\"path\":\"/m\"}}\n" REFUSED
            GET "S {\"return\":7}\n" GET "S {\"return\":-7}\n" GET
        "S {\"return\":\"true\"}",
        &q);

    (void)state;
    qmp_peer_error(&err, qmp_qom_get_bool(q, "/m", "p", &yes, &err),
                   QSTILL_E_NOT_FOUND, "QEMU refuses 'qom-get': some text");
    qmp_peer_error(&err, qmp_qom_get_bool(q, "/m", "p", &yes, &err),
                   QSTILL_E_FAILED, "some text");
    qmp_peer_error(&err, qmp_qom_get_bool(q, "/m", "p", &yes, &err),
                   QSTILL_E_NOT_FOUND, "none");
    qmp_peer_error(&err, qmp_qom_get_bool(q, "/m", "p", &yes, &err),
                   QSTILL_E_FAILED, "some text");
    qmp_peer_error(&err, qmp_qom_get_string(q, "/m", "p", &text, &err),
                   QSTILL_E_FAILED, "QEMU's /m.p is no string");
    qmp_peer_error(&err, qmp_qom_get_u64(q, "/m", "p", &n, &err),
                   QSTILL_E_FAILED, "QEMU's /m.p is no number");
    qmp_peer_error(&err, qmp_qom_get_bool(q, "/m", "p", &yes, &err),
                   QSTILL_E_FAILED, "QEMU's /m.p is no bool");
    assert_null(text);
    qmp_peer_close(p, q);
}

static void fds_are_given_and_taken_back(void **state)
{
    int64_t set = -1;
    struct qstill_qmp *q;
    int null[2];
    struct qmp_peer *p = qmp_peer_client(
        "C {\"execute\":\"add-fd\",\"arguments\":{\"opaque\":\"o\"}}\n"
        "FD x\n"
        "S {\"return\":{\"fdset-id\":3,\"fd\":20}}\n"
        "C {\"execute\":\"add-fd\",\"arguments\":{\"fdset-id\":3}}\n"
        "FD y\n"
        "S {\"return\":{\"fdset-id\":3,\"fd\":21}}\n"
        "C {\"execute\":\"remove-fd\",\"arguments\":{\"fdset-id\":3}}\n"
        "S {\"return\":{}}\n"
        "C {\"execute\":\"remove-fd\",\"arguments\":{\"fdset-id\":3}}\n" REFUSED
        "C {\"execute\":\"closefd\",\"arguments\":{\"fdname\":\"n\"}}\n" REFUSED
        "C {\"execute\":\"add-fd\",\"arguments\":{\"opaque\":\"o\"}}\n"
        "FD z\n"
        "S {\"return\":{}}",
        &q);

    (void)state;
    assert_int_equal(pipe(null), 0);
    assert_int_equal(qmp_add_fd(q, null[1], "o", &set, &err), 0);
    assert_int_equal(set, 3);
    assert_int_equal(qmp_add_fd_to(q, set, null[1], &err), 0);
    assert_int_equal(qmp_remove_fd(q, set, &err), 0);
    assert_int_equal(qmp_remove_fd(q, set, &err), 0);
    assert_int_equal(qmp_closefd(q, "n", &err), 0);
    qmp_peer_error(&err, qmp_add_fd(q, null[1], "o", &set, &err),
                   QSTILL_E_FAILED, "QEMU names no fd set");
    qmp_peer_close(p, q);
    close(null[0]);
    close(null[1]);
}

static void only_our_own_fds_are_taken_back(void **state)
{
    static const char *const ours[] = {"o", "p", NULL};
    size_t taken = 9;
    struct qstill_qmp *q;
    struct qmp_peer *p = qmp_peer_client(
        "C {\"execute\":\"query-fdsets\"}\n"
        "S {\"return\":[{\"fdset-id\":0,\"fds\":[{\"fd\":30},"
        "{\"fd\":31,\"opaque\":\"oo\"}]},{\"fdset-id\":4,\"fds\":["
        "{\"fd\":32,\"opaque\":\"p\"},{\"fd\":33,\"opaque\":\"x\"}]},"
        "{\"fdset-id\":5,\"fds\":[{\"fd\":34,\"opaque\":\"o\"}]}]}\n"
        "C {\"execute\":\"remove-fd\",\"arguments\":"
        "{\"fdset-id\":4,\"fd\":32}}\n"
        "S {\"return\":{}}\n"
        "C {\"execute\":\"remove-fd\",\"arguments\":"
        "{\"fdset-id\":5,\"fd\":34}}\n" REFUSED
        "C {\"execute\":\"query-fdsets\"}\n"
        "S {\"return\":[]}\n"
        "C {\"execute\":\"query-fdsets\"}\n" REFUSED,
        &q);

    (void)state;
    assert_int_equal(qmp_take_fds_back(q, ours, &taken, &err), 0);
    assert_int_equal(taken, 2);
    assert_int_equal(qmp_take_fds_back(q, ours, &taken, &err), 0);
    assert_int_equal(taken, 0);
    assert_int_equal(qmp_take_fds_back(q, ours, &taken, &err), QSTILL_E_FAILED);
    err_clear(&err);
    qmp_peer_close(p, q);
}

static void waiting_for_an_event_passes_over_others(void **state)
{
    static const char *const names[] = {"B", "C", NULL};
    static const char *const never[] = {"Z", NULL};
    struct qmp_event e;
    bool found;
    json_t *left = NULL;
    struct qstill_qmp *q;
    struct qmp_peer *p = qmp_peer_client(
        "S {\"event\":\"A\"}\n"
        "S {\"event\":\"C\",\"data\":{\"device\":\"d\",\"error\":\"bad\\tluck"
        "\"}}\n"
        "S {\"event\":\"B\",\"data\":{\"id\":\"j\",\"device\":\"d\","
        "\"status\":\"ready\"}}\n"
        "C {\"execute\":\"cont\"}\nS {\"return\":{}}",
        &q);

    (void)state;
    assert_int_equal(qmp_wait_event(q, names, 2000, &e, &found, &err), 0);
    assert_true(found);
    assert_string_equal(e.name, "C");
    assert_string_equal(e.id, "d");
    assert_string_equal(e.error, "bad luck");
    assert_int_equal(e.seconds, -1);
    assert_int_equal(qmp_cont(q, &err), 0);
    assert_int_equal(qmp_wait_event(q, names, 0, &e, &found, &err), 0);
    assert_true(found);
    assert_string_equal(e.id, "j");
    assert_string_equal(e.status, "ready");
    assert_int_equal(qmp_wait_event(q, never, 20, &e, &found, &err), 0);
    assert_false(found);
    assert_int_equal(qstill_qmp_next_event(q, QSTILL_QMP_NO_WAIT, &left, &err),
                     0);
    assert_string_equal(json_string_value(json_object_get(left, "event")), "A");
    json_decref(left);
    assert_int_equal(qmp_drop_events(q, &err), 0);
    qmp_peer_close(p, q);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_machine_of_qemu_7_2),
        cmocka_unit_test(an_accelerator_of_qemu_11),
        cmocka_unit_test(a_quit_without_an_answer_is_one),
        cmocka_unit_test(a_missing_property_is_found_missing),
        cmocka_unit_test(fds_are_given_and_taken_back),
        cmocka_unit_test(only_our_own_fds_are_taken_back),
        cmocka_unit_test(waiting_for_an_event_passes_over_others),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
