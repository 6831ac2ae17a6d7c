/* SPDX-License-Identifier: MIT */
/*
 * The JSON writer. It knows nesting, commas and escapes, and leaves write
 * errors to the stream: main() looks at them once, at the end.
 */
#include "output.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "text.h"

/* Bytes that stand for themselves. */
static size_t plain_len(const char *s, size_t n)
{
    size_t i = 0;

    while (i < n && (unsigned char)s[i] >= 0x20 && (unsigned char)s[i] < 0x7f &&
           s[i] != '"' && s[i] != '\\')
        i++;
    return i;
}

static void put_string(FILE *f, const char *s, size_t n)
{
    fputc('"', f);
    while (n > 0) {
        unsigned char c = (unsigned char)*s;
        size_t len = plain_len(s, n);

        if (len > 0) {
            fwrite(s, 1, len, f);
            s += len;
            n -= len;
            continue;
        }
        len = text_utf8_len(s, n);
        if (len == 0)
            fputs("\xef\xbf\xbd", f); /* U+FFFD */
        else if (c == '"' || c == '\\')
            fprintf(f, "\\%c", c);
        else if (c == '\n')
            fputs("\\n", f);
        else if (c < 0x20 || c == 0x7f)
            fprintf(f, "\\u%04x", c);
        else
            fwrite(s, 1, len, f);
        len = len ? len : 1;
        s += len;
        n -= len;
    }
    fputc('"', f);
}

/* Comma, line break and key in front of a value. Elements of arrays that are
 * objects start a line: long lists stay readable and fit grep. */
static void put_lead(struct out *o, const char *key, bool compound)
{
    if (o->depth > 0) {
        unsigned top = o->depth - 1;

        assert((key != NULL) == (o->closer[top] == '}'));
        if (o->filled[top])
            fputs(compound && !key ? ",\n" : ", ", o->f);
        o->filled[top] = true;
    }
    if (!key)
        return;
    put_string(o->f, key, strlen(key));
    fputs(": ", o->f);
}

static void open_level(struct out *o, const char *key, const char *brackets)
{
    assert(o->depth < OUT_DEPTH_MAX);
    put_lead(o, key, true);
    fputc(brackets[0], o->f);
    o->closer[o->depth] = brackets[1];
    o->filled[o->depth] = false;
    o->depth++;
}

void out_object(struct out *o, const char *key)
{
    open_level(o, key, "{}");
}

void out_array(struct out *o, const char *key)
{
    open_level(o, key, "[]");
}

void out_end(struct out *o)
{
    assert(o->depth > 0);
    o->depth--;
    fputc(o->closer[o->depth], o->f);
    if (o->depth == 0)
        fputc('\n', o->f);
}

void out_text_n(struct out *o, const char *key, const char *value, size_t n)
{
    put_lead(o, key, false);
    put_string(o->f, value, n);
}

void out_text(struct out *o, const char *key, const char *value)
{
    if (value)
        out_text_n(o, key, value, strlen(value));
    else
        out_null(o, key);
}

void out_uint(struct out *o, const char *key, uint64_t value)
{
    put_lead(o, key, false);
    fprintf(o->f, "%" PRIu64, value);
}

void out_int(struct out *o, const char *key, int64_t value)
{
    put_lead(o, key, false);
    fprintf(o->f, "%" PRId64, value);
}

void out_bool(struct out *o, const char *key, bool value)
{
    put_lead(o, key, false);
    fputs(value ? "true" : "false", o->f);
}

void out_real(struct out *o, const char *key, double value)
{
    if (!isfinite(value)) {
        out_null(o, key);
        return;
    }
    put_lead(o, key, false);
    fprintf(o->f, "%.3f", value); /* LC_NUMERIC stays "C" */
}

void out_null(struct out *o, const char *key)
{
    put_lead(o, key, false);
    fputs("null", o->f);
}
