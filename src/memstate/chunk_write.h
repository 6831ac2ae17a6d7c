/* SPDX-License-Identifier: MIT */
/*
 * Brings chunks (1 MiB of a RAM block) into the files of a set: a bounded
 * number of buffers, of which one thread fills some while others are written.
 * Only the pages of a chunk that its map names are written.
 */
#ifndef QSTILL_MEMSTATE_CHUNK_WRITE_H
#define QSTILL_MEMSTATE_CHUNK_WRITE_H

#include "base/error.h"
#include "base/io.h"
#include "memstate/ramset.h"

struct chunk {
    uint8_t *data;          /* RAMSET_CHUNK bytes, page aligned */
    struct ramset_map have; /* the pages to write */
    struct ramset_map zero; /* pages known to be zero, not to be written */
    unsigned index;         /* of the block */
    uint64_t number;        /* of the chunk in the block */
    size_t pages;           /* of the chunk: fewer in a block's last one */
};

struct chunk_writer;

/* `buffers` of 1 MiB; at most that much is in flight. Belongs to the thread
 * that opens it. */
int chunk_writer_open(struct chunk_writer **out, struct ramset_writer *set,
                      const struct io *io, unsigned buffers,
                      struct qstill_error *err);
/* Waits for what is in flight. NULL is fine. */
void chunk_writer_close(struct chunk_writer *w);
void chunk_writer_closep(struct chunk_writer **w);

/* A buffer for that chunk, its maps empty and its data whatever it was; waits
 * until one is free. Errors of earlier writes come out here. */
int chunk_writer_get(struct chunk_writer *w, unsigned index, uint64_t number,
                     struct chunk **out, struct qstill_error *err);
/* Gives it back for writing `have`. Short gaps of `zero` pages are filled with
 * zeros and written too. When the same pages are still being written from
 * another buffer, that is waited for. */
int chunk_writer_put(struct chunk_writer *w, struct chunk *c,
                     struct qstill_error *err);
/* Until all that was put is written. */
int chunk_writer_drain(struct chunk_writer *w, struct qstill_error *err);

#endif
