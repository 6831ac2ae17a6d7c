/* SPDX-License-Identifier: MIT */
#include "buf.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "bytes.h"
#include "checked.h"

void buf_fini(struct buf *b)
{
    free(b->data);
    b->data = NULL;
    b->len = b->cap = 0;
}

int buf_reserve(struct buf *b, size_t extra)
{
    size_t need, cap;
    uint8_t *data;

    if (add_size(b->len, extra, &need) || add_size(need, 1, &need))
        return -1;
    if (need <= b->cap)
        return 0;
    cap = b->cap ? b->cap : 256;
    while (cap < need)
        if (mul_size(cap, 2, &cap))
            return -1;
    data = realloc(b->data, cap);
    if (!data)
        return -1;
    b->data = data;
    b->cap = cap;
    return 0;
}

int buf_append(struct buf *b, const void *data, size_t len)
{
    if (buf_reserve(b, len) < 0)
        return -1;
    if (len > 0)
        memcpy(b->data + b->len, data, len);
    b->len += len;
    b->data[b->len] = '\0';
    return 0;
}

int buf_append_u8(struct buf *b, uint8_t v)
{
    return buf_append(b, &v, 1);
}

int buf_append_be16(struct buf *b, uint16_t v)
{
    uint8_t raw[2];

    put_be16(raw, v);
    return buf_append(b, raw, sizeof(raw));
}

int buf_append_be32(struct buf *b, uint32_t v)
{
    uint8_t raw[4];

    put_be32(raw, v);
    return buf_append(b, raw, sizeof(raw));
}

int buf_append_be64(struct buf *b, uint64_t v)
{
    uint8_t raw[8];

    put_be64(raw, v);
    return buf_append(b, raw, sizeof(raw));
}

int buf_puts(struct buf *b, const char *s)
{
    return buf_append(b, s, strlen(s));
}

int buf_printf(struct buf *b, const char *fmt, ...)
{
    va_list ap, again;
    int n;

    va_start(ap, fmt);
    va_copy(again, ap);
    n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n >= 0 && buf_reserve(b, (size_t)n) == 0) {
        vsnprintf((char *)b->data + b->len, (size_t)n + 1, fmt, again);
        b->len += (size_t)n;
    } else {
        n = -1;
    }
    va_end(again);
    return n < 0 ? -1 : 0;
}

void buf_consume(struct buf *b, size_t n)
{
    memmove(b->data, b->data + n, b->len - n);
    b->len -= n;
    b->data[b->len] = '\0';
}

char *buf_take_string(struct buf *b)
{
    char *s;

    if (buf_append(b, "", 0) < 0)
        return NULL;
    s = (char *)b->data;
    *b = (struct buf)BUF_INIT;
    return s;
}
