/* SPDX-License-Identifier: MIT */
/*
 * Reads what a guest sees into buffers, many at a time: data through O_DIRECT
 * where it can, compressed clusters inflated, zeros and what no layer has as
 * zeros.
 *
 *     fill_begin(f, buffer, room);
 *     fill_guest(fl, f, guest, len);   once or more, one behind the other
 *     fill_start(fl, f);               f->done(f) is called from aio_wait()
 *
 * or, instead of the last, fill_now(f): reads at once, on any thread.
 */
#ifndef QSTILL_QCOW2_FILL_H
#define QSTILL_QCOW2_FILL_H

#include "chain.h"
#include "unpack.h"

/* Memory that whole compressed clusters are read into. That it is kept saves
 * the kernel's part in getting it back, a fifth of such a copy's CPU time. */
#define FILL_SPARES 256u
struct fill_spares {
    uint8_t *v[FILL_SPARES];
    size_t n;
    size_t size; /* of each */
};

/* The fills of one are all started, or all done by fill_now(). */
struct filler {
    struct aio *aio;
    const struct chain *chain;
    const struct extents *view;
    struct extent_walk at;              /* where the last range ended */
    struct unpack *unpack[UNPACK_KEPT]; /* compressed clusters of parts */
    struct fill_spares spares;
};

/* When none of its fills is under way any more. */
void filler_fini(struct filler *fl);

struct fill_piece;
struct fill {
    void (*done)(struct fill *f);
    void *user;
    uint8_t *data;
    size_t len; /* filled so far */
    size_t room;
    int error; /* 0 or a negative code */
    struct qstill_error why;

    struct filler *filler;
    struct fill_piece *pieces;
    size_t count;
    size_t cap;
    size_t pending;
};

void fill_begin(struct fill *f, void *data, size_t room);
void fill_fini(struct fill *f);

/* Appends `len` bytes of the guest from `guest` on; -1: out of memory. */
int fill_guest(struct filler *fl, struct fill *f, uint64_t guest, size_t len);
/* Appends `take` bytes as they stand in the file of a layer, and zeros up to
 * `len`; past the end of the file there are zeros, too. */
int fill_raw(struct filler *fl, struct fill *f, uint16_t layer, uint64_t off,
             size_t take, size_t len);

/* Calls `done` at once when there is nothing to wait for. */
void fill_start(struct filler *fl, struct fill *f);

/* The result is in f->error, too; `done` is not called. */
int fill_now(const struct io *io, struct fill *f);

#endif
