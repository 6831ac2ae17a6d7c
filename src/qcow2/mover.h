/* SPDX-License-Identifier: MIT */
/*
 * Carries out moves: many reads and large writes in flight, in bounded memory;
 * or, where the filesystem can share blocks between files, no bytes at all.
 * Neighbours in the target are written together. Nothing is flushed here.
 */
#ifndef QSTILL_QCOW2_MOVER_H
#define QSTILL_QCOW2_MOVER_H

#include "fill.h"
#include "rewrite.h"

struct mover;

struct mover_options {
    const struct chain *chain;
    const struct extents *view; /* for MOVE_GUEST; outlives the mover */
    struct image *target;       /* open for writing */
    const struct moves *moves;  /* mostly in order of dst; outlives the mover */
    uint64_t bwlimit;           /* bytes per second, 0: none */
    bool share;                 /* try to share blocks first */
    bool gentle; /* others wait for the same disk: little in flight at once */
    /* Aligned blocks of so many bytes that turn out to hold zeros only are not
     * written but told, by their place in the target. 0: all are written. */
    size_t zero_block;
    void (*zeros)(void *user, uint64_t dst, uint64_t len); /* or NULL */
    void *user;
};

int mover_open(struct mover **out, const struct mover_options *o,
               struct qstill_error *err);
/* Waits for what is in flight. */
void mover_close(struct mover *m);
void mover_closep(struct mover **m);

/* Some work, then *done says whether all is written. Sleeps for I/O, but not
 * longer than about a tenth of a second. */
int mover_step(struct mover *m, bool *done, struct qstill_error *err);

/* Tries to share the first move that may be; it is shared again when its turn
 * comes. */
bool mover_can_share(struct mover *m);

struct mover_count {
    uint64_t done;   /* bytes of moves carried out, in either way */
    uint64_t shared; /* of these, without copying */
};
struct mover_count mover_count(const struct mover *m);

/* Readable when a step has something to do; -1 when that is now. */
int mover_fd(struct mover *m);

#endif
