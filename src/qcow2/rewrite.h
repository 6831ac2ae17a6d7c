/* SPDX-License-Identifier: MIT */
/*
 * The plan of giving one qcow2 image a new content, made before a byte is
 * written. "Target" is the image whose file is kept; its new content is a view
 * of several layers, of which the target is one (or none, for a new file).
 *
 * Everything new goes into clusters that the target does not use: data, the L2
 * tables that change, L1, the refcount blocks that change, the refcount table.
 * The old state therefore stands until one sector, the header, is replaced;
 * after that the new one does, with all refcounts right. There is no moment in
 * between, and nothing to undo but the length of the file.
 *
 * With `overwrite` the bytes of other layers go into the clusters that the
 * target has there already, where nothing else refers to these: no new room, no
 * tables, nothing to free. The target alone then reads as neither the old nor
 * the new until all is written. Only places that the layers above mask are
 * written, so what is seen through them never changes.
 */
#ifndef QSTILL_QCOW2_REWRITE_H
#define QSTILL_QCOW2_REWRITE_H

#include "alloc.h"
#include "bitmap_join.h"
#include "chain.h"

/* Bytes that have to come into the target's file at `dst`, `len` of them. */
struct move {
    uint64_t from; /* guest offset in the view, or offset in a layer's file */
    uint64_t dst;
    uint64_t len;
    union {
        uint32_t take;  /* of a layer's file; zeros up to len */
        uint32_t parts; /* MOVE_GUEST, in a list: 0, or a bit for each part of
                           1 << part_bits bytes; only those move */
    };
    uint16_t layer; /* MOVE_GUEST: `from` is a guest offset */
    bool over;      /* dst is a cluster that is in use */
    uint8_t part_bits;
};
#define MOVE_GUEST UINT16_MAX

struct moves {
    struct move *lots; /* to be walked over: they may have parts */
    size_t n;
    size_t cap;
    /* Pieces of the same aligned `block` in the target are kept together in
     * one, as parts: a cluster can have 16 of them. 0: none are. */
    uint64_t block;
};
#define MOVES_TOGETHER (1ull << 63) /* a block: any neighbours */

/* What is in a list, piece by piece:
 *
 *     for (struct move_walk w = moves_walk(x); w.on; moves_next(&w))
 *         ... w.m ...
 */
struct move_walk {
    bool on;       /* there is one: */
    struct move m; /* without parts */

    const struct moves *x;
    size_t i;
    unsigned part; /* of x->lots[i]; those before it are done */
};
struct move_walk moves_walk(const struct moves *x);
void moves_next(struct move_walk *w);

/* A run of clusters. */
struct run {
    uint64_t first;
    uint64_t count;
};

struct runs {
    struct run *v;
    size_t n;
    size_t cap;
};

/* A piece of metadata that is written as it stands here. */
struct new_table {
    uint64_t index; /* of the L1 entry or the refcount block */
    uint64_t host;
    uint8_t *bytes; /* one cluster */
};

struct new_tables {
    struct new_table *v;
    size_t n;
    size_t cap;
};

struct rewrite {
    /* the question; set by the caller */
    struct image *target;
    struct aio *aio;
    const struct chain *chain;  /* whose layers the view names */
    const struct extents *view; /* the new content */
    uint16_t own;               /* the target's layer there, or REWRITE_NEW */
    bool top;                   /* that is the view's first */
    uint64_t size;              /* new virtual size */
    bool has_backing;           /* of the result */
    uint64_t backing_size;
    bool backing_unknown;           /* it has at most that size */
    const struct bitmap_join *join; /* its bitmaps; NULL: as they are */
    bool overwrite;                 /* clusters that only it refers to */

    /* the answer */
    bool needs_below; /* a move reads what falls through the view */
    bool tables;      /* there are new tables; else the header is enough */
    uint64_t over;    /* bytes of the moves that go over clusters in use */
    struct moves moves;
    struct new_tables l2;
    struct new_tables refblocks;
    struct new_tables bitmaps; /* all that belongs to them */
    uint64_t bitmap_dir_size;
    uint64_t bitmap_dir_offset;
    uint64_t *l1;
    uint32_t l1_size;
    uint64_t l1_offset;
    uint64_t *reftable;
    uint32_t reftable_clusters;
    uint64_t reftable_offset;
    struct runs freed; /* unused once the header is replaced */
    uint64_t old_end;  /* bytes: of the file as it is, */
    uint64_t end;      /* and as it will be */
    uint64_t bytes;    /* of the moves */

    struct refs refs;
    struct refblocks stored;
    struct refs_report report;
    struct alloc alloc;
};
#define REWRITE_NEW UINT16_MAX

/* PRECONDITION or CORRUPT when the target cannot be rewritten. Reads only. */
int rewrite_plan(struct rewrite *rw, struct qstill_error *err);
void rewrite_fini(struct rewrite *rw);

/* The new header: the target's with the new places and the new size. */
void rewrite_header(const struct rewrite *rw, struct qcow2_header *h);

#endif
