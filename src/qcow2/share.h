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

/* Whether `e`, of a file of so many bytes, can be shared at `dst` by a
 * filesystem with that unit. */
bool share_fits(const struct extent *e, uint64_t file_size, uint64_t dst,
                uint64_t unit);

/* The pieces of files that a move is made of, and where each goes. False: fn
 * said so of one, or there are bytes of no file. */
typedef bool share_piece_fn(void *user, const struct extent *e, uint64_t dst);
bool share_pieces(const struct extents *view, const struct move *mv,
                  share_piece_fn *fn, void *user);

/*
 * Whether the filesystem of an image that is open for writing shares blocks at
 * all. Then it may have to find new ones for what is written over, and there
 * may be too few: whoever it was that shared them (cp --reflink, a snapshot of
 * the filesystem). Struct sharing below does not answer that: it is about whole
 * blocks of these layers in a file that need not be there yet, and says no
 * where they lie elsewhere, differ in chattr +C, or cannot be asked about.
 */
bool share_is_offered(const struct image *img);

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
bool sharing_can(const struct sharing *s, const struct extents *view,
                 const struct move *mv);

#endif
