/* SPDX-License-Identifier: MIT */
#include "arena.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "checked.h"

/* A manifest is hundreds of small strings. Under ASan each allocation is one of
 * its own, so that it sees who writes beyond. */
#ifdef __SANITIZE_ADDRESS__
#define CHUNK 1
#else
#define CHUNK 4000
#endif

struct arena_block {
    struct arena_block *next;
    size_t used, size; /* of data, bytes */
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

/* A block of its own for what would take most of one; it goes behind the one
 * that is being filled. */
static void *add_block(struct arena *a, size_t len)
{
    size_t size = len <= CHUNK / 4 ? CHUNK : len, total;
    struct arena_block *b;

    if (add_size(sizeof(*b), size, &total))
        return NULL;
    b = calloc(1, total);
    if (!b)
        return NULL;
    b->used = len;
    b->size = size;
    if (size > len || !a->blocks) {
        b->next = a->blocks;
        a->blocks = b;
    } else {
        b->next = a->blocks->next;
        a->blocks->next = b;
    }
    return b->data;
}

void *arena_alloc(struct arena *a, size_t len)
{
    const size_t align = _Alignof(max_align_t);
    struct arena_block *b = a->blocks;
    size_t rounded;

    if (add_size(len ? len : 1, align - 1, &rounded))
        return NULL;
    rounded &= ~(align - 1);
    if (!b || b->size - b->used < rounded)
        return add_block(a, rounded);
    b->used += rounded;
    return (uint8_t *)b->data + b->used - rounded;
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
