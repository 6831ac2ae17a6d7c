/* SPDX-License-Identifier: MIT */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "../lib/mem_tmpdir.h"
#include "../lib/qmp_peer.h"
#include "base/buf.h"
#include "base/error.h"
#include "qmp/channel.h"

static struct qstill_error err;

/* Runs a script against an opening that must fail. */
static void assert_open_fails(const char *script, int code, const char *message)
{
    struct qstill_qmp_options options = QSTILL_QMP_OPTIONS_INIT;
    struct qstill_qmp *q = NULL;
    struct qmp_peer *p;
    int fd;

    /* short only where silence is the matter: a loaded machine is slow */
    options.greeting_timeout_ms = code == QSTILL_E_BUSY ? 300 : 20000;
    p = qmp_peer_start(script, &fd);
    qmp_peer_error(&err, qstill_qmp_open_fd(&q, fd, "sock", &options, &err),
                   code, message);
    assert_null(q);
    qmp_peer_finish(p);
}

/* ---------------------------------------------------------------------- open
 */

static void no_greeting_means_another_client_holds_it(void **state)
{
    (void)state;
    assert_open_fails("IGNORE", QSTILL_E_BUSY,
                      "another client holds the QMP socket 'sock'");
    assert_non_null(strstr(err.hint, "one client per socket"));
}

static void half_a_greeting_is_no_greeting(void **state)
{
    (void)state;
    assert_open_fails("R {\"QMP\":\nIGNORE", QSTILL_E_BUSY,
                      "another client holds");
}

static void a_foreign_protocol_is_unreachable(void **state)
{
    (void)state;
    assert_open_fails("R SSH-2.0-OpenSSH_9\\r\\n\nIGNORE", QSTILL_E_UNREACHABLE,
                      "'sock' speaks no QMP: byte 0x53 where a JSON object");
    assert_open_fails("S {\"return\":{}}\nIGNORE", QSTILL_E_UNREACHABLE,
                      "'sock' speaks no QMP: its first words are no greeting");
    assert_open_fails("S {\"QMP\":1}\nIGNORE", QSTILL_E_UNREACHABLE,
                      "speaks no QMP");
}

static void a_peer_that_hangs_up_is_unreachable(void **state)
{
    (void)state;
    assert_open_fails("CLOSE", QSTILL_E_UNREACHABLE,
                      "'sock' has closed the connection");
    assert_open_fails("S {\"QMP\":{}}\nC {\"execute\":\"qmp_capabilities\"}\n"
                      "CLOSE",
                      QSTILL_E_UNREACHABLE, "'sock' has closed the connection");
}

static void refused_capabilities_fail_the_opening(void **state)
{
    (void)state;
    assert_open_fails("S {\"QMP\":{}}\nC {\"execute\":\"qmp_capabilities\"}\n"
                      "S {\"error\":{\"class\":\"GenericError\",\"desc\":"
                      "\"no way\"}}",
                      QSTILL_E_FAILED,
                      "QEMU refuses 'qmp_capabilities': no way");
}

static void open_at(const char *path, int code, const char *message)
{
    struct qstill_qmp_options options = QSTILL_QMP_OPTIONS_INIT;
    struct qstill_qmp *q = NULL;

    options.greeting_timeout_ms = 200;
    qmp_peer_error(&err, qstill_qmp_open(&q, path, &options, &err), code,
                   message);
}

static void sockets_that_are_none_are_unreachable(void **state)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    char dir[128], path[200];
    int dirfd = mem_tmpdir_make(dir), fd;

    (void)state;
    snprintf(path, sizeof(path), "%s/none", dir);
    open_at(path, QSTILL_E_UNREACHABLE, "there is no socket '");
    open_at("", QSTILL_E_USAGE, "path is empty");
    snprintf(path, sizeof(path), "%s/file", dir);
    close(openat(dirfd, "file", O_CREAT | O_WRONLY, 0600));
    open_at(path, QSTILL_E_UNREACHABLE, "nobody listens at '");
    snprintf(addr.sun_path, sizeof(addr.sun_path), "%.100s/dgram", dir);
    fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    open_at(addr.sun_path, QSTILL_E_UNREACHABLE, "is no stream socket");
    close(fd);
    mem_tmpdir_remove(dir, dirfd);
}

static void a_full_queue_of_clients_is_busy(void **state)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    char dir[128];
    int dirfd = mem_tmpdir_make(dir), fd, waiting;

    (void)state;
    snprintf(addr.sun_path, sizeof(addr.sun_path), "%.100s/s", dir);
    fd = socket(AF_UNIX, SOCK_STREAM, 0);
    waiting = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    assert_int_equal(listen(fd, 0), 0);
    assert_int_equal(connect(waiting, (struct sockaddr *)&addr, sizeof(addr)),
                     0);
    open_at(addr.sun_path, QSTILL_E_BUSY, "(others wait for it)");
    assert_non_null(strstr(err.hint, "one client per socket"));
    assert_false(channel_is_dead(addr.sun_path));
    close(fd);
    close(waiting);
    mem_tmpdir_remove(dir, dirfd);
}

static void a_path_longer_than_an_address_is_reached(void **state)
{
    char dir[128], deep[300], path[400], shortcut[128];
    int dirfd = mem_tmpdir_make(dir), deepfd;
    struct qstill_qmp *q = NULL;
    struct qmp_peer *p;

    (void)state;
    snprintf(deep, sizeof(deep), "%s/%0150d", dir, 7);
    assert_int_equal(mkdirat(dirfd, strrchr(deep, '/') + 1, 0700), 0);
    deepfd = open(deep, O_PATH | O_DIRECTORY);
    snprintf(shortcut, sizeof(shortcut), "/proc/self/fd/%d/s", deepfd);
    p = qmp_peer_listen(QMP_PEER_GREETING, shortcut);
    snprintf(path, sizeof(path), "%s/s", deep);
    assert_int_equal(qstill_qmp_open(&q, path, NULL, &err), 0);
    assert_string_equal(qstill_qmp_name(q), path);
    qmp_peer_close(p, q);
    assert_true(channel_is_dead(path));
    unlinkat(deepfd, "s", 0);
    assert_true(channel_is_dead(path));
    close(deepfd);
    unlinkat(dirfd, strrchr(deep, '/') + 1, AT_REMOVEDIR);
    assert_true(channel_is_dead(path));
    mem_tmpdir_remove(dir, dirfd);
}

/* ------------------------------------------------------------------ commands
 */

static void events_between_command_and_reply_are_kept(void **state)
{
    struct qstill_qmp *q;
    json_t *ret = NULL, *event = NULL;
    struct qmp_peer *p =
        qmp_peer_client("S {\"event\":\"RESUME\"}\n"
                        "C {\"execute\":\"query-status\"}\n"
                        "S {\"event\":\"STOP\"}\n"
                        "S {\"return\":{\"status\":\"paused\"}}\n"
                        "S {\"event\":\"RESET\"}",
                        &q);

    (void)state;
    assert_int_equal(qstill_qmp_execute(q, "query-status", NULL, 0, &ret, &err),
                     0);
    assert_string_equal(json_string_value(json_object_get(ret, "status")),
                        "paused");
    json_decref(ret);
    for (size_t i = 0; i < 3; i++) {
        static const char *const names[] = {"RESUME", "STOP", "RESET"};

        assert_int_equal(qstill_qmp_next_event(q, 0, &event, &err), 0);
        assert_string_equal(json_string_value(json_object_get(event, "event")),
                            names[i]);
        json_decref(event);
    }
    assert_int_equal(qstill_qmp_next_event(q, QSTILL_QMP_NO_WAIT, &event, &err),
                     0);
    assert_null(event);
    qmp_peer_close(p, q);
}

static void arguments_go_out_and_are_taken_over(void **state)
{
    json_t *args = json_pack("{s:s}", "path", "/machine");
    struct qstill_qmp *q;
    struct qmp_peer *p = qmp_peer_client(
        "C {\"execute\":\"qom-list\",\"arguments\":{\"path\":\"/machine\"}}\n"
        "S {\"return\":[]}",
        &q);

    (void)state;
    json_incref(args);
    assert_int_equal(qstill_qmp_execute(q, "qom-list", args, 0, NULL, &err), 0);
    assert_int_equal(args->refcount, 1);
    json_decref(args);
    qmp_peer_error(&err,
                   qstill_qmp_execute(q, "x", json_array(), 0, NULL, &err),
                   QSTILL_E_USAGE, "the arguments of 'x' are no JSON object");
    qmp_peer_close(p, q);
}

static void an_error_has_class_and_text(void **state)
{
    struct qstill_qmp *q;
    struct qmp_peer *p = qmp_peer_client(
        "C {\"execute\":\"migrate\"}\n"
        "S {\"error\":{\"class\":\"GenericError\",\"desc\":\"State\\nblocked"
        "\"}}\n"
        "C {\"execute\":\"bogus\"}\n"
        "S {\"error\":{\"class\":\"CommandNotFound\",\"desc\":\"The command "
        "bogus has not been found\"}}\n"
        "C {\"execute\":\"stop\"}\n"
        "S {\"return\":{}}",
        &q);

    (void)state;
    qmp_peer_error(&err, qstill_qmp_execute(q, "migrate", NULL, 0, NULL, &err),
                   QSTILL_E_FAILED, "QEMU refuses 'migrate': State blocked");
    assert_string_equal(qstill_qmp_error_class(q), "GenericError");
    assert_string_equal(qstill_qmp_error_text(q), "State blocked");
    qmp_peer_error(&err, qstill_qmp_execute(q, "bogus", NULL, 0, NULL, &err),
                   QSTILL_E_PRECONDITION, "QEMU refuses 'bogus': The command");
    assert_string_equal(qstill_qmp_error_class(q), "CommandNotFound");
    assert_int_equal(qstill_qmp_execute(q, "stop", NULL, 0, NULL, NULL), 0);
    assert_string_equal(qstill_qmp_error_class(q), "");
    qmp_peer_close(p, q);
}

static void a_late_reply_is_thrown_away(void **state)
{
    struct qstill_qmp *q;
    json_t *ret = NULL;
    struct qmp_peer *p = qmp_peer_client("C {\"execute\":\"stop\"}\n"
                                         "SLEEP 1000\n"
                                         "S {\"return\":\"late\"}\n"
                                         "C {\"execute\":\"query-name\"}\n"
                                         "S {\"return\":\"right\"}",
                                         &q);

    (void)state;
    qmp_peer_error(&err, qstill_qmp_execute(q, "stop", NULL, 50, NULL, &err),
                   QSTILL_E_UNREACHABLE,
                   "QEMU has not answered 'stop' within 50 ms");
    assert_non_null(strstr(err.hint, "may still take effect"));
    assert_int_equal(qstill_qmp_execute(q, "query-name", NULL, 0, &ret, &err),
                     0);
    assert_string_equal(json_string_value(ret), "right");
    json_decref(ret);
    qmp_peer_close(p, q);
}

static void replies_are_taken_in_any_order(void **state)
{
    struct qstill_qmp *q;
    uint64_t a, b;
    json_t *ret = NULL;
    struct qmp_peer *p =
        qmp_peer_client("C {\"execute\":\"a\"}\n"
                        "C {\"execute\":\"b\"}\n"
                        "R {\"id\":\"qstill-3\",\"return\":\"B\"}\n"
                        "R {\"id\":\"qstill-2\",\"return\":\"A\"}",
                        &q);

    (void)state;
    assert_int_equal(qstill_qmp_send(q, "a", NULL, &a, &err), 0);
    qmp_peer_error(&err,
                   qstill_qmp_receive(q, a, QSTILL_QMP_NO_WAIT, &ret, &err),
                   QSTILL_E_BUSY, "no answer to 'a' yet");
    assert_int_equal(qstill_qmp_send(q, "b", NULL, &b, &err), 0);
    assert_int_equal(qstill_qmp_receive(q, a, 0, &ret, &err), 0);
    assert_string_equal(json_string_value(ret), "A");
    json_decref(ret);
    assert_int_equal(qstill_qmp_receive(q, b, QSTILL_QMP_NO_WAIT, &ret, &err),
                     0);
    assert_string_equal(json_string_value(ret), "B");
    json_decref(ret);
    qmp_peer_error(&err, qstill_qmp_receive(q, b, 0, &ret, &err),
                   QSTILL_E_USAGE, "no command with number 3");
    qmp_peer_close(p, q);
}

static void no_more_commands_go_out_than_qemu_reads(void **state)
{
    struct qstill_qmp *q;
    struct qmp_peer *p = qmp_peer_client("IGNORE", &q);
    uint64_t n;

    (void)state;
    for (int i = 0; i < QSTILL_QMP_IN_FLIGHT_MAX; i++)
        assert_int_equal(qstill_qmp_send(q, "stop", NULL, &n, &err), 0);
    qmp_peer_error(&err, qstill_qmp_send(q, "cont", NULL, &n, &err),
                   QSTILL_E_BUSY,
                   "QEMU owes the replies to 8 commands, 'cont' must wait");
    qmp_peer_close(p, q);
}

static void fds_travel_with_their_command(void **state)
{
    char text[8] = "";
    struct qstill_qmp *q;
    int pipefd[2];
    struct qmp_peer *p = qmp_peer_client(
        "C {\"execute\":\"getfd\",\"arguments\":{\"fdname\":\"m\"}}\n"
        "FD hello\n"
        "S {\"return\":{}}",
        &q);

    (void)state;
    assert_int_equal(pipe2(pipefd, O_CLOEXEC), 0);
    assert_int_equal(qstill_qmp_execute_fd(q, "getfd",
                                           json_pack("{s:s}", "fdname", "m"),
                                           pipefd[1], 0, NULL, &err),
                     0);
    close(pipefd[1]);
    assert_int_equal(read(pipefd[0], text, sizeof(text)), 5);
    assert_string_equal(text, "hello");
    close(pipefd[0]);
    qmp_peer_error(
        &err,
        qstill_qmp_execute_fd(q, "getfd", json_object(), -1, 0, NULL, &err),
        QSTILL_E_USAGE, "'getfd' needs a file descriptor");
    qmp_peer_close(p, q);
}

/* ------------------------------------------------------------- broken peers */

/* The script goes on after the command "stop" has come. */
static void assert_dies(const char *script, const char *message)
{
    CLEANUP(buf_fini) struct buf whole = BUF_INIT;
    struct qstill_qmp *q;
    struct qmp_peer *p;

    assert_int_equal(buf_puts(&whole, "C {\"execute\":\"stop\"}\n"), 0);
    assert_int_equal(buf_puts(&whole, script), 0);
    p = qmp_peer_client((char *)whole.data, &q);
    qmp_peer_error(&err, qstill_qmp_execute(q, "stop", NULL, 0, NULL, &err),
                   QSTILL_E_UNREACHABLE, message);
    /* and stays dead, at once */
    qmp_peer_error(&err, qstill_qmp_execute(q, "cont", NULL, 0, NULL, &err),
                   QSTILL_E_UNREACHABLE, message);
    qmp_peer_error(&err, qstill_qmp_pump(q, &err), QSTILL_E_UNREACHABLE,
                   message);
    qmp_peer_close(p, q);
}

static void a_broken_protocol_ends_the_connection(void **state)
{
    (void)state;
    assert_dies("CLOSE", "'test' has closed the connection");
    assert_dies("R {\"return\":{},\"id\":\"qstill-9\"}",
                "'test' speaks no QMP: a reply with an id that no command has");
    assert_dies("R {\"return\":{},\"id\":2}", "a reply with an id that no");
    assert_dies("R {\"return\":{}}", "a reply with an id that no command has");
    assert_dies("R {\"hello\":1}", "an object that is neither reply nor event");
    assert_dies("R nonsense", "byte 0x6e where a JSON object should begin");
    assert_dies("R {\"return\":{},\"id\":\"qstill-1\"}",
                "a reply with an id that no command has");
}

static void a_reply_before_the_end_still_counts(void **state)
{
    struct qstill_qmp *q;
    struct qmp_peer *p = qmp_peer_client("C {\"execute\":\"quit\"}\n"
                                         "S {\"return\":{}}\n"
                                         "S {\"event\":\"SHUTDOWN\"}\n"
                                         "CLOSE",
                                         &q);
    json_t *event = NULL;

    (void)state;
    assert_int_equal(qstill_qmp_execute(q, "quit", NULL, 0, NULL, &err), 0);
    assert_int_equal(qstill_qmp_next_event(q, 0, &event, &err), 0);
    json_decref(event);
    qmp_peer_error(&err, qstill_qmp_next_event(q, 0, &event, &err),
                   QSTILL_E_UNREACHABLE, "has closed the connection");
    qmp_peer_close(p, q);
}

/* -------------------------------------------------------------------- events
 */

static void a_flood_of_events_drops_the_oldest(void **state)
{
    CLEANUP(buf_fini) struct buf script = BUF_INIT;
    struct qstill_qmp *q;
    struct qmp_peer *p;
    json_t *event = NULL;

    (void)state;
    for (int i = 0; i < QSTILL_QMP_EVENTS_MAX + 10; i++)
        assert_int_equal(
            buf_printf(&script, "S {\"event\":\"E\",\"data\":%d}\n", i), 0);
    assert_int_equal(
        buf_puts(&script, "C {\"execute\":\"stop\"}\nS {\"return\":{}}"), 0);
    p = qmp_peer_client((char *)script.data, &q);
    assert_int_equal(qstill_qmp_execute(q, "stop", NULL, 0, NULL, &err), 0);
    assert_int_equal(qstill_qmp_events_dropped(q), 10);
    assert_int_equal(qstill_qmp_next_event(q, QSTILL_QMP_NO_WAIT, &event, &err),
                     0);
    assert_int_equal(json_integer_value(json_object_get(event, "data")), 10);
    json_decref(event);
    qmp_peer_close(p, q);
}

static void a_peer_that_never_stops_cannot_keep_us(void **state)
{
    CLEANUP(buf_fini) struct buf script = BUF_INIT;
    struct qstill_qmp *q;
    struct qmp_peer *p;

    (void)state;
    assert_int_equal(buf_puts(&script, "C {\"execute\":\"stop\"}\n"), 0);
    for (int i = 0; i < 60000; i++)
        buf_puts(&script, "S {\"event\":\"E\"}\n");
    buf_puts(&script, "IGNORE");
    p = qmp_peer_client((char *)script.data, &q);
    qmp_peer_error(&err, qstill_qmp_execute(q, "stop", NULL, 1, NULL, &err),
                   QSTILL_E_UNREACHABLE, "QEMU has not answered 'stop'");
    while (qstill_qmp_events_dropped(q) + QSTILL_QMP_EVENTS_MAX < 60000)
        assert_int_equal(qstill_qmp_pump(q, &err), 0);
    qmp_peer_close(p, q);
}

static bool count_stops(void *user, const json_t *event)
{
    bool stop =
        strcmp(json_string_value(json_object_get(event, "event")), "STOP") == 0;

    *(int *)user += stop;
    return stop;
}

static void a_callback_sees_events_first(void **state)
{
    struct qstill_qmp *q;
    json_t *event = NULL;
    int stops = 0;
    struct qmp_peer *p = qmp_peer_client("S {\"event\":\"STOP\"}\n"
                                         "S {\"event\":\"RESUME\"}\n"
                                         "C {\"execute\":\"stop\"}\n"
                                         "S {\"return\":{}}",
                                         &q);

    (void)state;
    qstill_qmp_set_event_fn(q, count_stops, &stops);
    assert_int_equal(qstill_qmp_execute(q, "stop", NULL, 0, NULL, &err), 0);
    assert_int_equal(stops, 1);
    assert_int_equal(qstill_qmp_next_event(q, QSTILL_QMP_NO_WAIT, &event, &err),
                     0);
    assert_string_equal(json_string_value(json_object_get(event, "event")),
                        "RESUME");
    json_decref(event);
    qmp_peer_close(p, q);
}

/* ---------------------------------------------------------------------- peer
 */

static void the_peer_is_the_process_that_has_the_other_end(void **state)
{
    struct qstill_qmp *q;
    struct qmp_peer *p = qmp_peer_client("", &q);
    pid_t pid = 0;

    (void)state;
    assert_int_equal(qstill_qmp_peer_pid(q, &pid, &err), 0);
    assert_int_equal(pid, getpid());
    qmp_peer_close(p, q);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_greeting_means_another_client_holds_it),
        cmocka_unit_test(half_a_greeting_is_no_greeting),
        cmocka_unit_test(a_foreign_protocol_is_unreachable),
        cmocka_unit_test(a_peer_that_hangs_up_is_unreachable),
        cmocka_unit_test(refused_capabilities_fail_the_opening),
        cmocka_unit_test(sockets_that_are_none_are_unreachable),
        cmocka_unit_test(a_full_queue_of_clients_is_busy),
        cmocka_unit_test(a_path_longer_than_an_address_is_reached),
        cmocka_unit_test(events_between_command_and_reply_are_kept),
        cmocka_unit_test(arguments_go_out_and_are_taken_over),
        cmocka_unit_test(an_error_has_class_and_text),
        cmocka_unit_test(a_late_reply_is_thrown_away),
        cmocka_unit_test(replies_are_taken_in_any_order),
        cmocka_unit_test(no_more_commands_go_out_than_qemu_reads),
        cmocka_unit_test(fds_travel_with_their_command),
        cmocka_unit_test(a_broken_protocol_ends_the_connection),
        cmocka_unit_test(a_reply_before_the_end_still_counts),
        cmocka_unit_test(a_flood_of_events_drops_the_oldest),
        cmocka_unit_test(a_peer_that_never_stops_cannot_keep_us),
        cmocka_unit_test(a_callback_sees_events_first),
        cmocka_unit_test(the_peer_is_the_process_that_has_the_other_end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
