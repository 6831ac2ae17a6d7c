/* SPDX-License-Identifier: MIT */
/* What the two files of the stream's capture share; one thread uses it. */
#ifndef QSTILL_MEMSTATE_CAPTURE_STREAM_IMPL_H
#define QSTILL_MEMSTATE_CAPTURE_STREAM_IMPL_H

#include "base/buf.h"
#include "memstate/capture_impl.h"
#include "memstate/chunk_write.h"
#include "memstate/stream_parse.h"

#define STREAM_OPEN_MAX 8u

struct page_state {
    uint64_t *seen;    /* bit per page: came, zero or not */
    uint64_t *written; /* bit per page: the file holds data there */
    uint64_t *sums;    /* precopy: per page, of its present content; mapped,
                          so that what is never touched takes no memory */
    size_t sums_len;
};

struct stream {
    int fd;
    enum capture_flavour flavour;
    struct stream_parser *parser;
    struct capture *capture;
    struct chunk_writer *writer;
    struct chunk *open[STREAM_OPEN_MAX]; /* the one used last comes first */
    unsigned open_count;
    struct page_state *pages; /* per block */
    size_t block_count;
    struct buf tail; /* device state, from its header on */
    uint64_t written_pages;
    uint64_t longest_ns; /* without reading */
    uint8_t *input;
};

/* ------------------------------------------------- capture_stream_pages.c */

/* Events of the parser; `user` is the struct stream. A page that is not zero,
 * and one that is: told so or found to be. */
int stream_on_block(void *user, unsigned index, const char *id, uint64_t size,
                    struct qstill_error *err);
int stream_on_page(void *user, unsigned index, uint64_t offset,
                   const uint8_t *data, struct qstill_error *err);
int stream_on_zero(void *user, unsigned index, uint64_t offset,
                   struct qstill_error *err);
/* All chunks that are still open go to the writer. */
int stream_flush(struct stream *s, struct qstill_error *err);
/* Is that what the file has of the page? NULL: zeros. Precopy only. */
bool stream_same_page(void *user, unsigned index, uint64_t page,
                      const uint8_t *data);
void stream_pages_fini(struct stream *s);

#endif
