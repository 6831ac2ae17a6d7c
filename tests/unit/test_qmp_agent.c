/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "../lib/qmp_peer.h"
#include "base/error.h"

#define TIMEOUT_MS 1000 /* a loaded machine is slow */

static struct qstill_error err;

/* An agent's half of a synchronization, and one after trash. */
#define ASK_SYNC                                                               \
    "C {\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":\"*\"}}\n"
#define SYNC          ASK_SYNC "R \\xff{\"return\": $SYNC}\\n\n"
#define ASK(command)  "C {\"execute\":\"" command "\"}\n"
#define ANSWER(value) "R {\"return\": " value "}\\n\n"

static struct qmp_peer *agent(const char *script, struct qstill_qga **a)
{
    struct qstill_qga_options options = QSTILL_QGA_OPTIONS_INIT;
    struct qmp_peer *p;
    int fd;

    options.timeout_ms = TIMEOUT_MS;
    p = qmp_peer_start(script, &fd);
    *a = NULL;
    if (qstill_qga_open_fd(a, fd, "ga", &options, &err) < 0)
        *a = NULL;
    return p;
}

static void finish(struct qmp_peer *p, struct qstill_qga *a)
{
    qstill_qga_close(a);
    qmp_peer_finish(p);
}

static void an_agent_answers(void **state)
{
    struct qstill_qga *a;
    json_t *ret = NULL;
    struct qmp_peer *p = agent(SYNC SYNC ASK("guest-ping") ANSWER("{}")
                                   SYNC ASK("guest-info") ANSWER("[7]"),
                               &a);

    (void)state;
    assert_non_null(a);
    assert_int_equal(qstill_qga_ping(a, &err), 0);
    assert_int_equal(qstill_qga_execute(a, "guest-info", NULL, 0, &ret, &err),
                     0);
    assert_int_equal(json_integer_value(json_array_get(ret, 0)), 7);
    json_decref(ret);
    finish(p, a);
}

static void stale_replies_are_discarded(void **state)
{
    struct qstill_qga *a;
    struct qmp_peer *p = agent(
        /* of earlier clients: a reply, half a reply, an old synchronization */
        "R {\"return\": 5}\\n{\"retu\n" ASK_SYNC
        "R {\"error\":{\"class\":\"GenericError\",\"desc\":\"junk\"}}\\n\n"
        "R \\xff{\"return\": 1}\\n\\xff\\xffno json\\n\n"
        "R \\xff{\"return\": $SYNC}\\n\n" SYNC ASK("guest-fsfreeze-status")
            ANSWER("\"thawed\""),
        &a);
    bool frozen = true;

    (void)state;
    assert_non_null(a);
    assert_int_equal(qstill_qga_is_frozen(a, &frozen, &err), 0);
    assert_false(frozen);
    finish(p, a);
}

static void an_answer_without_the_sentinel_is_none(void **state)
{
    struct qstill_qga *a;
    struct qmp_peer *p = agent(ASK_SYNC "R {\"return\": $SYNC}\\n\nIGNORE", &a);

    (void)state;
    assert_null(a);
    assert_int_equal(err.code, QSTILL_E_UNREACHABLE);
    finish(p, a);
}

static void silence_is_unreachable_with_a_hint(void **state)
{
    struct qstill_qga *a;
    struct qmp_peer *p = agent("IGNORE", &a);

    (void)state;
    assert_null(a);
    assert_int_equal(err.code, QSTILL_E_UNREACHABLE);
    assert_string_equal(err.message, "the guest agent behind 'ga' has not "
                                     "answered 'guest-sync-delimited' in time");
    assert_non_null(strstr(err.hint, "qemu-guest-agent must run in the guest"));
    finish(p, a);
    p = agent("CLOSE", &a);
    assert_null(a);
    assert_int_equal(err.code, QSTILL_E_UNREACHABLE);
    assert_string_equal(err.message, "'ga' has closed the connection");
    finish(p, a);
}

static void a_peer_that_sends_for_ever_cannot_keep_us(void **state)
{
    struct timespec begun, ended;
    struct qstill_qga *a;
    struct qmp_peer *p;

    (void)state;
    clock_gettime(CLOCK_MONOTONIC, &begun);
    p = agent("TRICKLE 250 xxxxxxxx\nIGNORE", &a);
    clock_gettime(CLOCK_MONOTONIC, &ended);
    assert_null(a);
    assert_int_equal(err.code, QSTILL_E_UNREACHABLE);
    assert_true((ended.tv_sec - begun.tv_sec) * 1000 +
                    (ended.tv_nsec - begun.tv_nsec) / 1000000 <
                TIMEOUT_MS + 700);
    finish(p, a);
}

static void a_late_answer_is_not_the_next_ones(void **state)
{
    struct qstill_qga *a;
    struct qmp_peer *p =
        agent(SYNC SYNC ASK("guest-fsfreeze-status") "SLEEP 1500\n" ANSWER(
                  "\"frozen\"") SYNC ASK("guest-fsfreeze-status")
                  ANSWER("\"thawed\""),
              &a);
    bool frozen = true;

    (void)state;
    assert_non_null(a);
    qmp_peer_error(&err, qstill_qga_is_frozen(a, &frozen, &err),
                   QSTILL_E_UNREACHABLE,
                   "has not answered 'guest-fsfreeze-status' in time");
    usleep(700 * 1000);
    assert_int_equal(qstill_qga_is_frozen(a, &frozen, &err), 0);
    assert_false(frozen);
    finish(p, a);
}

static void errors_of_the_agent_have_its_text(void **state)
{
    struct qstill_qga *a;
    struct qmp_peer *p = agent(
        SYNC SYNC ASK(
            "guest-shutdown") "R "
                              "{\"error\":{\"class\":\"GenericError\",\"desc\":"
                              "\"not\\\\n now\"}}"
                              "\\n\n" SYNC ASK(
                                  "guest-info") "R {\"hello\":1}\\n\n" SYNC
                                  ASK("guest-info") "R nonsense\\n\n",
        &a);

    (void)state;
    assert_non_null(a);
    qmp_peer_error(
        &err, qstill_qga_execute(a, "guest-shutdown", NULL, 0, NULL, &err),
        QSTILL_E_FAILED, "the guest agent refuses 'guest-shutdown': not  now");
    qmp_peer_error(
        &err, qstill_qga_execute(a, "guest-info", NULL, 0, NULL, &err),
        QSTILL_E_FAILED, "the guest agent's answer to 'guest-info' is none");
    qmp_peer_error(
        &err, qstill_qga_execute(a, "guest-info", NULL, 0, NULL, &err),
        QSTILL_E_FAILED,
        "reading the guest agent's answer to 'guest-info': byte 0x6e");
    qmp_peer_error(&err,
                   qstill_qga_execute(a, "x", json_array(), 0, NULL, &err),
                   QSTILL_E_USAGE, "the arguments of 'x' are no JSON object");
    finish(p, a);
}

/* ------------------------------------------------------------ freeze and thaw
 */

static void freeze_and_thaw_count(void **state)
{
    struct qstill_qga *a;
    uint32_t count = 0;
    struct qmp_peer *p =
        agent(SYNC SYNC ASK("guest-fsfreeze-freeze") ANSWER("3")
                  SYNC ASK("guest-fsfreeze-thaw") ANSWER("3")
                      SYNC ASK("guest-fsfreeze-status") ANSWER("\"thawed\""),
              &a);

    (void)state;
    assert_non_null(a);
    assert_int_equal(qstill_qga_freeze(a, 0, &count, &err), 0);
    assert_int_equal(count, 3);
    count = 0;
    assert_int_equal(qstill_qga_thaw(a, 0, &count, &err), 0);
    assert_int_equal(count, 3);
    finish(p, a);
}

static void a_freeze_that_hangs_is_followed_by_a_thaw(void **state)
{
    struct qstill_qga *a;
    struct qmp_peer *p = agent(
        SYNC SYNC ASK("guest-fsfreeze-freeze") ASK("guest-fsfreeze-thaw"), &a);

    (void)state;
    assert_non_null(a);
    qmp_peer_error(&err, qstill_qga_freeze(a, 200, NULL, &err),
                   QSTILL_E_UNREACHABLE,
                   "has not answered 'guest-fsfreeze-freeze' in time");
    finish(p, a);
}

static void a_freeze_that_fails_or_lies_is_followed_by_a_thaw(void **state)
{
    static const char *const answers[] = {
        "R {\"error\":{\"class\":\"GenericError\",\"desc\":\"busy\"}}\\n\n",
        ANSWER("-1"), ANSWER("\"three\""), ANSWER("4294967296")};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(answers); i++) {
        char script[1024];
        struct qstill_qga *a;
        struct qmp_peer *p;
        uint32_t count = 77;

        snprintf(script, sizeof(script), "%s%s%s",
                 SYNC SYNC ASK("guest-fsfreeze-freeze"), answers[i],
                 ASK("guest-fsfreeze-thaw"));
        p = agent(script, &a);
        assert_non_null(a);
        qmp_peer_error(&err, qstill_qga_freeze(a, 0, &count, &err),
                       QSTILL_E_FAILED,
                       i == 0 ? "refuses 'guest-fsfreeze-freeze': busy"
                              : "is no number of filesystems");
        assert_int_equal(count, 77);
        finish(p, a);
    }
}

static void a_freeze_that_the_agent_has_not_run_needs_no_thaw(void **state)
{
    struct qstill_qga *a;
    struct qmp_peer *p = agent(
        SYNC SYNC ASK(
            "guest-fsfreeze-freeze") "R "
                                     "{\"error\":{\"class\":"
                                     "\"CommandNotFound\",\"desc\":\"the agent "
                                     "is in frozen state\"}}\\n\n" SYNC ASK(
                                         "guest-fsfreeze-status")
                                         ANSWER("\"frozen\""),
        &a);
    bool frozen = false;

    (void)state;
    assert_non_null(a);
    qmp_peer_error(&err, qstill_qga_freeze(a, 0, NULL, &err),
                   QSTILL_E_PRECONDITION,
                   "refuses 'guest-fsfreeze-freeze': the agent is in frozen");
    assert_int_equal(qstill_qga_is_frozen(a, &frozen, &err), 0);
    assert_true(frozen);
    finish(p, a);
}

static void a_freeze_that_was_never_sent_needs_no_thaw(void **state)
{
    struct qstill_qga *a;
    struct qmp_peer *p = agent(SYNC ASK_SYNC "SLEEP 1800", &a);

    (void)state;
    assert_non_null(a);
    qmp_peer_error(&err, qstill_qga_freeze(a, 0, NULL, &err),
                   QSTILL_E_UNREACHABLE,
                   "has not answered 'guest-sync-delimited' in time");
    finish(p, a); /* the script would fail on any other command */
}

static void an_agent_that_dies_in_the_freeze_is_unreachable(void **state)
{
    struct qstill_qga *a;
    struct qmp_peer *p =
        agent(SYNC SYNC ASK("guest-fsfreeze-freeze") "CLOSE", &a);

    (void)state;
    assert_non_null(a);
    qmp_peer_error(&err, qstill_qga_freeze(a, 0, NULL, &err),
                   QSTILL_E_UNREACHABLE, "'ga' has closed the connection");
    qmp_peer_error(&err, qstill_qga_thaw(a, 0, NULL, &err),
                   QSTILL_E_UNREACHABLE, "'ga' has closed the connection");
    finish(p, a);
}

static void a_thaw_that_cannot_synchronize_is_sent_all_the_same(void **state)
{
    struct qstill_qga *a;
    struct qmp_peer *p = agent(SYNC ASK_SYNC ASK("guest-fsfreeze-thaw"), &a);

    (void)state;
    assert_non_null(a);
    qmp_peer_error(&err, qstill_qga_thaw(a, 0, NULL, &err),
                   QSTILL_E_UNREACHABLE,
                   "has not answered 'guest-sync-delimited' in time");
    finish(p, a);
}

static void
one_opened_for_a_thaw_is_sent_it_though_it_does_not_answer(void **state)
{
    struct qstill_qga_options o = QSTILL_QGA_OPTIONS_INIT;
    struct qstill_qga *a = NULL;
    struct qmp_peer *p;
    int fd;

    (void)state;
    o.timeout_ms = 200;
    o.thaw = true;
    p = qmp_peer_start(ASK_SYNC ASK("guest-fsfreeze-thaw"), &fd);
    qmp_peer_error(&err, qstill_qga_open_fd(&a, fd, "ga", &o, &err),
                   QSTILL_E_UNREACHABLE,
                   "has not answered 'guest-sync-delimited' in time");
    assert_null(a);
    finish(p, a);
}

static void a_thaw_that_leaves_the_guest_frozen_fails(void **state)
{
    struct qstill_qga *a;
    struct qmp_peer *p =
        agent(SYNC SYNC ASK("guest-fsfreeze-thaw") ANSWER("0")
                  SYNC ASK("guest-fsfreeze-status") ANSWER("\"frozen\"")
                      SYNC ASK("guest-fsfreeze-status") ANSWER("\"melting\""),
              &a);
    bool frozen;

    (void)state;
    assert_non_null(a);
    qmp_peer_error(&err, qstill_qga_thaw(a, 0, NULL, &err), QSTILL_E_FAILED,
                   "the guest agent says thawed 0, but still frozen");
    qmp_peer_error(&err, qstill_qga_is_frozen(a, &frozen, &err),
                   QSTILL_E_FAILED,
                   "freeze status is neither 'frozen' nor 'thawed'");
    finish(p, a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_agent_answers),
        cmocka_unit_test(stale_replies_are_discarded),
        cmocka_unit_test(an_answer_without_the_sentinel_is_none),
        cmocka_unit_test(silence_is_unreachable_with_a_hint),
        cmocka_unit_test(a_peer_that_sends_for_ever_cannot_keep_us),
        cmocka_unit_test(a_late_answer_is_not_the_next_ones),
        cmocka_unit_test(errors_of_the_agent_have_its_text),
        cmocka_unit_test(freeze_and_thaw_count),
        cmocka_unit_test(a_freeze_that_hangs_is_followed_by_a_thaw),
        cmocka_unit_test(a_freeze_that_fails_or_lies_is_followed_by_a_thaw),
        cmocka_unit_test(a_freeze_that_the_agent_has_not_run_needs_no_thaw),
        cmocka_unit_test(a_freeze_that_was_never_sent_needs_no_thaw),
        cmocka_unit_test(an_agent_that_dies_in_the_freeze_is_unreachable),
        cmocka_unit_test(a_thaw_that_cannot_synchronize_is_sent_all_the_same),
        cmocka_unit_test(
            one_opened_for_a_thaw_is_sent_it_though_it_does_not_answer),
        cmocka_unit_test(a_thaw_that_leaves_the_guest_frozen_fails),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
