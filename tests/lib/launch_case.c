/* SPDX-License-Identifier: MIT */
#include "launch_case.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

struct launch_record launch_case_record(const char *const *argv)
{
    static char *env[] = {NULL};
    struct launch_record rec = {
        .argv = (char **)argv,
        .cwd = (char *)"/vm",
        .env = env,
        .exe = (char *)"/usr/bin/qemu",
    };

    return rec;
}

void launch_case_assert(const char *why, char *const *got,
                        const char *const *want)
{
    size_t i;

    for (i = 0; got[i] && want[i]; i++)
        if (strcmp(got[i], want[i]) != 0)
            fail_msg("%s: word %zu is %s, not %s", why, i, got[i], want[i]);
    if (got[i] || want[i])
        fail_msg("%s: word %zu is %s, not %s", why, i, got[i] ? got[i] : "-",
                 want[i] ? want[i] : "-");
}
