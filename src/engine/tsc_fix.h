/* SPDX-License-Identifier: MIT */
/*
 * The way round QEMU's migration blocker "invtsc": QEMU lets a guest with an
 * invariant TSC be migrated when its frequency is given on the command line.
 */
#ifndef QSTILL_ENGINE_TSC_FIX_H
#define QSTILL_ENGINE_TSC_FIX_H

#include <stdbool.h>
#include <stdint.h>

#include "launch.h"

/* Whether a blocker's text is the one about invtsc. */
bool tsc_fix_is_needed(const char *blocker);

/*
 * The -cpu argument of the next start: the one of `rec` (which may be NULL)
 * with this host's frequency behind it, as QEMU knows it (qemu_hz) or else the
 * host (host_khz). Where both are 0 or the argument cannot be found, it says
 * what can be said. Always writes a terminated text.
 */
void tsc_fix_argument(char *out, size_t size, const struct launch_record *rec,
                      uint64_t qemu_hz, uint64_t host_khz);

#endif
