/* SPDX-License-Identifier: MIT */
/*
 * The pieces of a migration stream (stream.h), appended to a buffer. Each
 * returns -1 when out of memory. Happy path of a whole stream:
 *   stream_put_head, stream_begin_ram, stream_put_block for each block,
 *   stream_end_section, stream_begin_section(PART), records,
 *   stream_end_section, ..., stream_begin_section(END), stream_end_section,
 *   the sections of a device state from behind its header on.
 */
#ifndef QSTILL_MEMSTATE_STREAM_WRITE_H
#define QSTILL_MEMSTATE_STREAM_WRITE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "memstate/stream.h"

/* QEMU hands out ids from 0 upwards and confuses 0 with "none" when it looks
 * one up: ours is far from all of them. */
#define STREAM_SECTION_ID 0x7ffffff0u

/* Magic, version, configuration without subsections. */
int stream_put_head(struct buf *b, const char *machine);

/* START of RAM up to the list of blocks of `total` bytes. */
int stream_begin_ram(struct buf *b, uint64_t total);
int stream_put_block(struct buf *b, const char *id, uint64_t size);

int stream_begin_section(struct buf *b, enum stream_item part_or_end);
/* The record that ends a section, and the footer where there are any. */
int stream_end_section(struct buf *b, bool footers);

/*
 * The head of a page record: 4096 bytes of data (STREAM_RAM_PAGE) or one zero
 * byte (STREAM_RAM_ZERO) follow. `id` is NULL when the block is that of the
 * record before.
 */
int stream_put_record(struct buf *b, uint64_t offset, enum stream_flag kind,
                      const char *id);
/* The record's head into raw, for a record without id; returns its length. */
#define STREAM_RECORD_HEAD 8u
void stream_emit_record(uint8_t raw[STREAM_RECORD_HEAD], uint64_t offset,
                        enum stream_flag kind);

/* A vmdescription with nothing in it, so that QEMU does not miss one. */
int stream_put_empty_vmdescription(struct buf *b);

#endif
