/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "engine/launch.h"

static char dir[] = "/tmp/qstill-sandbox-XXXXXX";

static bool has(const char *const *argv)
{
    struct launch_record rec = {
        .argv = (char **)(uintptr_t)argv, .cwd = dir, .exe = (char *)"/bin/sh"};

    return launch_has_sandbox(&rec);
}

static void as_qemu_reads_the_option(void **state)
{
    static const struct {
        const char *values[2];
        bool on;
    } cases[] = {
        {{"on"}, true},
        {{"enable=on"}, true},
        {{"yes"}, true},
        {{"true"}, true},
        {{"y"}, true},
        {{"spawn=deny,enable=y"}, true},
        {{"spawn=deny,enable"}, true},
        {{"on,obsolete=deny,elevateprivileges=deny"}, true},
        {{"off"}, false},
        {{"no"}, false},
        {{"false"}, false},
        {{"n"}, false},
        {{"enable=no"}, false},
        {{"elevateprivileges=allow"}, false},
        {{"on,enable=off"}, false},
        {{"spawn=deny,noenable"}, false},
        {{"on", "spawn=deny"}, true},
        {{"on", "off"}, false},
        {{"spawn=deny", "on"}, true},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        const char *argv[] = {"qemu",
                              "-sandbox",
                              cases[i].values[0],
                              cases[i].values[1] ? "-sandbox" : NULL,
                              cases[i].values[1],
                              NULL};

        if (has(argv) != cases[i].on)
            fail_msg("%s %s", argv[2], argv[3] ? argv[4] : "");
    }
    assert_false(has((const char *[]){"qemu", "-S", NULL}));
}

static void write_file(const char *text)
{
    char path[64];
    FILE *f;

    snprintf(path, sizeof(path), "%s/a.cfg", dir);
    f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void a_file_of_options(void **state)
{
    static const struct {
        const char *text;
        bool on;
    } cases[] = {
        {"[sandbox]\n  enable = \"on\"\n", true},
        {"# [x]\n[sandbox]\n# no\n  spawn = \"deny\"\nenable=\"on\"\n", false},
        {"[sandbox]\nspawn = \"deny\"\n\nenable = \"yes\"\n", true},
        {"[sandbox]\n  enable = \"off\"\n", false},
        {"[sandbox]\n  spawn = \"deny\"\n", false},
        {"[machine]\n  enable = \"on\"\n", false},
        {"[sandbox]\n[device \"a\"]\n  enable = \"on\"\n", false},
    };
    static const char *const argv[] = {"qemu", "-readconfig", "a.cfg", NULL};
    static const char *const later[] = {"qemu",     "-readconfig", "a.cfg",
                                        "-sandbox", "off",         NULL};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        write_file(cases[i].text);
        if (has(argv) != cases[i].on)
            fail_msg("%s", cases[i].text);
        assert_false(has(later));
    }
}

static int setup(void **state)
{
    (void)state;
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
    char path[64];

    (void)state;
    snprintf(path, sizeof(path), "%s/a.cfg", dir);
    unlink(path);
    return rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_qemu_reads_the_option),
        cmocka_unit_test(a_file_of_options),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
