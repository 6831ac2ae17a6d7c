/* SPDX-License-Identifier: MIT */
/*
 * Blocks that two files share instead of bytes that are copied (reflink): which
 * moves that can be, before a byte is moved, and what they are made of.
 */
#ifndef QSTILL_QCOW2_SHARE_H
#define QSTILL_QCOW2_SHARE_H

#include "rewrite.h"

/* The unit that the filesystem of `fd` shares; 0: it does not say. */
uint64_t share_unit(int fd);

/*
 * Whether the filesystem of an image that is open for writing shares blocks at
 * all. Then it may have to find new ones for what is written over, and there
 * may be too few: whoever it was that shared them (cp --reflink, a snapshot of
 * the filesystem). Struct sharing below does not answer that: it is about whole
 * blocks of these layers in a file that need not be there yet, and says no
 * where they lie elsewhere, differ in chattr +C, or cannot be asked about.
 */
bool share_is_offered(const struct image *img);

/* What is asked about moves: which of their bytes need not be copied. */
struct share_ask {
    const struct chain *chain;
    const struct extents *view;
    const bool *from; /* by layer: whether it gives */
    uint64_t unit;    /* of the filesystem; 0: nothing can be shared */
    uint64_t granule; /* a multiple of it: what is shared starts and ends at
                         such places of the target */
};

/* So many bytes of the move, from its byte `at` on, can be shared. Looks at
 * `pieces` of files, or as many as it takes to see that it is not nothing. */
uint64_t share_ahead(const struct share_ask *a, const struct move *mv,
                     uint64_t at, size_t pieces);
/* So many bytes from there on, `max` at most, have to be copied before there
 * are some that can be shared; where share_ahead() has none. */
uint64_t share_distance(const struct share_ask *a, const struct move *mv,
                        uint64_t at, uint64_t max);

/* What the layers of a chain could give to a file in `dir`. */
struct sharing {
    const struct chain *chain;
    char *dir;
    bool nocow;    /* what is asked for is so */
    uint64_t unit; /* 0: nothing */
    bool *from;    /* by layer */
};

/* Asks the filesystem for a file at `path` that is like another one (attrs.h),
 * by a file without a name; once for each directory and kind. What cannot be
 * asked cannot be shared. NO_MEMORY alone is an error. */
int sharing_find(struct sharing *s, const struct chain *c, const char *path,
                 int like, struct qstill_error *err);
void sharing_fini(struct sharing *s);
struct share_ask sharing_ask(const struct sharing *s,
                             const struct extents *view);

#endif
