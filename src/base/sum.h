/* SPDX-License-Identifier: MIT */
/*
 * Checksums (XXH3, 64 bits): they find damage, they prove no authorship. The
 * one home of libxxhash.
 */
#ifndef QSTILL_BASE_SUM_H
#define QSTILL_BASE_SUM_H

#include <stddef.h>
#include <stdint.h>

uint64_t sum_bytes(const void *data, size_t len, uint64_t seed);

/* The same over bytes that come in pieces, with seed 0. */
struct sum_stream;
struct sum_stream *sum_stream_new(void); /* NULL: out of memory */
void sum_stream_add(struct sum_stream *s, const void *data, size_t len);
uint64_t sum_stream_value(const struct sum_stream *s);
void sum_stream_freep(struct sum_stream **s);

#endif
