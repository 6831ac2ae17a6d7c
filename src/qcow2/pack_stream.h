/* SPDX-License-Identifier: MIT */
/*
 * Where pack.c puts its clusters: two streams of bytes, compressed ones packed
 * without gaps and plain ones, each in runs of the file of its own, written in
 * large pieces.
 */
#ifndef QSTILL_QCOW2_PACK_STREAM_H
#define QSTILL_QCOW2_PACK_STREAM_H

#include "fresh.h"
#include "image.h"

struct pack_streams;

/* All must outlive it; `aio` is closed before. */
int pack_streams_open(struct pack_streams **out, struct aio *aio,
                      struct image *target, struct fresh *fresh,
                      struct qstill_error *err);
void pack_streams_close(struct pack_streams *s);

/* For one chunk: memory to write to without waiting. */
bool pack_streams_have_room(const struct pack_streams *s);
/* Both copy the bytes and count the references. -1: out of memory. */
int pack_put_plain(struct pack_streams *s, const uint8_t *data, uint64_t *host);
int pack_put_packed(struct pack_streams *s, const uint8_t *data, size_t len,
                    uint64_t *host);
/* Sends what is left on its way. Again is fine. */
void pack_streams_finish(struct pack_streams *s);
int pack_streams_error(const struct pack_streams *s, struct qstill_error *err);
uint64_t pack_streams_end(const struct pack_streams *s); /* in whole clusters */

#endif
