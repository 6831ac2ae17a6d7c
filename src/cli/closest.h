/* SPDX-License-Identifier: MIT */
/* "Did you mean": the one word that is nearest to a mistyped one. */
#ifndef QSTILL_CLI_CLOSEST_H
#define QSTILL_CLI_CLOSEST_H

#include <stddef.h>

struct closest {
    const char *word;
    size_t len;
    const char *best; /* NULL while nothing is near enough */
    size_t distance;
};
#define CLOSEST_INIT(word, len)                                                \
    {                                                                          \
        (word), (len), NULL, 3                                                 \
    }

/* Takes `candidate` when it is nearer than all before: fewer than three
 * letters to change, and fewer than half of the word. */
void closest_try(struct closest *c, const char *candidate);

#endif
