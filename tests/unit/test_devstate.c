/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../lib/mem_stream.h"
#include "memstate/devstate.h"

static int parse_hex(const char *hex, struct devstate *d,
                     struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf b = BUF_INIT;
    uint8_t *exact;
    int rc;

    /* exactly as long as it is, so that a sanitizer sees reads behind it */
    mem_stream_hex(&b, hex);
    exact = malloc(b.len ? b.len : 1);
    if (b.len)
        memcpy(exact, b.data, b.len);
    rc = devstate_parse(d, exact, b.len, err);
    free(exact);
    return rc;
}

static void devstate_ends_are_found(void **state)
{
    CLEANUP(buf_fini) struct buf b = BUF_INIT;
    struct devstate d;
    struct qstill_error err;

    (void)state;
    mem_stream_hex(&b, "5145564d 00000003");
    mem_stream_devices(&b);
    assert_int_equal(devstate_parse(&d, b.data, b.len, &err), 0);
    assert_true(d.vmdescription);
    assert_true(d.footers);
    assert_int_equal(d.sections_len, b.len - 7);
    assert_int_equal(devstate_parse(&d, b.data, b.len - 7, &err), 0);
    assert_false(d.vmdescription);
    assert_true(d.footers);
    assert_int_equal(d.sections_len, b.len - 7);
}

static void devstate_without_footers_is_told(void **state)
{
    struct devstate d;
    struct qstill_error err;

    (void)state;
    assert_int_equal(parse_hex("5145564d 00000003 04 00000001 01 78 00000000 "
                               "00000001 aabbccdd 00",
                               &d, &err),
                     0);
    assert_false(d.footers);
    assert_false(d.vmdescription);
}

static void devstate_that_is_none_or_cut_short_is_corrupt(void **state)
{
    static const struct {
        const char *hex, *message;
    } cases[] = {
        {"", "this is no device state of QEMU (0 bytes)"},
        {"5145564d 00000003 04", "this is no device state of QEMU (9 bytes)"},
        {"5145564d 00000002 04 00000001 0000",
         "this is no device state of QEMU (15 bytes)"},
        {"5145564d 00000003 07 00000001 0000",
         "the device state begins with a section of type 7, not with a device"},
        {"5145564d 00000003 04 00000001 01 78 00000000 00000001 aa7e",
         "the device state ends without its end mark: it is cut short"},
        {"5145564d 00000003 04 00000001 01 78 00 06 00000003 7b7d",
         "the device state ends without its end mark: it is cut short"},
        {"5145564d 00000003 04 00000001 01 78 7d",
         "the device state ends without its end mark: it is cut short"},
    };
    struct devstate d;
    struct qstill_error err;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        assert_int_equal(parse_hex(cases[i].hex, &d, &err), QSTILL_E_CORRUPT);
        assert_string_equal(err.message, cases[i].message);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(devstate_ends_are_found),
        cmocka_unit_test(devstate_without_footers_is_told),
        cmocka_unit_test(devstate_that_is_none_or_cut_short_is_corrupt),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
