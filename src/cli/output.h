/* SPDX-License-Identifier: MIT */
/*
 * JSON on a stdio stream, written as it comes: a map of a million extents
 * needs no tree in memory. Keys are ours; values may be any bytes: what is not
 * UTF-8 becomes U+FFFD, so that every line we print is valid JSON.
 */
#ifndef QSTILL_CLI_OUTPUT_H
#define QSTILL_CLI_OUTPUT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define OUT_DEPTH_MAX 8 /* we never nest deeper; asserted */

struct out {
    FILE *f;
    unsigned depth;
    char closer[OUT_DEPTH_MAX]; /* '}' or ']' of each open level */
    bool filled[OUT_DEPTH_MAX]; /* that level has a member already */
};
#define OUT_INIT(stream)                                                       \
    {                                                                          \
        (stream), 0, {0},                                                      \
        {                                                                      \
            0                                                                  \
        }                                                                      \
    }

/* `key` is NULL for the outermost value and for the elements of an array. The
 * end of the outermost value ends the line. */
void out_object(struct out *o, const char *key);
void out_array(struct out *o, const char *key);
void out_end(struct out *o); /* of the innermost open object or array */

void out_text(struct out *o, const char *key, const char *value); /* or null */
void out_text_n(struct out *o, const char *key, const char *value, size_t n);
void out_uint(struct out *o, const char *key, uint64_t value);
void out_int(struct out *o, const char *key, int64_t value);
void out_bool(struct out *o, const char *key, bool value);
/* Three decimals at most; null when it is no finite number. */
void out_real(struct out *o, const char *key, double value);
void out_null(struct out *o, const char *key);

#endif
