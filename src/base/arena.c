/* SPDX-License-Identifier: MIT */
#include "arena.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "checked.h"

struct arena_block {
    struct arena_block *next;
    max_align_t data[];
};

void arena_fini(struct arena *a)
{
    while (a->blocks) {
        struct arena_block *next = a->blocks->next;

        free(a->blocks);
        a->blocks = next;
    }
}

void *arena_alloc(struct arena *a, size_t len)
{
    struct arena_block *b;
    size_t total;

    if (add_size(sizeof(*b), len ? len : 1, &total))
        return NULL;
    b = calloc(1, total);
    if (!b)
        return NULL;
    b->next = a->blocks;
    a->blocks = b;
    return b->data;
}

void *arena_array(struct arena *a, size_t n, size_t size)
{
    size_t total;

    return mul_size(n, size, &total) ? NULL : arena_alloc(a, total);
}

char *arena_strdup(struct arena *a, const char *s)
{
    size_t len = strlen(s) + 1;
    char *copy = arena_alloc(a, len);

    return copy ? memcpy(copy, s, len) : NULL;
}

char *arena_printf(struct arena *a, const char *fmt, ...)
{
    va_list ap, again;
    char *s = NULL;
    int n;

    va_start(ap, fmt);
    va_copy(again, ap);
    n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n >= 0)
        s = arena_alloc(a, (size_t)n + 1);
    if (s)
        vsnprintf(s, (size_t)n + 1, fmt, again);
    va_end(again);
    return s;
}
