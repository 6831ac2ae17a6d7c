/* SPDX-License-Identifier: MIT */
/* Levenshtein distance over short words; long ones are never near. */
#include "closest.h"

#include <string.h>

#define WORD_MAX 24 /* no option or verb is longer */

static size_t smallest(size_t a, size_t b, size_t c)
{
    size_t m = a < b ? a : b;

    return m < c ? m : c;
}

static size_t distance(const char *a, size_t a_len, const char *b, size_t b_len)
{
    size_t row[WORD_MAX + 1];

    for (size_t j = 0; j <= b_len; j++)
        row[j] = j;
    for (size_t i = 1; i <= a_len; i++) {
        size_t diagonal = row[0];

        row[0] = i;
        for (size_t j = 1; j <= b_len; j++) {
            size_t above = row[j];

            row[j] = smallest(above + 1, row[j - 1] + 1,
                              diagonal + (a[i - 1] != b[j - 1]));
            diagonal = above;
        }
    }
    return row[b_len];
}

void closest_try(struct closest *c, const char *candidate)
{
    size_t len = strlen(candidate), d;

    if (c->len > WORD_MAX || len > WORD_MAX)
        return;
    d = distance(c->word, c->len, candidate, len);
    if (d >= c->distance || d * 2 >= c->len)
        return;
    c->distance = d;
    c->best = candidate;
}
