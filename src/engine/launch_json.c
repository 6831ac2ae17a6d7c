/* SPDX-License-Identifier: MIT */
/*
 * The JSON form of QEMU's options (-blockdev '{...}'), to dotted keys and
 * back. QEMU's own dialect also has strings in single quotes. Arrays and
 * numbers are carried along as text and not looked into.
 */
#include "launch_opts.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "base/cleanup.h"

/* QEMU nests driver nodes a few levels deep; this only stops nonsense. */
enum { JSON_DEPTH_MAX = 16 };

static void json_freep(json_t **j)
{
    json_decref(*j);
}

/* Copies one string (s at its quote) with double quotes; returns what comes
 * behind it, NULL when it does not end or memory is out. */
static const char *requote(const char *s, struct buf *b)
{
    char quote = *s++;

    if (buf_puts(b, "\"") < 0)
        return NULL;
    while (*s != quote) {
        char put[3] = {*s++, '\0', '\0'};

        if (put[0] == '\\' && *s == '\'')
            put[0] = *s++;
        else if (put[0] == '\\' && *s)
            put[1] = *s++;
        else if (put[0] == '"')
            memcpy(put, "\\\"", sizeof(put));
        if (put[0] == '\0' || buf_puts(b, put) < 0)
            return NULL;
    }
    return buf_puts(b, "\"") < 0 ? NULL : s + 1;
}

static int to_plain_json(const char *s, struct buf *b)
{
    while (*s) {
        if (*s == '\'' || *s == '"') {
            s = requote(s, b);
            if (!s)
                return -1;
        } else if (buf_append_u8(b, (uint8_t)*s++) < 0) {
            return -1;
        }
    }
    return 0;
}

static int flatten(struct opts *o, const json_t *obj, const char *prefix,
                   int depth, struct qstill_error *err);

static int flatten_member(struct opts *o, const json_t *v, const char *key,
                          int depth, struct qstill_error *err)
{
    CLEANUP(freep) char *text = NULL;

    if (json_is_string(v))
        return opts_append(o, key, json_string_value(v), OPTS_STRING, err);
    if (json_object_size(v) > 0)
        return flatten(o, v, key, depth + 1, err);
    text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
    if (!text)
        return err_nomem(err);
    return opts_append(o, key, text, OPTS_LITERAL, err);
}

static int flatten(struct opts *o, const json_t *obj, const char *prefix,
                   int depth, struct qstill_error *err)
{
    const char *name;
    json_t *v;

    if (depth > JSON_DEPTH_MAX)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "a JSON option is nested more than %d deep",
                       JSON_DEPTH_MAX);
    json_object_foreach((json_t *)obj, name, v)
    {
        char key[OPTS_KEY_MAX];
        int n = snprintf(key, sizeof(key), "%s%s%s", prefix, *prefix ? "." : "",
                         name);

        if (n < 0 || (size_t)n >= sizeof(key) || strchr(name, '.') || !*name)
            return err_set(err, QSTILL_E_PRECONDITION,
                           "a JSON option has the member name \"%.40s\"", name);
        if (flatten_member(o, v, key, depth, err) < 0)
            return err->code;
    }
    return 0;
}

int opts_parse_json(struct opts *o, const char *text, struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf b = BUF_INIT;
    CLEANUP(json_freep) json_t *root = NULL;
    json_error_t jerr;

    if (to_plain_json(text, &b) == 0)
        root = json_loadb((const char *)b.data, b.len, JSON_REJECT_DUPLICATES,
                          &jerr);
    if (!json_is_object(root))
        return err_set(err, QSTILL_E_PRECONDITION,
                       "an option is no valid JSON: %.60s", text);
    return flatten(o, root, "", 0, err);
}

/* The object that holds the last part of a dotted key; makes what is missing
 * on the way. NULL when something else stands there, or memory is out. */
static json_t *descend(json_t *obj, const char *key, const char **leaf)
{
    const char *dot;

    for (; (dot = strchr(key, '.')); key = dot + 1) {
        CLEANUP(freep) char *part = strndup(key, (size_t)(dot - key));
        json_t *next = part ? json_object_get(obj, part) : NULL;

        if (part && !next && json_object_set_new(obj, part, json_object()) == 0)
            next = json_object_get(obj, part);
        if (!json_is_object(next))
            return NULL;
        obj = next;
    }
    *leaf = key;
    return obj;
}

static json_t *pair_value(const struct opts_pair *p)
{
    json_error_t jerr;

    if (p->kind == OPTS_LITERAL)
        return json_loads(p->value, JSON_DECODE_ANY, &jerr);
    return json_string(p->value);
}

int opts_emit_json(const struct opts *o, char **out, struct qstill_error *err)
{
    CLEANUP(json_freep) json_t *root = json_object();
    char *text;
    size_t i;

    for (i = 0; i < o->count; i++) {
        const char *leaf = NULL;
        json_t *obj = descend(root, o->pairs[i].key, &leaf);
        json_t *v = pair_value(&o->pairs[i]);

        if (!v)
            return err_set(err, QSTILL_E_PRECONDITION,
                           "%s cannot be written as JSON", o->pairs[i].value);
        if (!obj || json_object_set_new(obj, leaf, v) < 0) {
            if (!obj)
                json_decref(v);
            return err_set(err, QSTILL_E_FAILED,
                           "an option cannot be put together at %s",
                           o->pairs[i].key);
        }
    }
    text = json_dumps(root, JSON_COMPACT);
    if (!text)
        return err_nomem(err);
    *out = text;
    return 0;
}
