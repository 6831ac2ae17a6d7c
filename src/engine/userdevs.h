/* SPDX-License-Identifier: MIT */
/*
 * The devices of the VM's user, a line each: "TYPE[,ID]" of one that it was
 * started with, and with " plugged" behind it of one that device_add brought.
 * A start must make them, no more and no less.
 */
#ifndef QSTILL_ENGINE_USERDEVS_H
#define QSTILL_ENGINE_USERDEVS_H

#include <stdbool.h>
#include <stdint.h>

#include "qmp/migrate.h"

struct launch_args;

/* Also what has no bus, and so no line in qmp/topology.h. Free with
 * qmp_names_fini(). */
int userdevs_read(struct qstill_qmp *q, struct qmp_names *out,
                  struct qstill_error *err);

/* Whether an option makes a device of that id; one that cannot be read may make
 * any. */
bool userdevs_made(const struct launch_args *args, const char *id);

/* Gets the id of each -device that is not made only when the guest asks for it
 * (failover). Below 0 ends the walk: an error. */
typedef int userdevs_id_fn(void *user, const char *id,
                           struct qstill_error *err);
int userdevs_each_id(const struct launch_args *args, userdevs_id_fn *found,
                     void *user, struct qstill_error *err);

/* PRECONDITION names a device that a start would make and the list, that of
 * `whose` ("the snapshot"), has not. Of those without an id the numbers count.
 */
int userdevs_check_more(const struct launch_args *args, char *const *list,
                        size_t count, const char *whose,
                        struct qstill_error *err);
int userdevs_is_more(const char *id, const char *whose,
                     struct qstill_error *err);

/* PRECONDITION names one of the list that was plugged in, and that a start
 * would not make. `vcpus`: how many CPUs there must be. */
int userdevs_check_plugged(const struct launch_args *args, char *const *list,
                           size_t count, uint64_t vcpus,
                           struct qstill_error *err);

#endif
