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
#include "qmp/job.h"

static struct qstill_error err;

static void a_commit_of_the_active_layer_is_replayed(void **state)
{
    struct qmp_commit c = {.job = "c", .device = "o2"};
    struct qstill_qmp *q;
    struct qmp_peer *p = qmp_peer_replay("jobs-7.2.txt", &q);
    struct qmp_job j;

    (void)state;
    /* the recording begins with two overlays and one that fails */
    for (int i = 0; i < 3; i++) {
        static const char *const data[][4] = {
            {"device", "d0", "o1.qcow2", "o1"},
            {"node-name", "o1", "o2.qcow2", "o2"},
            {"node-name", "o2", "none.qcow2", "o3"},
        };
        json_t *action = json_pack(
            "{s:[{s:s, s:{s:s, s:s, s:s, s:s, s:s}}]}", "actions", "type",
            "blockdev-snapshot-sync", "data", data[i][0], data[i][1],
            "snapshot-file", data[i][2], "snapshot-node-name", data[i][3],
            "format", "qcow2", "mode", "existing");

        assert_int_equal(
            qstill_qmp_execute(q, "transaction", action, 0, NULL, &err),
            i < 2 ? 0 : QSTILL_E_FAILED);
    }
    assert_non_null(strstr(err.message, "Could not open 'none.qcow2'"));
    assert_int_equal(qmp_block_commit(q, &c, &err), 0);
    assert_int_equal(qmp_job_wait(q, "c", QMP_JOB_READY, 5000, &j, &err), 0);
    assert_int_equal(j.state, QMP_JOB_READY);
    assert_string_equal(j.status, "ready");
    assert_string_equal(j.type, "commit");
    assert_int_equal(qmp_job_complete(q, "c", &err), 0);
    assert_int_equal(qmp_job_finish(q, "c", 5000, &err), 0);
    qmp_peer_error(&err, qmp_job_read(q, "c", &j, &err), QSTILL_E_NOT_FOUND,
                   "QEMU has no job 'c'");
    qmp_peer_close(p, q);
}

static void optional_arguments_are_left_out_or_sent(void **state)
{
    struct qmp_commit c = {.job = "j",
                           .device = "head",
                           .top_node = "t",
                           .base_node = "b",
                           .backing_file = "/d/b",
                           .speed = 5,
                           .held = true};
    struct qmp_stream s = {
        .job = "j", .device = "o2", .base_node = "b", .backing_file = "b"};
    struct qstill_qmp *q;
    struct qmp_peer *p = qmp_peer_client(
        "C {\"execute\":\"block-commit\",\"arguments\":{\"job-id\":\"j\","
        "\"device\":\"head\",\"top-node\":\"t\",\"base-node\":\"b\","
        "\"backing-file\":\"/d/b\",\"speed\":5,\"auto-dismiss\":false,"
        "\"auto-finalize\":false}}\n"
        "S {\"return\":{}}\n"
        "C {\"execute\":\"block-stream\",\"arguments\":{\"job-id\":\"j\","
        "\"device\":\"o2\",\"base-node\":\"b\",\"backing-file\":\"b\","
        "\"speed\":0,\"auto-dismiss\":false}}\n"
        "S {\"return\":{}}\n"
        "C {\"execute\":\"snapshot-load\",\"arguments\":{\"job-id\":\"l\","
        "\"tag\":\"s\",\"vmstate\":\"v\",\"devices\":[\"v\"]}}\n"
        "S {\"return\":{}}\n"
        "C {\"execute\":\"block-job-set-speed\",\"arguments\":{\"device\":"
        "\"j\",\"speed\":7}}\n"
        "S {\"return\":{}}",
        &q);

    (void)state;
    assert_int_equal(qmp_block_commit(q, &c, &err), 0);
    assert_int_equal(qmp_block_stream(q, &s, &err), 0);
    assert_int_equal(qmp_snapshot_load(q, "l", "s", "v", &err), 0);
    assert_int_equal(qmp_job_set_speed(q, "j", 7, &err), 0);
    qmp_peer_close(p, q);
}

#define ASK "C {\"execute\":\"query-jobs\"}\n"
#define JOB(status, more)                                                      \
    "S {\"return\":[{\"id\":\"other\",\"status\":\"ready\"},{\"id\":\"j\","    \
    "\"status\":\"" status "\",\"type\":\"stream\",\"current-progress\":3,"    \
    "\"total-progress\":9" more "}]}\n"
#define CHANGE(status)                                                         \
    "S "                                                                       \
    "{\"event\":\"JOB_STATUS_CHANGE\",\"data\":{\"id\":\"j\",\"status\":"      \
    "\"" status "\"}}\n"

static void a_failed_job_gives_its_own_error(void **state)
{
    struct qstill_qmp *q;
    struct qmp_peer *p = qmp_peer_client(
        ASK JOB("running", "") "S {\"event\":\"STOP\"}\n" CHANGE("aborting")
            ASK JOB("aborting", "") CHANGE("concluded")
                ASK JOB("concluded", ",\"error\":\"No space left\\non "
                                     "device\"") "C "
                                                 "{\"execute\":\"job-"
                                                 "dismiss\",\"arguments\":{"
                                                 "\"id\":\"j\"}}\n"
                                                 "S {\"return\":{}}",
        &q);
    json_t *event = NULL;

    (void)state;
    qmp_peer_error(&err, qmp_job_finish(q, "j", 5000, &err), QSTILL_E_NO_SPACE,
                   "QEMU's job 'j' failed: No space left on device");
    /* an event that is no job's is still there */
    assert_int_equal(qstill_qmp_next_event(q, QSTILL_QMP_NO_WAIT, &event, &err),
                     0);
    assert_string_equal(json_string_value(json_object_get(event, "event")),
                        "STOP");
    json_decref(event);
    qmp_peer_close(p, q);
}

static void a_lost_event_does_not_hang_the_wait(void **state)
{
    struct qstill_qmp *q;
    struct qmp_peer *p =
        qmp_peer_client(ASK JOB("running", "") ASK JOB("concluded", ""), &q);
    struct qmp_job j;

    (void)state;
    assert_int_equal(qmp_job_wait(q, "j", QMP_JOB_CONCLUDED, 5000, &j, &err),
                     0);
    assert_int_equal(j.done, 3);
    assert_int_equal(j.total, 9);
    qmp_peer_close(p, q);
}

static void a_job_that_takes_too_long_is_left(void **state)
{
    struct qstill_qmp *q;
    struct qmp_peer *p =
        qmp_peer_client(ASK JOB("running", "") ASK JOB("running", ""), &q);
    struct qmp_job j;

    (void)state;
    qmp_peer_error(&err, qmp_job_wait(q, "j", QMP_JOB_CONCLUDED, 50, &j, &err),
                   QSTILL_E_UNREACHABLE,
                   "QEMU's job 'j' is still 'running' after 50 ms");
    qmp_peer_close(p, q);
}

static void cancelling_and_dismissing_what_is_over_is_fine(void **state)
{
    static const char not_found[] =
        "S {\"error\":{\"class\":\"GenericError\",\"desc\":\"Job not "
        "found\"}}\n";
    CLEANUP(buf_fini) struct buf script = BUF_INIT;
    struct qstill_qmp *q;
    struct qmp_peer *p;

    (void)state;
    buf_printf(&script,
               "C {\"execute\":\"job-cancel\",\"arguments\":{\"id\":\"j\"}}\n"
               "%s" ASK "S {\"return\":[]}\n"
               "C {\"execute\":\"job-dismiss\",\"arguments\":{\"id\":\"j\"}}\n"
               "%s" ASK "S {\"return\":[]}\n"
               "C {\"execute\":\"job-dismiss\",\"arguments\":{\"id\":\"j\"}}\n"
               "S {\"error\":{\"class\":\"GenericError\",\"desc\":\"Job is "
               "running\"}}\n" ASK "%s",
               not_found, not_found, JOB("running", ""));
    p = qmp_peer_client((char *)script.data, &q);
    assert_int_equal(qmp_job_cancel(q, "j", &err), 0);
    assert_int_equal(qmp_job_dismiss(q, "j", &err), 0);
    qmp_peer_error(&err, qmp_job_dismiss(q, "j", &err), QSTILL_E_FAILED,
                   "QEMU refuses 'job-dismiss': Job is running");
    qmp_peer_close(p, q);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_commit_of_the_active_layer_is_replayed),
        cmocka_unit_test(optional_arguments_are_left_out_or_sent),
        cmocka_unit_test(a_failed_job_gives_its_own_error),
        cmocka_unit_test(a_lost_event_does_not_hang_the_wait),
        cmocka_unit_test(a_job_that_takes_too_long_is_left),
        cmocka_unit_test(cancelling_and_dismissing_what_is_over_is_fine),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
