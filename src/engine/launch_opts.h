/* SPDX-License-Identifier: MIT */
/*
 * The value of one QEMU option as pairs of dotted key and value, whichever way
 * it was written: "driver=raw,file.filename=/x" or
 * {"driver":"raw","file":{"filename":"/x"}}. It is written back in the form it
 * came in, and what was not changed keeps its text.
 *
 * Refuses JSON that does not fit dotted keys (a '.' inside a name).
 */
#ifndef QSTILL_ENGINE_LAUNCH_OPTS_H
#define QSTILL_ENGINE_LAUNCH_OPTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum opts_kind {
    OPTS_STRING,  /* key=value, or a JSON string */
    OPTS_LITERAL, /* JSON only: number, true, null, [...]; value is its text */
    OPTS_BARE,    /* keyval only: no '='; the key is NULL for the implied one */
};

struct opts_pair {
    char *key; /* NULL: the value of the implied key */
    char *value;
    enum opts_kind kind;
};

struct opts {
    struct opts_pair *pairs;
    size_t count;
    size_t cap;
    char *implied; /* what the bare first word means ("driver"), or NULL */
    bool json;
};

/* Options larger than this are refused: QEMU's longest are a few KiB. */
enum { OPTS_TEXT_MAX = 128 * 1024, OPTS_PAIRS_MAX = 4096, OPTS_KEY_MAX = 512 };

/* `implied` may be NULL. PRECONDITION when the text is no valid option. */
int opts_parse(struct opts *out, const char *text, const char *implied,
               struct qstill_error *err);
void opts_fini(struct opts *o);
int opts_emit(const struct opts *o, char **out, struct qstill_error *err);

/* The last value of the key, NULL without one; a bare keyval word is "on". */
const char *opts_get(const struct opts *o, const char *key);
/* Whether the key itself or anything below it ("key.x") is there. */
bool opts_has(const struct opts *o, const char *key);
/* Whether the key, which may be NULL, ends in this word: "a.b" in "b". */
bool opts_key_is(const char *key, const char *word);
/* Drops the key and everything below it. */
void opts_del(struct opts *o, const char *key);

/* Replaces the value of the key itself; what stands below it stays. */
int opts_set(struct opts *o, const char *key, const char *value,
             struct qstill_error *err);
int opts_set_size(struct opts *o, const char *key, uint64_t value,
                  struct qstill_error *err);
int opts_set_bool(struct opts *o, const char *key, bool value,
                  struct qstill_error *err);

/* Appends one pair as it is; for the parsers. Takes nothing over. */
int opts_append(struct opts *o, const char *key, const char *value,
                enum opts_kind kind, struct qstill_error *err);

/* launch_json.c, the home of the JSON form. */
int opts_parse_json(struct opts *o, const char *text, struct qstill_error *err);
int opts_emit_json(const struct opts *o, char **out, struct qstill_error *err);

#endif
