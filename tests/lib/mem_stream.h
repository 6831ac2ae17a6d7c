/* SPDX-License-Identifier: MIT */
/* Builds migration streams by hand, and writes down what a parser tells. */
#ifndef QSTILL_TESTS_MEM_STREAM_H
#define QSTILL_TESTS_MEM_STREAM_H

#include "base/buf.h"
#include "memstate/stream_parse.h"
#include "memstate/stream_write.h"

/* Appends bytes given as hex digits; spaces are skipped. */
void mem_stream_hex(struct buf *b, const char *hex);

/* Header, configuration (pc-q35-7.2), START with pc.ram of `pages` pages and
 * rom of 2, footer. */
void mem_stream_start(struct buf *b, uint64_t pages);
/* A page record whose bytes are all `fill` (zero record when fill is 0). */
void mem_stream_page(struct buf *b, uint64_t page, uint8_t fill,
                     const char *id);
/* PART with these two pages: pc.ram 1 filled 0x11, rom 0 filled 0x22. */
void mem_stream_part(struct buf *b);
void mem_stream_end(struct buf *b);
/* Two FULL sections with footers, EOF, and a vmdescription. */
void mem_stream_devices(struct buf *b);

/* The events as lines of text: "block 0 pc.ram 4096", "page 0 8192 11" ... */
extern const struct stream_events mem_stream_log_events;

/* Feeds data in pieces of at most `piece` bytes, as a reader of a pipe does;
 * returns the parser's or its end's code. */
int mem_stream_feed(struct stream_parser *p, const struct buf *data,
                    size_t piece, struct qstill_error *err);

#endif
