/* SPDX-License-Identifier: MIT */
/*
 * A growing byte buffer, held by value: CLEANUP(buf_fini) struct buf b =
 * BUF_INIT. A failed append leaves the buffer as it was and returns -1;
 * buf_puts and buf_printf keep a NUL behind the content.
 */
#ifndef QSTILL_BASE_BUF_H
#define QSTILL_BASE_BUF_H

#include <stddef.h>
#include <stdint.h>
#include "cleanup.h"

struct buf {
    uint8_t *data;
    size_t len;
    size_t cap;
};

#define BUF_INIT                                                               \
    {                                                                          \
        NULL, 0, 0                                                             \
    }

void buf_fini(struct buf *b);
/* Makes room for `extra` more bytes behind len (and a NUL). */
int buf_reserve(struct buf *b, size_t extra);
int buf_append(struct buf *b, const void *data, size_t len);
int buf_append_be16(struct buf *b, uint16_t v);
int buf_append_be32(struct buf *b, uint32_t v);
int buf_append_be64(struct buf *b, uint64_t v);
int buf_append_u8(struct buf *b, uint8_t v);
int buf_puts(struct buf *b, const char *s);
int buf_printf(struct buf *b, const char *fmt, ...) PRINTF_LIKE(2, 3);
/* Drops the first n bytes (n <= len). */
void buf_consume(struct buf *b, size_t n);
/* Gives the bytes away as a C string (malloc'ed); NULL when out of memory. */
char *buf_take_string(struct buf *b);

#endif
