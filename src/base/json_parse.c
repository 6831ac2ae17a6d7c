/* SPDX-License-Identifier: MIT */
#include "json_parse.h"

#include <errno.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>

#include "cleanup.h"

/* Digits of a number; more make it no better. */
#define NUMBER_MAX 512

struct parser {
    char *at;
    char *end; /* *end is 0 */
    struct arena *arena;
    size_t line;
    const char *why; /* the first thing that is wrong */
    bool no_memory;
};

static bool bad(struct parser *p, const char *why)
{
    if (!p->why)
        p->why = why;
    return false;
}

static void skip_space(struct parser *p)
{
    for (;; p->at++)
        if (*p->at == '\n')
            p->line++;
        else if (*p->at != ' ' && *p->at != '\t' && *p->at != '\r')
            return;
}

/* ------------------------------------------------------------------ strings */

size_t json_utf8_length(const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    static const struct {
        unsigned char first, last; /* lead bytes */
        unsigned char low, high;   /* of the second byte */
        unsigned char length;
    } forms[] = {
        {0xc2, 0xdf, 0x80, 0xbf, 2}, {0xe0, 0xe0, 0xa0, 0xbf, 3},
        {0xe1, 0xec, 0x80, 0xbf, 3}, {0xed, 0xed, 0x80, 0x9f, 3},
        {0xee, 0xef, 0x80, 0xbf, 3}, {0xf0, 0xf0, 0x90, 0xbf, 4},
        {0xf1, 0xf3, 0x80, 0xbf, 4}, {0xf4, 0xf4, 0x80, 0x8f, 4},
    };

    for (size_t i = 0; i < ARRAY_LEN(forms); i++) {
        if (s[0] < forms[i].first || s[0] > forms[i].last)
            continue;
        if (s[1] < forms[i].low || s[1] > forms[i].high)
            return 0;
        for (size_t k = 2; k < forms[i].length; k++)
            if ((s[k] & 0xc0) != 0x80)
                return 0;
        return forms[i].length;
    }
    return 0;
}

static bool hex4(const char *s, unsigned *out)
{
    unsigned v = 0;

    for (int i = 0; i < 4; i++) {
        char c = s[i];

        if (c >= '0' && c <= '9')
            v = v << 4 | (unsigned)(c - '0');
        else if (c >= 'a' && c <= 'f')
            v = v << 4 | (unsigned)(c - 'a' + 10);
        else if (c >= 'A' && c <= 'F')
            v = v << 4 | (unsigned)(c - 'A' + 10);
        else
            return false;
    }
    *out = v;
    return true;
}

static char *put_utf8(char *to, unsigned c)
{
    if (c < 0x80) {
        *to++ = (char)c;
        return to;
    }
    if (c < 0x800) {
        *to++ = (char)(0xc0 | c >> 6);
    } else {
        if (c < 0x10000) {
            *to++ = (char)(0xe0 | c >> 12);
        } else {
            *to++ = (char)(0xf0 | c >> 18);
            *to++ = (char)(0x80 | (c >> 12 & 0x3f));
        }
        *to++ = (char)(0x80 | (c >> 6 & 0x3f));
    }
    *to++ = (char)(0x80 | (c & 0x3f));
    return to;
}

/* Behind "\u". A surrogate is half of a pair. */
static bool unicode_escape(struct parser *p, char **to)
{
    unsigned c, low;

    if (!hex4(p->at, &c))
        return bad(p, "invalid escape");
    p->at += 4;
    if (c == 0)
        return bad(p, "a NUL in a string");
    if (c >= 0xdc00 && c <= 0xdfff)
        return bad(p, "invalid Unicode");
    if (c >= 0xd800 && c <= 0xdbff) {
        if (p->at[0] != '\\' || p->at[1] != 'u' || !hex4(p->at + 2, &low) ||
            low < 0xdc00 || low > 0xdfff)
            return bad(p, "invalid Unicode");
        p->at += 6;
        c = 0x10000 + ((c & 0x3ff) << 10 | (low & 0x3ff));
    }
    *to = put_utf8(*to, c);
    return true;
}

static bool escape(struct parser *p, char **to)
{
    static const char from[] = "\"\\/bfnrt", into[] = "\"\\/\b\f\n\r\t";
    char c = *++p->at;
    const char *found = c ? strchr(from, c) : NULL;

    p->at++;
    if (c == 'u')
        return unicode_escape(p, to);
    if (!found)
        return bad(p, "invalid escape");
    *(*to)++ = into[found - from];
    return true;
}

/* At the opening quote. What is written is never longer than what was read, so
 * that the string stays where it is; its end is put over a byte that has been
 * read, the closing quote at the latest. */
static bool parse_string(struct parser *p, const char **out)
{
    char *to = ++p->at;

    *out = to;
    while (*p->at != '"') {
        unsigned char c = (unsigned char)*p->at;
        size_t n = 1;

        if (c < 0x20)
            return bad(p, p->at == p->end ? "a string without an end"
                                          : "a control character in a string");
        if (c == '\\') {
            if (!escape(p, &to))
                return false;
            continue;
        }
        if (c >= 0x80 && (n = json_utf8_length(p->at)) == 0)
            return bad(p, "a string that is not UTF-8");
        if (to == p->at) {
            to += n;
            p->at += n;
        } else {
            while (n-- > 0)
                *to++ = *p->at++;
        }
    }
    p->at++;
    *to = '\0';
    return true;
}

/* ------------------------------------------------------------------ numbers */

static bool digits(struct parser *p)
{
    if (*p->at < '0' || *p->at > '9')
        return false;
    while (*p->at >= '0' && *p->at <= '9')
        p->at++;
    return true;
}

/* strtod() reads the locale's point. */
static bool to_real(struct parser *p, const char *from, size_t len, double *out)
{
    char copy[NUMBER_MAX + 1];
    const char *point = localeconv()->decimal_point;
    char *dot;

    if (len > NUMBER_MAX)
        return bad(p, "a number that is too long");
    memcpy(copy, from, len);
    copy[len] = '\0';
    dot = strchr(copy, '.');
    if (dot && point && point[0] && !point[1])
        *dot = point[0];
    errno = 0;
    *out = strtod(copy, NULL);
    if (errno == ERANGE && (*out > 1 || *out < -1))
        return bad(p, "a number that is too big");
    return true;
}

static bool to_integer(struct parser *p, const char *from, const char *end,
                       int64_t *out)
{
    bool minus = *from == '-';
    uint64_t limit = (uint64_t)INT64_MAX + minus, v = 0;

    for (from += minus; from < end; from++) {
        unsigned d = (unsigned)(*from - '0');

        if (v > (limit - d) / 10)
            return bad(p, "a number that is too big");
        v = v * 10 + d;
    }
    *out = minus ? (int64_t)(0 - v) : (int64_t)v;
    return true;
}

static bool parse_number(struct parser *p, struct json_value *v)
{
    const char *from = p->at;
    bool real = false;

    if (*p->at == '-')
        p->at++;
    if (*p->at == '0')
        p->at++;
    else if (!digits(p))
        return bad(p, "no value");
    if (*p->at == '.') {
        real = true;
        p->at++;
        if (!digits(p))
            return bad(p, "no number");
    }
    if (*p->at == 'e' || *p->at == 'E') {
        real = true;
        p->at++;
        if (*p->at == '+' || *p->at == '-')
            p->at++;
        if (!digits(p))
            return bad(p, "no number");
    }
    v->kind = real ? JSON_REAL_VALUE : JSON_INTEGER_VALUE;
    return real ? to_real(p, from, (size_t)(p->at - from), &v->real)
                : to_integer(p, from, p->at, &v->integer);
}

/* ------------------------------------------------------------------- values */

static bool parse_value(struct parser *p, struct json_value *v, int depth);

static struct json_value *new_value(struct parser *p)
{
    struct json_value *v = arena_alloc(p->arena, sizeof(*v));

    if (!v) {
        p->no_memory = true;
        bad(p, "out of memory");
    }
    return v;
}

/* A key and its colon. */
static bool parse_key(struct parser *p, struct json_value *v,
                      const struct json_value *object)
{
    if (*p->at != '"')
        return bad(p, "no member's name");
    if (!parse_string(p, &v->key))
        return false;
    if (object->items.count == JSON_MEMBERS_MAX)
        return bad(p, "an object of too many members");
    if (json_member(object, v->key))
        return bad(p, "a member twice");
    skip_space(p);
    if (*p->at != ':')
        return bad(p, "no colon");
    p->at++;
    return true;
}

/* At the opening bracket. */
static bool parse_items(struct parser *p, struct json_value *v, int depth)
{
    bool object = *p->at == '{';
    char close = object ? '}' : ']';
    const struct json_value **link = &v->items.first;

    v->kind = object ? JSON_OBJECT_VALUE : JSON_ARRAY_VALUE;
    if (depth == JSON_DEPTH_MAX)
        return bad(p, "nested too deeply");
    p->at++;
    skip_space(p);
    if (*p->at == close) {
        p->at++;
        return true;
    }
    for (;;) {
        struct json_value *item = new_value(p);

        skip_space(p);
        if (!item || (object && !parse_key(p, item, v)) ||
            !parse_value(p, item, depth + 1))
            return false;
        *link = item;
        link = &item->next;
        v->items.count++;
        skip_space(p);
        if (*p->at == close) {
            p->at++;
            return true;
        }
        if (*p->at != ',')
            return bad(p, object ? "no comma or brace" : "no comma or bracket");
        p->at++;
    }
}

static bool parse_word(struct parser *p, struct json_value *v)
{
    static const struct {
        const char *word;
        enum json_kind kind;
        bool boolean;
    } words[] = {{"true", JSON_BOOLEAN, true},
                 {"false", JSON_BOOLEAN, false},
                 {"null", JSON_NULL_VALUE, false}};

    for (size_t i = 0; i < ARRAY_LEN(words); i++) {
        size_t n = strlen(words[i].word);

        if (strncmp(p->at, words[i].word, n) != 0)
            continue;
        p->at += n;
        v->kind = words[i].kind;
        v->boolean = words[i].boolean;
        return true;
    }
    return bad(p, p->at == p->end ? "an end too early" : "no value");
}

static bool parse_value(struct parser *p, struct json_value *v, int depth)
{
    skip_space(p);
    switch (*p->at) {
    case '{':
    case '[':
        return parse_items(p, v, depth);
    case '"':
        v->kind = JSON_STRING_VALUE;
        return parse_string(p, &v->string);
    case 't':
    case 'f':
    case 'n':
        return parse_word(p, v);
    default:
        if (p->at == p->end)
            return bad(p, "an end too early");
        return parse_number(p, v);
    }
}

static int say_where(const struct parser *p, struct qstill_error *err)
{
    if (p->no_memory)
        return err_nomem(err);
    return err_set(err, QSTILL_E_CORRUPT, "line %zu: %s", p->line, p->why);
}

int json_parse(char *text, size_t len, struct arena *arena,
               const struct json_value **out, struct qstill_error *err)
{
    struct parser p = {
        .at = text, .end = text + len, .arena = arena, .line = 1};
    struct json_value *v;

    text[len] = '\0';
    v = new_value(&p);
    if (!v || !parse_value(&p, v, 0))
        return say_where(&p, err);
    skip_space(&p);
    if (p.at != p.end) {
        bad(&p, "more behind the value");
        return say_where(&p, err);
    }
    *out = v;
    return 0;
}

const struct json_value *json_member(const struct json_value *v,
                                     const char *key)
{
    const struct json_value *m =
        v && v->kind == JSON_OBJECT_VALUE ? v->items.first : NULL;

    while (m && strcmp(m->key, key) != 0)
        m = m->next;
    return m;
}
