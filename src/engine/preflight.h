/* SPDX-License-Identifier: MIT */
/*
 * Whether a snapshot can be reverted to, found out before anything is
 * stopped: its files, the machine, QEMU, the CPU and its clock.
 */
#ifndef QSTILL_ENGINE_PREFLIGHT_H
#define QSTILL_ENGINE_PREFLIGHT_H

#include <stdbool.h>

#include "base/error.h"

struct manifest;
struct session;

/* PRECONDITION or CORRUPT with both values named; `force` lets pass what a
 * guest can survive. `memory`: its memory will be loaded. */
int preflight(struct session *s, const struct manifest *m, bool memory,
              bool force, struct qstill_error *err);

/* Whether its memory's files are there, in their lengths (CORRUPT else). Their
 * sums are not made. */
int preflight_memory(struct session *s, const struct manifest *m,
                     struct qstill_error *err);

/* What stands below the lowest layer of a snapshot belongs to nobody here, and
 * no manifest tells of it: a golden image, which QEMU opens all the same.
 * `start`: see session_reach(). */
int preflight_foundation(struct session *s, const struct manifest *m,
                         bool start, struct qstill_error *err);

/* Whether the layers that a snapshot's stand on are what they were: those of
 * its ancestors, of deleted ones, and in the trash. */
int preflight_ancestry(struct session *s, const struct manifest *m,
                       struct qstill_error *err);

/* Whether the frozen layers that the VM's heads stand on are what they were. */
int preflight_below(struct session *s, struct qstill_error *err);

/* The same as preflight() of a QEMU that answers: what its device state must
 * fit. A new one is asked before anything is loaded into it. */
int preflight_process(struct session *s, const struct manifest *m, bool force,
                      struct qstill_error *err);
/* Which snapshots with memory preflight() would refuse without force, for the
 * machine (of a VM that answers), the CPU and its clock; with the reason. */
typedef void preflight_tell_fn(void *user, struct qstill_error *why);
int preflight_foresee(struct session *s, preflight_tell_fn *tell, void *user,
                      struct qstill_error *err);
/* Whether the QEMU that would be started is the one that runs now, or the
 * snapshot's. */
int preflight_binary(struct session *s, const struct manifest *m, bool force,
                     struct qstill_error *err);

/* Whether a start from the recorded command line would make the RAM that the
 * VM has now: PRECONDITION names what was plugged in. */
int preflight_plugged(struct session *s, struct qstill_error *err);

/* Whether RAM may be a private mapping of the snapshot's files; the reason
 * goes into why (may be NULL). */
bool preflight_mappable(const struct manifest *m, const char **why);

#endif
