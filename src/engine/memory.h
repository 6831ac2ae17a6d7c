/* SPDX-License-Identifier: MIT */
/* What the public doors for a VMM of one's own share (qstill-memory.h). */
#ifndef QSTILL_ENGINE_MEMORY_H
#define QSTILL_ENGINE_MEMORY_H

#include "base/arena.h"
#include "base/error.h"
#include "qstill-memory.h"

/* Copies the regions, ids too. USAGE for what can never be right. */
int memory_take_regions(struct arena *arena, const struct qstill_region *from,
                        size_t count, struct qstill_region **out,
                        struct qstill_error *err);
/* What a callback of the VMM's has returned, 0 or an error with a negative code
 * and a message: one that fails need not fill `err`, any other value than 0 is
 * a failure, and with 0 what is in `err` does not count. `err` was empty before
 * the call. */
int memory_called(int result, const char *what, struct qstill_error *err);
/* The directory that holds a capture. NOT_FOUND when there is none. */
int memory_open_dir(const char *dir, int *fd, struct qstill_error *err);

#endif
