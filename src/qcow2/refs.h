/* SPDX-License-Identifier: MIT */
/*
 * References, counted from the tables and never believed from the refcounts;
 * and the refcounts as stored. Counting goes on after damage and reports it,
 * so that check can tell all of it and a merge can refuse the first.
 */
#ifndef QSTILL_QCOW2_REFS_H
#define QSTILL_QCOW2_REFS_H

#include "image.h"

/* What was found; merges refuse when corruptions > 0. */
struct refs_report {
    uint64_t corruptions;
    uint64_t marks; /* of these: wrong COPIED marks */
    uint64_t leaks;
    uint64_t allocated;
    uint64_t fragmented;
    uint64_t compressed;
    uint64_t end; /* of the last cluster in use */
    char **messages;
    size_t message_count; /* at most REFS_MAX_MESSAGES */
    bool nomem;
};
#define REFS_MAX_MESSAGES 100u

void refs_report_fini(struct refs_report *r);
/* One more message, when there is room. */
void refs_say(struct refs_report *r, const char *fmt, ...) PRINTF_LIKE(2, 3);

struct refs {
    uint32_t *count; /* by cluster; saturates */
    uint64_t n;      /* clusters: those of the file and one more */
};

void refs_fini(struct refs *refs);

/* The stored refcounts. */
struct refblocks {
    const struct qcow2_header *h;
    uint64_t *table; /* offsets, 0: no block */
    size_t table_len;
    uint8_t **block; /* NULL where all are zero; entries may name one twice */
    uint8_t **owned; /* what is to be freed */
    size_t owned_count;
};

void refblocks_fini(struct refblocks *b);
/* `b` must be zeroed. Blocks outside of the file are reported and left out. No
 * more memory is taken than there is data in the file: a table may name a
 * million holes, or one block a million times. */
int refblocks_load(const struct image *img, struct refblocks *b,
                   struct refs_report *report, struct qstill_error *err);
uint64_t refblocks_get(const struct refblocks *b, uint64_t cluster);
/* From that cluster on the first that is in a block with anything but zeros;
 * UINT64_MAX: none. */
uint64_t refblocks_seek(const struct refblocks *b, uint64_t cluster);

/*
 * Loads the stored refcounts and counts all references; `refs` and `stored`
 * must be zeroed, `img` must outlive them. Damage, also of the COPIED marks of
 * the active tables, goes to the report. Fails only when the file cannot be
 * read or memory is out.
 */
int refs_count(struct image *img, struct aio *aio, struct refs *refs,
               struct refblocks *stored, struct refs_report *report,
               struct qstill_error *err);

/* One count within a block. */
uint64_t refcount_get(const uint8_t *block, unsigned order, uint64_t i);
void refcount_set(uint8_t *block, unsigned order, uint64_t i, uint64_t v);

/* Counted against stored: leaks and corruptions, with a message each. */
void refs_compare(const struct image *img, const struct refs *refs,
                  const struct refblocks *stored, struct refs_report *report);

#endif
