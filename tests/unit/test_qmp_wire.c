/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "qmp/wire.h"

static struct qstill_error err;

static void feed(struct wire *w, const char *text)
{
    assert_int_equal(wire_feed(w, text, strlen(text), &err), 0);
}

/* The next object's text; "" when there is none yet. The caller frees. */
static char *next(struct wire *w)
{
    json_t *v = NULL;
    char *text;

    assert_int_equal(wire_next(w, &v, &err), 0);
    text = v ? json_dumps(v, JSON_COMPACT) : strdup("");
    json_decref(v);
    return text;
}

static void assert_next(struct wire *w, const char *want)
{
    char *got = next(w);

    assert_string_equal(got, want);
    free(got);
}

static void assert_corrupt(const char *text, const char *message)
{
    CLEANUP(wire_fini) struct wire w = WIRE_INIT;
    json_t *v = NULL;
    int rc;

    feed(&w, text);
    do
        rc = wire_next(&w, &v, &err);
    while (rc == 0 && v && (json_decref(v), v = NULL, true));
    assert_int_equal(rc, QSTILL_E_CORRUPT);
    assert_non_null(strstr(err.message, message));
}

static void objects_come_out_whole_in_order(void **state)
{
    CLEANUP(wire_fini) struct wire w = WIRE_INIT;

    (void)state;
    feed(&w, " {\"a\":1}\r\n{\"b\":[{},\"}\"]}{\"c\"");
    assert_next(&w, "{\"a\":1}");
    assert_next(&w, "{\"b\":[{},\"}\"]}");
    assert_next(&w, "");
    feed(&w, ":null}");
    assert_next(&w, "{\"c\":null}");
    assert_next(&w, "");
}

static void every_cut_gives_the_same_objects(void **state)
{
    const char *text = "{\"s\":\"a\\\"}{\\\\\",\"t\":[1,{\"u\":\"\\u00e9\"}]}\n"
                       "{\"event\":\"STOP\"}";

    (void)state;
    for (size_t cut = 0; cut <= strlen(text); cut++) {
        CLEANUP(wire_fini) struct wire w = WIRE_INIT;
        char *first, *second;

        assert_int_equal(wire_feed(&w, text, cut, &err), 0);
        first = next(&w);
        assert_int_equal(wire_feed(&w, text + cut, strlen(text) - cut, &err),
                         0);
        if (!*first) {
            free(first);
            first = next(&w);
        }
        second = next(&w);
        if (!*second) {
            free(second);
            second = next(&w);
        }
        assert_string_equal(first,
                            "{\"s\":\"a\\\"}{\\\\\",\"t\":[1,{\"u\":\"é\"}]}");
        assert_string_equal(second, "{\"event\":\"STOP\"}");
        free(first);
        free(second);
    }
}

static void many_small_objects_cost_no_more_than_their_bytes(void **state)
{
    CLEANUP(wire_fini) struct wire w = WIRE_INIT;

    (void)state;
    for (int i = 0; i < 100000; i++) {
        feed(&w, "{\"n\":1}\n");
        assert_next(&w, "{\"n\":1}");
    }
    assert_true(w.in.cap < 65536);
}

static void what_is_no_object_is_corrupt(void **state)
{
    (void)state;
    assert_corrupt("SSH-2.0-OpenSSH", "byte 0x53 where a JSON object should");
    assert_corrupt("[1]", "byte 0x5b");
    assert_corrupt("{}\n}", "byte 0x7d");
    assert_corrupt("{\"a\":1]", "bad JSON (error ");
    assert_corrupt("{\"a\":}", "bad JSON (error ");
    assert_corrupt("{\"a\":1,\"a\":2}", "bad JSON (error ");
    assert_corrupt("{\"a\":\"\xc3\x28\"}", "bad JSON (error ");
    assert_corrupt("{\"a\":\"\\u0000\"}", "bad JSON (error ");
}

static void a_number_beyond_64_bits_makes_reals(void **state)
{
    CLEANUP(wire_fini) struct wire w = WIRE_INIT;
    CLEANUP(json_decrefp) json_t *v = NULL;

    (void)state;
    feed(&w, "{\"big\":18446744073709551615,\"id\":\"x\"}");
    assert_int_equal(wire_next(&w, &v, &err), 0);
    assert_true(json_real_value(json_object_get(v, "big")) > 1.8e19);
    assert_string_equal(json_string_value(json_object_get(v, "id")), "x");
}

/* text = head, `count` times body, tail */
static char *repeat(const char *head, const char *body, size_t count,
                    const char *tail)
{
    CLEANUP(buf_fini) struct buf b = BUF_INIT;

    buf_puts(&b, head);
    for (size_t i = 0; i < count; i++)
        buf_puts(&b, body);
    buf_puts(&b, tail);
    return buf_take_string(&b);
}

static void nesting_is_bounded(void **state)
{
    CLEANUP(freep) char *deep = repeat("{\"a\":", "[", WIRE_DEPTH_MAX, "");
    CLEANUP(freep) char *open = repeat("{\"a\":", "[", WIRE_DEPTH_MAX - 1, "");
    CLEANUP(freep) char *fits = repeat(open, "]", WIRE_DEPTH_MAX - 1, "}");
    CLEANUP(wire_fini) struct wire w = WIRE_INIT;
    CLEANUP(json_decrefp) json_t *v = NULL;

    (void)state;
    assert_corrupt(deep, "nested more than 1000 deep");
    feed(&w, fits);
    assert_int_equal(wire_next(&w, &v, &err), 0);
    assert_non_null(v);
}

static void the_number_of_values_is_bounded(void **state)
{
    CLEANUP(freep) char *text = repeat("{\"a\":[0", ",0", WIRE_VALUES_MAX, "");

    (void)state;
    assert_corrupt(text, "more than 1048576 values");
}

static void the_size_is_bounded(void **state)
{
    CLEANUP(freep)
    char *text =
        repeat("{\"a\":\"", "0123456789abcdef", WIRE_MESSAGE_MAX / 16, "");

    (void)state;
    assert_corrupt(text, "more than 16777216 bytes");
}

static void skipping_begins_anew_behind_the_mark(void **state)
{
    CLEANUP(wire_fini) struct wire w = WIRE_INIT;
    json_t *v = NULL;

    (void)state;
    feed(&w, "{\"stale\":\"");
    assert_next(&w, "");
    assert_false(wire_skip_past(&w, 0xff));
    feed(&w, "rest\"}\n\xff{\"return\":1}\n");
    assert_true(wire_skip_past(&w, 0xff));
    assert_next(&w, "{\"return\":1}");
    feed(&w, "garbage\xff{\"return\":2}");
    assert_int_equal(wire_next(&w, &v, &err), QSTILL_E_CORRUPT);
    assert_true(wire_skip_past(&w, 0xff));
    assert_next(&w, "{\"return\":2}");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(objects_come_out_whole_in_order),
        cmocka_unit_test(every_cut_gives_the_same_objects),
        cmocka_unit_test(many_small_objects_cost_no_more_than_their_bytes),
        cmocka_unit_test(what_is_no_object_is_corrupt),
        cmocka_unit_test(a_number_beyond_64_bits_makes_reals),
        cmocka_unit_test(nesting_is_bounded),
        cmocka_unit_test(the_number_of_values_is_bounded),
        cmocka_unit_test(the_size_is_bounded),
        cmocka_unit_test(skipping_begins_anew_behind_the_mark),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
