/* SPDX-License-Identifier: MIT */
/*
 * Reads chunks (1 MiB of a RAM block) of a file set in the order asked for,
 * ahead of the one who takes them, and checks each against its sum. Chunks
 * that are holes in the file are not read.
 */
#ifndef QSTILL_MEMSTATE_CHUNK_READ_H
#define QSTILL_MEMSTATE_CHUNK_READ_H

#include "base/error.h"
#include "memstate/ramset.h"

/* Chunks first... first + count - 1 of a block. */
struct chunk_span {
    unsigned index;
    uint64_t first;
    uint64_t count;
};

struct chunk_reader;

/* `set` stays open. Belongs to the thread that opens it. */
int chunk_reader_open(struct chunk_reader **out, const struct ramset *set,
                      enum ramset_cache cache, struct qstill_error *err);
void chunk_reader_close(struct chunk_reader *r); /* NULL is fine */
void chunk_reader_closep(struct chunk_reader **r);

/* Behind what was asked for before. */
int chunk_reader_add(struct chunk_reader *r, const struct chunk_span *span,
                     struct qstill_error *err);

struct chunk_view {
    unsigned index;
    uint64_t number; /* of the chunk in the block */
    size_t pages;
    const uint8_t *data; /* NULL: a hole, all zero */
    struct ramset_map nonzero;
};

/*
 * The next chunk; its data stays until the next call. *end is set when there
 * is none. CORRUPT names the file and the place when the chunk does not match
 * its sum or cannot be read.
 */
int chunk_reader_next(struct chunk_reader *r, struct chunk_view *out, bool *end,
                      struct qstill_error *err);

#endif
