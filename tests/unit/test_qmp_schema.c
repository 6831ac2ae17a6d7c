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
#include "qmp/schema.h"

static struct qstill_error err;

static struct schema *parse(const char *text)
{
    struct schema *s = NULL;
    json_t *list = json_loads(text, 0, NULL);

    assert_non_null(list);
    assert_int_equal(schema_parse(list, &s, &err), 0);
    return s;
}

#define COMMAND(name, arg, ret)                                                \
    "{\"name\":\"" name "\",\"meta-type\":\"command\",\"arg-type\":\"" arg     \
    "\",\"ret-type\":\"" ret "\"}"
#define OBJECT(name, members)                                                  \
    "{\"name\":\"" name "\",\"meta-type\":\"object\",\"members\":[" members "]"
#define MEMBER(name, type) "{\"name\":\"" name "\",\"type\":\"" type "\"}"

static const char
    example[] =
        "[" COMMAND(
            "blockdev-add", "1",
            "0") ","
                 "{\"name\":\"STOP\",\"meta-type\":\"event\",\"arg-type\":"
                 "\"0\"},"
                 "{\"name\":\"str\",\"meta-type\":\"builtin\"}," OBJECT("0", "") "}," OBJECT(
                     "1",
                     MEMBER("driver", "2") "," MEMBER(
                         "list",
                         "[3]")) ",\"tag\":\"driver\",\"variants\":[{\"case\":"
                                 "\"file\",\"type\":"
                                 "\"4\"},{\"case\":\"qcow2\",\"type\":\"5\"}]},"
                                 "{\"name\":\"2\",\"meta-type\":\"enum\","
                                 "\"values\":[\"file\","
                                 "\"qcow2\"]},"
                                 "{\"name\":\"[3]\",\"meta-type\":\"array\","
                                 "\"element-type\":\"3\"}," OBJECT("3", MEMBER("kind", "2")) "}," OBJECT(
                                     "4",
                                     MEMBER(
                                         "filename",
                                         "str")) "}," OBJECT("5",
                                                             MEMBER(
                                                                 "backing",
                                                                 "6")) "},"
                                                                       "{\"name"
                                                                       "\":"
                                                                       "\"6\","
                                                                       "\"meta-"
                                                                       "type\":"
                                                                       "\"alter"
                                                                       "nate\","
                                                                       "\"membe"
                                                                       "rs\":[{"
                                                                       "\"type"
                                                                       "\":"
                                                                       "\"str\""
                                                                       "},{"
                                                                       "\"type"
                                                                       "\":"
                                                                       "\"1\"}]"
                                                                       "}"
                                                                       "," COMMAND(
                                                                           "que"
                                                                           "ry-"
                                                                           "x",
                                                                           "0",
                                                                           "[3"
                                                                           "]") "]";

static void commands_and_events_are_told_from_types(void **state)
{
    struct schema *s = parse(example);

    (void)state;
    assert_true(schema_has_command(s, "blockdev-add"));
    assert_false(schema_has_command(s, "STOP"));
    assert_false(schema_has_command(s, "1"));
    assert_false(schema_has_command(s, "nosuch"));
    assert_true(schema_has_event(s, "STOP"));
    assert_false(schema_has_event(s, "blockdev-add"));
    schema_free(s);
}

static void paths_pass_lists_unions_and_alternatives(void **state)
{
    struct schema *s = parse(example);

    (void)state;
    assert_true(schema_has_argument(s, "blockdev-add", "driver"));
    assert_true(schema_has_argument(s, "blockdev-add", "list.kind"));
    assert_true(schema_has_argument(s, "blockdev-add", "filename"));
    assert_true(schema_has_argument(s, "blockdev-add", "backing.filename"));
    assert_true(
        schema_has_argument(s, "blockdev-add", "backing.backing.list.kind"));
    assert_false(schema_has_argument(s, "blockdev-add", "driver.kind"));
    assert_false(schema_has_argument(s, "blockdev-add", "kind"));
    assert_false(schema_has_argument(s, "blockdev-add", "drive"));
    assert_false(schema_has_argument(s, "blockdev-add", "driver2"));
    assert_false(schema_has_argument(s, "blockdev-add", ""));
    assert_false(schema_has_argument(s, "nosuch", "driver"));
    assert_true(schema_has_member(s, "query-x", "kind"));
    assert_false(schema_has_argument(s, "query-x", "kind"));
    assert_true(schema_has_value(s, "blockdev-add", "driver", "qcow2"));
    assert_true(schema_has_value(s, "blockdev-add", "list.kind", "file"));
    assert_false(schema_has_value(s, "blockdev-add", "driver", "vdi"));
    assert_false(schema_has_value(s, "blockdev-add", "filename", "qcow2"));
    schema_free(s);
}

/* With deprecated-output=hide QEMU leaves the list "values" out. */
static void values_are_found_in_members_too(void **state)
{
    struct schema *s = parse("[" COMMAND("c", "1", "0") "," OBJECT(
        "1", MEMBER("on",
                    "2")) "},"
                          "{\"name\":\"2\",\"meta-type\":\"enum\",\"members\":["
                          "{\"name\":\"yes\"},{\"name\":\"no\",\"features\":["
                          "\"unstable\"]},7]}]");

    (void)state;
    assert_true(schema_has_value(s, "c", "on", "yes"));
    assert_true(schema_has_value(s, "c", "on", "no"));
    assert_false(schema_has_value(s, "c", "on", "maybe"));
    assert_false(schema_has_value(s, "c", "on", ""));
    schema_free(s);
}

static void types_in_circles_end(void **state)
{
    struct schema *s = parse("[" COMMAND(
        "c", "a",
        "a") ","
             "{\"name\":\"a\",\"meta-type\":\"alternate\",\"members\":["
             "{\"type\":\"a\"},{\"type\":\"b\"},{\"type\":\"a\"}]},"
             "{\"name\":\"b\",\"meta-type\":\"array\",\"element-type\":\"a\"}"
             "]");

    (void)state;
    assert_false(schema_has_argument(s, "c", "x"));
    assert_false(schema_has_value(s, "c", "x.y", "z"));
    schema_free(s);
}

static void what_is_no_schema_fails(void **state)
{
    static const char *const bad[] = {"{}", "[1]", "[{\"meta-type\":\"x\"}]",
                                      "[{\"name\":7}]"};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct schema *s = NULL;

        assert_int_equal(
            schema_parse(json_loads(bad[i], JSON_DECODE_ANY, NULL), &s, &err),
            QSTILL_E_FAILED);
        assert_null(s);
        assert_string_equal(err.message,
                            "QEMU's answer to query-qmp-schema is no schema");
    }
}

static void the_schema_is_asked_for_once(void **state)
{
    CLEANUP(buf_fini) struct buf script = BUF_INIT;
    struct qstill_qmp *q;
    struct qmp_peer *p;
    bool has = false;

    (void)state;
    buf_printf(&script,
               "C {\"execute\":\"query-qmp-schema\"}\nS {\"return\":%s}\n",
               example);
    p = qmp_peer_client((char *)script.data, &q);
    assert_int_equal(qstill_qmp_has_command(q, "query-x", &has, &err), 0);
    assert_true(has);
    assert_int_equal(qstill_qmp_has_event(q, "STOP", &has, NULL), 0);
    assert_true(has);
    assert_int_equal(
        qstill_qmp_has_argument(q, "blockdev-add", "nosuch", &has, &err), 0);
    assert_false(has);
    assert_int_equal(
        qstill_qmp_has_value(q, "blockdev-add", "driver", "file", &has, &err),
        0);
    assert_true(has);
    assert_int_equal(qstill_qmp_has_member(q, "query-x", "kind", &has, &err),
                     0);
    assert_true(has);
    qstill_qmp_close(q);
    qmp_peer_finish(p);
}

static void a_schema_that_fails_is_asked_for_again(void **state)
{
    struct qstill_qmp *q;
    bool has = false;
    struct qmp_peer *p = qmp_peer_client(
        "C {\"execute\":\"query-qmp-schema\"}\nS {\"return\":7}\n"
        "C {\"execute\":\"query-qmp-schema\"}\nS {\"return\":[]}",
        &q);

    (void)state;
    assert_int_equal(qstill_qmp_has_command(q, "stop", &has, &err),
                     QSTILL_E_FAILED);
    assert_string_equal(err.message,
                        "asking what this QEMU understands: QEMU's answer to "
                        "query-qmp-schema is no schema");
    assert_int_equal(qstill_qmp_has_command(q, "stop", &has, &err), 0);
    assert_false(has);
    qstill_qmp_close(q);
    qmp_peer_finish(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(commands_and_events_are_told_from_types),
        cmocka_unit_test(paths_pass_lists_unions_and_alternatives),
        cmocka_unit_test(values_are_found_in_members_too),
        cmocka_unit_test(types_in_circles_end),
        cmocka_unit_test(what_is_no_schema_fails),
        cmocka_unit_test(the_schema_is_asked_for_once),
        cmocka_unit_test(a_schema_that_fails_is_asked_for_again),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
