/* SPDX-License-Identifier: MIT */
/*
 * Whether the heads of a VM that is off are heads still. A VM that is attached
 * in two stores is one that both of them freeze and merge the files of: what is
 * the head here may be a frozen layer there. (While it runs QEMU says which
 * files are its heads.)
 */
#ifndef QSTILL_ENGINE_HEADUSE_H
#define QSTILL_ENGINE_HEADUSE_H

#include "base/error.h"

struct session;

/* PRECONDITION: a head is immutable, as frozen layers are. */
int headuse_check_frozen(const struct session *s, struct qstill_error *err);

/* The same, or an image in the folder of a head stands on it, which is lost
 * once that is written to. Reads the header of each file there. */
int headuse_check(const struct session *s, struct qstill_error *err);

#endif
