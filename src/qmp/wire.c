/* SPDX-License-Identifier: MIT */
#include "wire.h"

#include <string.h>

void wire_fini(struct wire *w)
{
    buf_fini(&w->in);
    *w = (struct wire)WIRE_INIT;
}

static void begin_anew(struct wire *w)
{
    w->depth = w->values = 0;
    w->in_string = w->escaped = false;
}

/* Moves the rest to the front, when that frees at least as much as it moves:
 * so all bytes together are moved at most once per byte fed. */
static void compact(struct wire *w)
{
    if (w->start == 0 || w->start < w->in.len - w->start)
        return;
    buf_consume(&w->in, w->start);
    w->scan -= w->start;
    w->start = 0;
}

int wire_feed(struct wire *w, const void *data, size_t len,
              struct qstill_error *err)
{
    compact(w);
    if (buf_append(&w->in, data, len) < 0)
        return err_nomem(err);
    return 0;
}

/* Passes over the white space between objects. The peer's first other byte must
 * open one. */
static int find_start(struct wire *w, struct qstill_error *err)
{
    while (w->scan < w->in.len) {
        uint8_t c = w->in.data[w->scan];

        if (c == '{')
            break;
        if (c != ' ' && c != '\t' && c != '\r' && c != '\n')
            return err_set(err, QSTILL_E_CORRUPT,
                           "byte 0x%02x where a JSON object should begin", c);
        w->scan++;
    }
    w->start = w->scan;
    return 0;
}

static void scan_in_string(struct wire *w, uint8_t c)
{
    if (w->escaped)
        w->escaped = false;
    else if (c == '\\')
        w->escaped = true;
    else if (c == '"')
        w->in_string = false;
}

static void scan_byte(struct wire *w, uint8_t c)
{
    switch (c) {
    case '"':
        w->in_string = true;
        break;
    case '{':
    case '[':
        w->depth++;
        w->values++;
        break;
    case ',':
    case ':':
        w->values++;
        break;
    case '}':
    case ']':
        w->depth--; /* which kind it closes is jansson's to judge */
        break;
    default:
        break;
    }
}

/* Goes on to the end of the object at `start`; *whole tells whether it is
 * there. */
static int scan_object(struct wire *w, bool *whole, struct qstill_error *err)
{
    *whole = false;
    while (w->scan < w->in.len && !*whole) {
        uint8_t c = w->in.data[w->scan++];

        if (w->in_string)
            scan_in_string(w, c);
        else
            scan_byte(w, c);
        if (w->depth > WIRE_DEPTH_MAX)
            return err_set(err, QSTILL_E_CORRUPT,
                           "JSON nested more than %d deep", WIRE_DEPTH_MAX);
        if (w->values > WIRE_VALUES_MAX)
            return err_set(err, QSTILL_E_CORRUPT,
                           "JSON object of more than %u values",
                           WIRE_VALUES_MAX);
        if (w->scan - w->start > WIRE_MESSAGE_MAX)
            return err_set(err, QSTILL_E_CORRUPT,
                           "JSON object of more than %u bytes",
                           WIRE_MESSAGE_MAX);
        *whole = w->depth == 0;
    }
    return 0;
}

static int decode(const uint8_t *data, size_t len, json_t **out,
                  struct qstill_error *err)
{
    json_error_t why;
    json_t *v;

    v = json_loadb((const char *)data, len, JSON_REJECT_DUPLICATES, &why);
    if (!v && json_error_code(&why) == json_error_numeric_overflow)
        v = json_loadb((const char *)data, len,
                       JSON_REJECT_DUPLICATES | JSON_DECODE_INT_AS_REAL, &why);
    if (!v && json_error_code(&why) == json_error_out_of_memory)
        return err_nomem(err);
    if (!v)
        return err_set(err, QSTILL_E_CORRUPT,
                       "bad JSON (error %d at byte %d of %zu)",
                       (int)json_error_code(&why), why.position, len);
    *out = v;
    return 0;
}

int wire_next(struct wire *w, json_t **out, struct qstill_error *err)
{
    json_t *v = NULL;
    bool whole;

    if (w->depth == 0 && find_start(w, err) < 0)
        return err->code;
    if (scan_object(w, &whole, err) < 0)
        return err->code;
    if (whole && decode(w->in.data + w->start, w->scan - w->start, &v, err) < 0)
        return err->code;
    if (whole) {
        w->start = w->scan;
        begin_anew(w);
    }
    *out = v;
    return 0;
}

bool wire_skip_past(struct wire *w, uint8_t mark)
{
    uint8_t *at = NULL;

    if (w->in.len > w->start)
        at = memchr(w->in.data + w->start, mark, w->in.len - w->start);
    w->start = at ? (size_t)(at - w->in.data) + 1 : w->in.len;
    w->scan = w->start;
    begin_anew(w);
    compact(w);
    return at != NULL;
}
