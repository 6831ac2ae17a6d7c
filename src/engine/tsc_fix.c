/* SPDX-License-Identifier: MIT */
#include "tsc_fix.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "launch_args.h"

#define FREQUENCY "tsc-frequency="

bool tsc_fix_is_needed(const char *blocker)
{
    return strstr(blocker, "invtsc") != NULL;
}

/* The value of the last -cpu, which is the one that QEMU takes. */
static const char *cpu_value(const struct launch_args *args)
{
    const char *value = NULL;

    for (size_t i = 0; i < args->count; i++)
        if (launch_arg_is(&args->v[i], "cpu") && args->v[i].value)
            value = args->v[i].value;
    return value;
}

void tsc_fix_argument(char *out, size_t size, const struct launch_record *rec,
                      uint64_t qemu_hz, uint64_t host_khz)
{
    CLEANUP(launch_args_fini) struct launch_args args = {0};
    struct qstill_error ignored = {0};
    uint64_t hz = qemu_hz ? qemu_hz : host_khz * 1000;
    const char *cpu = "...";

    if (rec && rec->argv && launch_args_parse(&args, rec->argv, &ignored) == 0)
        cpu = cpu_value(&args);
    /* One that has a frequency already has another reason to be blocked. */
    if (!cpu || strstr(cpu, FREQUENCY))
        cpu = "...";
    if (hz)
        snprintf(out, size, "-cpu %s," FREQUENCY "%" PRIu64, cpu, hz);
    else
        snprintf(out, size,
                 "-cpu %s," FREQUENCY "HZ, with HZ the host's TSC frequency",
                 cpu);
}
