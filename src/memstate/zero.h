/* SPDX-License-Identifier: MIT */
/* Is this memory all zero? AVX2 where the CPU has it, chosen at run time. */
#ifndef QSTILL_MEMSTATE_ZERO_H
#define QSTILL_MEMSTATE_ZERO_H

#include <stdbool.h>
#include <stddef.h>

/* `len` is a multiple of 128, as a page is; `data` may lie anywhere. */
bool zero_is(const void *data, size_t len);

/* The two forms by name, for tests and the benchmark; has_avx2 first. */
bool zero_has_avx2(void);
bool zero_is_avx2(const void *data, size_t len);
bool zero_is_plain(const void *data, size_t len);

#endif
