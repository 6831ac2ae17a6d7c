/* SPDX-License-Identifier: MIT */
/*
 * The saved RAM files that a QEMU maps privately: it keeps each open, and one
 * before 8.2 for writing. The guest writes nothing there, but what a balloon
 * gives back QEMU punches out of the file (seen with 7.2), and a balloon can be
 * plugged in at any time.
 */
#ifndef QSTILL_ENGINE_RAMFDS_H
#define QSTILL_ENGINE_RAMFDS_H

#include "launch.h"

struct session;

/*
 * Replaces each descriptor of QEMU's that can write to one of these files by
 * one that cannot, under the same number (dup3 in QEMU: inject.h). Nothing is
 * done where there is none. PRECONDITION or PERMISSION when that cannot be
 * done, or be seen: the guest is not to run then.
 */
int ramfds_seal(struct session *s, const struct launch_ram *ram, size_t count,
                struct qstill_error *err);

/*
 * What can be told while the QEMU of before still runs, if it does: whether the
 * files can be mapped so, and, where QEMU cannot open them `readonly`, whether
 * it is a process in which a descriptor can be replaced; the next one is
 * started in the same way. Changes nothing.
 */
int ramfds_check(struct session *s, const struct launch_ram *ram, size_t count,
                 bool readonly, struct qstill_error *err);

#endif
