/* SPDX-License-Identifier: MIT */
/* Strings and small structs that live and die together with one object. */
#ifndef QSTILL_BASE_ARENA_H
#define QSTILL_BASE_ARENA_H

#include <stddef.h>

#include "cleanup.h"

struct arena_block;
struct arena {
    struct arena_block *blocks;
};

#define ARENA_INIT                                                             \
    {                                                                          \
        NULL                                                                   \
    }

void arena_fini(struct arena *a);
/* Zeroed memory, aligned for any type; NULL when out of memory. */
void *arena_alloc(struct arena *a, size_t len);
/* A zeroed array; NULL when out of memory or when n * size wraps. */
void *arena_array(struct arena *a, size_t n, size_t size);
char *arena_strdup(struct arena *a, const char *s);
char *arena_printf(struct arena *a, const char *fmt, ...) PRINTF_LIKE(2, 3);

#endif
