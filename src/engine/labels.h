/* SPDX-License-Identifier: MIT */
#ifndef QSTILL_ENGINE_LABELS_H
#define QSTILL_ENGINE_LABELS_H

#include <stddef.h>

#include "base/error.h"

/* USAGE: one is no "K=V", or two have keys that JSON shows alike: they are the
 * members of one object there. */
int labels_check(const char *const *labels, size_t count,
                 struct qstill_error *err);

#endif
