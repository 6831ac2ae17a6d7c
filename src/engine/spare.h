/* SPDX-License-Identifier: MIT */
/*
 * Room that is kept in STORE/VM for when its file system is full: a delete,
 * which would make room, must write its journal first. Two files, .spare.0 and
 * .spare.1, so that there are files to be had as well where those are counted.
 * They hold nothing, and are made again when the VM's lock is given back.
 */
#ifndef QSTILL_ENGINE_SPARE_H
#define QSTILL_ENGINE_SPARE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct session;

/* Makes what is missing; without the room for it there is none. */
void spare_make(int vmfd, size_t layers);
/* Of the size that a session's tree asks for. */
void spare_keep(const struct session *s);

/* Publishes dirfd/name (base/publish.h) with the room of a spare file. `err`
 * says why it could not be done without, and still does when there is none. */
int spare_publish(int vmfd, int dirfd, const char *name, const void *data,
                  size_t len, struct qstill_error *err);

/* Gives the room of one file, but not the last, to a merge that wants so many
 * bytes; false when that would not do. */
bool spare_give_up(int vmfd, uint64_t wanted);

#endif
