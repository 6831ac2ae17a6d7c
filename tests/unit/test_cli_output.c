/* SPDX-License-Identifier: MIT */
/* What the command prints: JSON, safe text, sizes, tables. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/output.h"
#include "cli/text.h"

struct sink {
    FILE *f;
    char *text;
    size_t size;
};

static void sink_open(struct sink *s)
{
    s->f = open_memstream(&s->text, &s->size);
    assert_non_null(s->f);
}

static void sink_expect(struct sink *s, const char *text)
{
    assert_int_equal(fclose(s->f), 0);
    assert_string_equal(s->text, text);
    free(s->text);
}

static void json_nests_and_separates(void **state)
{
    struct sink s;

    (void)state;
    sink_open(&s);
    struct out o = OUT_INIT(s.f);
    out_object(&o, NULL);
    out_text(&o, "a", "x");
    out_text(&o, "none", NULL);
    out_array(&o, "list");
    out_object(&o, NULL);
    out_end(&o);
    out_object(&o, NULL);
    out_uint(&o, "n", UINT64_MAX);
    out_int(&o, "i", -1);
    out_end(&o);
    out_end(&o);
    out_bool(&o, "yes", true);
    out_end(&o);
    sink_expect(&s, "{\"a\": \"x\", \"none\": null, \"list\": [{},\n"
                    "{\"n\": 18446744073709551615, \"i\": -1}], "
                    "\"yes\": true}\n");
}

static void json_text_is_utf8_whatever_a_name_holds(void **state)
{
    struct sink s;

    (void)state;
    sink_open(&s);
    struct out o = OUT_INIT(s.f);
    out_array(&o, NULL);
    out_text(&o, NULL, "q\" b\\ n\n t\t e\x1b d\x7f");
    out_text(&o, NULL, "\xc3\xa9 \xff \xc0\xaf \xed\xa0\x80");
    out_text_n(&o, NULL, "\xe2\x82\xac", 2); /* cut in the middle */
    out_end(&o);
    sink_expect(&s, "[\"q\\\" b\\\\ n\\n t\\u0009 e\\u001b d\\u007f\", "
                    "\"\xc3\xa9 \xef\xbf\xbd \xef\xbf\xbd\xef\xbf\xbd "
                    "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\", "
                    "\"\xef\xbf\xbd\xef\xbf\xbd\"]\n");
}

static void json_has_no_nan(void **state)
{
    struct sink s;

    (void)state;
    sink_open(&s);
    struct out o = OUT_INIT(s.f);
    out_array(&o, NULL);
    out_real(&o, NULL, 12.3456);
    out_real(&o, NULL, NAN);
    out_real(&o, NULL, INFINITY);
    out_end(&o);
    sink_expect(&s, "[12.346, null, null]\n");
}

static void text_cannot_steer_a_terminal(void **state)
{
    struct sink s;

    (void)state;
    sink_open(&s);
    text_safe(s.f, "a\x1b[31m\r\n\xff\xc2\x9b\xe2\x80\xae\xc3\xa9");
    sink_expect(&s, "a\\x1b[31m\\x0d\\x0a\\xff\\xc2\\x9b\\xe2\\x80\\xae"
                    "\xc3\xa9");
    sink_open(&s);
    text_safe_lines(s.f, "one\ntwo\x07\nthree");
    sink_expect(&s, "one\ntwo\\x07\nthree\n");
}

static void sizes_and_times_are_short(void **state)
{
    char size[TEXT_SIZE_MAX], when[TEXT_TIME_MAX];

    (void)state;
    assert_string_equal(text_size(size, 0), "0");
    assert_string_equal(text_size(size, 1), "1 B");
    assert_string_equal(text_size(size, 1023), "1023 B");
    assert_string_equal(text_size(size, 1024), "1.0 KiB");
    assert_string_equal(text_size(size, 1536), "1.5 KiB");
    assert_string_equal(text_size(size, 10 * 1024), "10 KiB");
    assert_string_equal(text_size(size, 1048575), "1.0 MiB");
    assert_string_equal(text_size(size, 2147483648), "2.0 GiB");
    assert_string_equal(text_size(size, UINT64_MAX), "16 EiB");
    setenv("TZ", "UTC-2", 1);
    assert_string_equal(text_time(when, "2026-01-31T23:05:09Z"),
                        "2026-02-01 01:05:09");
    assert_string_equal(text_time(when, "2026-01-31T23:05:09.123Z"),
                        "2026-02-01 01:05:09");
    assert_string_equal(text_time(when, "yesterday"), "yesterday");
}

static void a_table_is_as_wide_as_its_cells(void **state)
{
    struct table t;
    struct sink s;

    (void)state;
    sink_open(&s);
    table_init(&t, "lrl");
    table_cell(&t, "NAME");
    table_cell(&t, "N");
    table_cell(&t, "REST");
    table_cell(&t, "\xc3\xa9t\xc3\xa9");
    table_cellf(&t, "%d", 100);
    table_cell(&t, NULL);
    assert_int_equal(table_print(&t, s.f), 0);
    table_fini(&t);
    sink_expect(&s, "NAME    N  REST\n\xc3\xa9t\xc3\xa9   100  -\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(json_nests_and_separates),
        cmocka_unit_test(json_text_is_utf8_whatever_a_name_holds),
        cmocka_unit_test(json_has_no_nan),
        cmocka_unit_test(text_cannot_steer_a_terminal),
        cmocka_unit_test(sizes_and_times_are_short),
        cmocka_unit_test(a_table_is_as_wide_as_its_cells),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
