/* SPDX-License-Identifier: MIT */
/*
 * A parser of JSON texts (RFC 8259) that is made for many small files: a store
 * may hold hundreds of manifests, and each verb reads them all. Values are in
 * one arena, strings stay in the text. Does no I/O.
 *
 * Refused, besides what is no JSON: strings that hold a NUL or are no UTF-8, an
 * object that has a member twice, numbers that a value cannot hold, and what
 * goes beyond the limits below.
 */
#ifndef QSTILL_BASE_JSON_PARSE_H
#define QSTILL_BASE_JSON_PARSE_H

#include <stdbool.h>
#include <stdint.h>

#include "arena.h"
#include "error.h"

/* Our files nest 5 deep. The parser recurses, some 200 bytes of stack a level.
 */
#define JSON_DEPTH_MAX 64
/* Members of one object: ours have 30. They are compared with one another. */
#define JSON_MEMBERS_MAX 128

enum json_kind {
    JSON_NULL_VALUE,
    JSON_BOOLEAN,
    JSON_INTEGER_VALUE,
    JSON_REAL_VALUE,
    JSON_STRING_VALUE,
    JSON_ARRAY_VALUE,
    JSON_OBJECT_VALUE
};

struct json_value {
    enum json_kind kind;
    bool asked;                    /* for json_in_strict() */
    const char *key;               /* of an object's member, else NULL */
    const struct json_value *next; /* behind it in its array or object */
    union {
        bool boolean;
        int64_t integer;
        double real;
        const char *string;
        struct {
            const struct json_value *first;
            size_t count;
        } items; /* of an array or object */
    };
};

/*
 * Parses text[0..len), of which text[len] must be writable, too; it is changed,
 * and must live as long as the values. They are in `arena`. CORRUPT says in
 * which line it is no such text.
 */
int json_parse(char *text, size_t len, struct arena *arena,
               const struct json_value **out, struct qstill_error *err);

/* NULL when `v` is no object, or has no such member. */
const struct json_value *json_member(const struct json_value *v,
                                     const char *key);

/* Bytes of the UTF-8 sequence of more than one byte at `text`, or 0. The text
 * ends with a 0 byte, which is no continuation. */
size_t json_utf8_length(const char *text);

#endif
