/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/launch_args.h"
#include "engine/launch_opts.h"

static void check_same(const char *text, const char *implied)
{
    struct qstill_error err = {0};
    struct opts o = {0};
    char *out = NULL;

    assert_int_equal(opts_parse(&o, text, implied, &err), 0);
    assert_int_equal(opts_emit(&o, &out, &err), 0);
    assert_string_equal(out, text);
    free(out);
    opts_fini(&o);
}

static void what_is_not_changed_is_written_as_it_was(void **state)
{
    (void)state;
    check_same("file=/a,,b,format=raw,if=none,readonly", NULL);
    check_same("qcow2,node-name=d0,file.filename=/x=y,cache.direct=on",
               "driver");
    check_same("", NULL);
    check_same("driver=raw,file=", "driver");
    check_same("tcp::1,server,nowait", "backend");
    check_same("{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":"
               "\"/x,y\"},\"size\":512,\"read-only\":false,\"backing\":null,"
               "\"list\":[1,{\"a\":\"b\"}],\"none\":{}}",
               "driver");
}

static void values_are_found_by_dotted_key_in_both_forms(void **state)
{
    static const char *const texts[] = {
        "raw,file.driver=file,file.filename=/a,,b,offset=512",
        "{\"driver\":\"raw\",\"file\":{\"driver\":\"file\","
        "\"filename\":\"/a,b\"},\"offset\":512}",
        "{'driver':'raw','file':{'driver':'file','filename':'/a,b'},"
        "'offset':512}",
    };
    struct qstill_error err = {0};
    size_t i;

    (void)state;
    for (i = 0; i < 3; i++) {
        struct opts o = {0};

        assert_int_equal(opts_parse(&o, texts[i], "driver", &err), 0);
        assert_string_equal(opts_get(&o, "driver"), "raw");
        assert_string_equal(opts_get(&o, "file.filename"), "/a,b");
        assert_string_equal(opts_get(&o, "offset"), "512");
        assert_null(opts_get(&o, "file"));
        assert_true(opts_has(&o, "file"));
        assert_false(opts_has(&o, "fil"));
        opts_del(&o, "file");
        assert_false(opts_has(&o, "file.driver"));
        opts_fini(&o);
    }
}

static void the_last_of_several_equal_keys_wins_and_is_changed(void **state)
{
    struct qstill_error err = {0};
    struct opts o = {0};
    char *out = NULL;

    (void)state;
    assert_int_equal(opts_parse(&o, "a=1,b=2,a=3", NULL, &err), 0);
    assert_string_equal(opts_get(&o, "a"), "3");
    assert_int_equal(opts_set(&o, "a", "4,5", &err), 0);
    assert_int_equal(opts_emit(&o, &out, &err), 0);
    assert_string_equal(out, "a=1,b=2,a=4,,5");
    free(out);
    opts_fini(&o);
}

static void an_implied_first_word_stays_first_when_changed(void **state)
{
    struct qstill_error err = {0};
    struct opts o = {0};
    char *out = NULL;

    (void)state;
    assert_int_equal(opts_parse(&o, "raw,file=f", "driver", &err), 0);
    assert_int_equal(opts_set(&o, "driver", "qcow2", &err), 0);
    assert_int_equal(opts_emit(&o, &out, &err), 0);
    assert_string_equal(out, "qcow2,file=f");
    free(out);
    opts_fini(&o);
}

static void json_values_keep_their_types(void **state)
{
    struct qstill_error err = {0};
    struct opts o = {0};
    char *out = NULL;

    (void)state;
    assert_int_equal(
        opts_parse(&o, "{'a':\"say \\\"x\\\" 'y'\",'b':'it\\'s \"q\"'}", NULL,
                   &err),
        0);
    assert_string_equal(opts_get(&o, "a"), "say \"x\" 'y'");
    assert_string_equal(opts_get(&o, "b"), "it's \"q\"");
    opts_del(&o, "a");
    opts_del(&o, "b");
    assert_int_equal(opts_set(&o, "s", "7", &err), 0);
    assert_int_equal(opts_set_size(&o, "n", 1ull << 40, &err), 0);
    assert_int_equal(opts_set_bool(&o, "deep.er", false, &err), 0);
    assert_int_equal(opts_emit(&o, &out, &err), 0);
    assert_string_equal(
        out, "{\"s\":\"7\",\"n\":1099511627776,\"deep\":{\"er\":false}}");
    free(out);
    opts_fini(&o);
}

static void bad_json_is_refused_with_what_it_was(void **state)
{
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"{\"a\":1", "an option is no valid JSON: {\"a\":1"},
        {"{\"a\":'x}", "an option is no valid JSON: {\"a\":'x}"},
        {"{\"a\":\"x\\", "an option is no valid JSON: {\"a\":\"x\\"},
        {"{\"a\":1,\"a\":2}", "an option is no valid JSON: {\"a\":1,\"a\":2}"},
        {"{} x", "an option is no valid JSON: {} x"},
        {"{\"a.b\":1}", "a JSON option has the member name \"a.b\""},
        {"{\"\":1}", "a JSON option has the member name \"\""},
    };
    size_t i;

    (void)state;
    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct qstill_error err = {0};
        struct opts o = {0};

        assert_int_equal(opts_parse(&o, cases[i].text, NULL, &err),
                         QSTILL_E_PRECONDITION);
        assert_string_equal(err.message, cases[i].says);
        assert_int_equal(o.count, 0);
    }
}

static void json_nested_too_deep_is_refused(void **state)
{
    struct qstill_error err = {0};
    struct opts o = {0};
    char text[256] = "";
    int i;

    (void)state;
    for (i = 0; i < 20; i++)
        strcat(text, "{\"a\":");
    strcat(text, "1");
    for (i = 0; i < 20; i++)
        strcat(text, "}");
    assert_int_equal(opts_parse(&o, text, NULL, &err), QSTILL_E_PRECONDITION);
    assert_string_equal(err.message,
                        "a JSON option is nested more than 16 deep");
}

static void a_command_line_is_cut_into_options(void **state)
{
    static const char *const argv[] = {
        "qemu",      "-S",       "disk.img", "--drive", "file=x",
        "-append",   "-S -s",    "-weird",   "arg",     "-odd",
        "-snapshot", "last.img", "-end",     NULL};
    static const struct {
        const char *opt, *value;
    } want[] = {
        {"S", NULL},         {"", "disk.img"}, {"drive", "file=x"},
        {"append", "-S -s"}, {"weird", "arg"}, {"odd", NULL},
        {"snapshot", NULL},  {"", "last.img"}, {"end", NULL},
    };
    struct qstill_error err = {0};
    struct launch_args args = {0};
    size_t i;

    (void)state;
    assert_int_equal(launch_args_parse(&args, (char *const *)argv, &err), 0);
    assert_int_equal(args.count, 9);
    for (i = 0; i < 9; i++) {
        assert_string_equal(args.v[i].opt, want[i].opt);
        if (want[i].value)
            assert_string_equal(args.v[i].value, want[i].value);
        else
            assert_null(args.v[i].value);
    }
    assert_null(args.v[1].word);
    assert_string_equal(args.v[2].word, "--drive");
    launch_args_fini(&args);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_not_changed_is_written_as_it_was),
        cmocka_unit_test(values_are_found_by_dotted_key_in_both_forms),
        cmocka_unit_test(the_last_of_several_equal_keys_wins_and_is_changed),
        cmocka_unit_test(an_implied_first_word_stays_first_when_changed),
        cmocka_unit_test(json_values_keep_their_types),
        cmocka_unit_test(bad_json_is_refused_with_what_it_was),
        cmocka_unit_test(json_nested_too_deep_is_refused),
        cmocka_unit_test(a_command_line_is_cut_into_options),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
