/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "engine/tsc_fix.h"

#define BLOCKER "State blocked by non-migratable CPU device (invtsc flag)"

static const char *const started[] = {"qemu",
                                      "-cpu",
                                      "qemu64",
                                      "-m",
                                      "1G",
                                      "-cpu",
                                      "host,migratable=off,invtsc=on",
                                      NULL};

static const char *fix(const char *const *argv, uint64_t qemu_hz,
                       uint64_t host_khz)
{
    static char text[256];
    struct launch_record rec = {.argv = (char **)argv};

    memset(text, '?', sizeof(text));
    tsc_fix_argument(text, sizeof(text), argv ? &rec : NULL, qemu_hz, host_khz);
    return text;
}

static void only_the_blocker_about_invtsc_has_the_fix(void **state)
{
    (void)state;
    assert_true(tsc_fix_is_needed(BLOCKER));
    assert_false(tsc_fix_is_needed("The vdi format used by node 'x' does not "
                                   "support live migration"));
    assert_false(tsc_fix_is_needed(""));
}

static void the_argument_is_the_recorded_one_with_the_frequency(void **state)
{
    (void)state;
    assert_string_equal(fix(started, 2596103000, 1),
                        "-cpu host,migratable=off,invtsc=on,"
                        "tsc-frequency=2596103000");
}

static void the_hosts_frequency_serves_where_qemu_knows_none(void **state)
{
    (void)state;
    assert_string_equal(fix(started, 0, 2100000),
                        "-cpu host,migratable=off,invtsc=on,"
                        "tsc-frequency=2100000000");
}

static void without_a_cpu_argument_dots_stand_for_it(void **state)
{
    static const char *const other[] = {"qemu", "-m", "1G", NULL};
    static const char *const set[] = {"qemu", "-cpu", "host,tsc-frequency=5",
                                      NULL};

    (void)state;
    assert_string_equal(fix(other, 5, 0), "-cpu ...,tsc-frequency=5");
    assert_string_equal(fix(set, 7, 0), "-cpu ...,tsc-frequency=7");
    assert_string_equal(fix(NULL, 5, 0), "-cpu ...,tsc-frequency=5");
}

static void an_unknown_frequency_is_said_to_be_so(void **state)
{
    (void)state;
    assert_string_equal(fix(NULL, 0, 0),
                        "-cpu ...,tsc-frequency=HZ, with HZ the host's TSC "
                        "frequency");
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_the_blocker_about_invtsc_has_the_fix),
        cmocka_unit_test(the_argument_is_the_recorded_one_with_the_frequency),
        cmocka_unit_test(the_hosts_frequency_serves_where_qemu_knows_none),
        cmocka_unit_test(without_a_cpu_argument_dots_stand_for_it),
        cmocka_unit_test(an_unknown_frequency_is_said_to_be_so),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
