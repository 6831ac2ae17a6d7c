/* SPDX-License-Identifier: MIT */
/* The parser of our JSON files; fuzz_json compares it with jansson. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/json_parse.h"

static struct arena arena;
static struct qstill_error err;
static char text[1 << 16];

static int teardown(void **state)
{
    (void)state;
    arena_fini(&arena);
    return 0;
}

static const struct json_value *parse(const char *s)
{
    const struct json_value *v = NULL;

    arena_fini(&arena);
    memset(&err, 0, sizeof(err));
    assert_true(strlen(s) < sizeof(text));
    memcpy(text, s, strlen(s) + 1);
    return json_parse(text, strlen(s), &arena, &v, &err) == 0 ? v : NULL;
}

static void refused(const char *s, const char *message)
{
    assert_null(parse(s));
    assert_int_equal(err.code, QSTILL_E_CORRUPT);
    assert_string_equal(err.message, message);
}

static void values_of_each_kind_are_read(void **state)
{
    const struct json_value *v =
        parse("{\"s\": \"a\\u00e9\\n\\ud83d\\ude00\", \"i\": -7,\n"
              "\"r\": 2.5e1, \"t\": true, \"n\": null, \"a\": [1, [], {}]}");
    const struct json_value *a;

    (void)state;
    assert_non_null(v);
    assert_int_equal(v->kind, JSON_OBJECT_VALUE);
    assert_int_equal(v->items.count, 6);
    assert_string_equal(json_member(v, "s")->string,
                        "a\xc3\xa9\n\xf0\x9f\x98\x80");
    assert_int_equal(json_member(v, "i")->integer, -7);
    assert_true(json_member(v, "r")->real > 24.9 &&
                json_member(v, "r")->real < 25.1);
    assert_true(json_member(v, "t")->boolean);
    assert_int_equal(json_member(v, "n")->kind, JSON_NULL_VALUE);
    a = json_member(v, "a");
    assert_int_equal(a->items.count, 3);
    assert_int_equal(a->items.first->integer, 1);
    assert_int_equal(a->items.first->next->kind, JSON_ARRAY_VALUE);
    assert_null(a->items.first->next->next->next);
    assert_null(json_member(v, "x"));
    assert_null(json_member(a, "s"));
}

static void the_ends_of_the_integers_are_whole(void **state)
{
    (void)state;
    assert_true(parse("9223372036854775807")->integer == INT64_MAX);
    assert_true(parse("-9223372036854775808")->integer == INT64_MIN);
    refused("9223372036854775808", "line 1: a number that is too big");
    refused("-9223372036854775809", "line 1: a number that is too big");
    refused("[\n1e400]", "line 2: a number that is too big");
}

static void what_is_wrong_is_said_with_its_line(void **state)
{
    (void)state;
    refused("", "line 1: an end too early");
    refused("{\n\"a\": 1\n\"b\"", "line 3: no comma or brace");
    refused("[1,]", "line 1: no value");
    refused("{\"a\":1,}", "line 1: no member's name");
    refused("{\"a\" 1}", "line 1: no colon");
    refused("{\"a\":1,\n\n\"a\":2}", "line 3: a member twice");
    refused("[] x", "line 1: more behind the value");
    refused("[tru]", "line 1: no value");
    refused("\"abc", "line 1: a string without an end");
    refused("\"\x01\"", "line 1: a control character in a string");
    refused("\"\\u0000\"", "line 1: a NUL in a string");
    refused("\"\\ud800x\"", "line 1: invalid Unicode");
    refused("\"\\q\"", "line 1: invalid escape");
    refused("\"\xc0\x80\"", "line 1: a string that is not UTF-8");
    refused("\"\xe2\x82", "line 1: a string that is not UTF-8");
}

static void the_limits_hold(void **state)
{
    char s[JSON_MEMBERS_MAX * 16 + 64];
    size_t n = 0;

    (void)state;
    memset(s, '[', JSON_DEPTH_MAX + 1);
    s[JSON_DEPTH_MAX + 1] = '\0';
    refused(s, "line 1: nested too deeply");
    memset(s, '[', JSON_DEPTH_MAX);
    memset(s + JSON_DEPTH_MAX, ']', JSON_DEPTH_MAX);
    s[2 * JSON_DEPTH_MAX] = '\0';
    assert_non_null(parse(s));
    n = (size_t)sprintf(s, "{\"m\":0");
    for (int i = 1; i < JSON_MEMBERS_MAX; i++)
        n += (size_t)sprintf(s + n, ",\"m%d\":0", i);
    sprintf(s + n, "}");
    assert_int_equal(parse(s)->items.count, JSON_MEMBERS_MAX);
    sprintf(s + n, ",\"last\":0}");
    refused(s, "line 1: an object of too many members");
}

static void an_arena_gives_memory_that_is_aligned_and_zeroed(void **state)
{
    static const size_t sizes[] = {0,    1,    7,    16,   17,     999,
                                   1000, 3999, 4000, 5000, 1 << 20};
    uint8_t *all[4 * ARRAY_LEN(sizes)];

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(all); i++) {
        size_t n = sizes[i % ARRAY_LEN(sizes)];

        all[i] = arena_alloc(&arena, n);
        assert_non_null(all[i]);
        assert_int_equal((uintptr_t)all[i] % _Alignof(max_align_t), 0);
        for (size_t k = 0; k < n; k++)
            assert_int_equal(all[i][k], 0);
        memset(all[i], (int)i + 1, n);
    }
    for (size_t i = 0; i < ARRAY_LEN(all); i++)
        for (size_t k = 0; k < sizes[i % ARRAY_LEN(sizes)]; k++)
            assert_int_equal(all[i][k], (int)i + 1);
    assert_null(arena_alloc(&arena, SIZE_MAX));
    assert_null(arena_alloc(&arena, SIZE_MAX - 64));
    assert_null(arena_array(&arena, SIZE_MAX / 2, 3));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(values_of_each_kind_are_read, teardown),
        cmocka_unit_test_teardown(the_ends_of_the_integers_are_whole, teardown),
        cmocka_unit_test_teardown(what_is_wrong_is_said_with_its_line,
                                  teardown),
        cmocka_unit_test_teardown(the_limits_hold, teardown),
        cmocka_unit_test_teardown(
            an_arena_gives_memory_that_is_aligned_and_zeroed, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
