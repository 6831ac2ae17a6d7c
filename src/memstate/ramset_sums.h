/* SPDX-License-Identifier: MIT */
/* The bytes of `sums` (ramset_layout.h): no I/O here. */
#ifndef QSTILL_MEMSTATE_RAMSET_SUMS_H
#define QSTILL_MEMSTATE_RAMSET_SUMS_H

#include "memstate/ramset.h"

/* Of the set, dirfd is not looked at. */
int sums_emit(const struct ramset *set, struct buf *out,
              struct qstill_error *err);

/* Fills *set but dirfd; free with sums_fini. CORRUPT says what is wrong. */
int sums_parse(struct ramset *set, const uint8_t *data, size_t len,
               struct qstill_error *err);
void sums_fini(struct ramset *set);

/* Is this size and id allowed beside the blocks that are there? */
int sums_check_block(const struct ramset *set, const char *id, uint64_t size,
                     struct qstill_error *err);

#endif
