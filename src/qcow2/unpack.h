/* SPDX-License-Identifier: MIT */
/*
 * Compressed clusters that are wanted in parts. Layers above with smaller
 * clusters can cut one into thousands of them: it is read and inflated once,
 * not once for each. Whoever walks over a guest's disk in order comes back to a
 * cluster only from those that lie inside it, each of another layer with
 * smaller clusters: the last few are all that have to be kept.
 */
#ifndef QSTILL_QCOW2_UNPACK_H
#define QSTILL_QCOW2_UNPACK_H

#include "base/aio.h"
#include "image.h"

struct unpack;

/* Who waits for one. */
struct unpack_wait {
    void (*ready)(struct unpack_wait *w);
    struct unpack_wait *next;
};

/* A cluster is 2 MiB at most. */
#define UNPACK_KEPT 4u

/* The cluster that `e` is a part of: one of `kept`, or a new one, which is then
 * one of these. NULL: out of memory. All are put back in the end. */
struct unpack *unpack_get(struct unpack *kept[UNPACK_KEPT],
                          const struct image *img, const struct extent *e);
void unpack_put(struct unpack **u);

/* Calls w->ready, now or from aio_wait(). */
void unpack_start(struct unpack *u, struct aio *aio, struct unpack_wait *w);
/* Instead of that: reads at once, on any thread, also on several. */
void unpack_now(struct unpack *u, const struct io *io);

/* Of one that is ready: `len` bytes from byte `skip` of the cluster on, or why
 * there are none. */
int unpack_copy(const struct unpack *u, uint8_t *out, uint64_t skip, size_t len,
                struct qstill_error *err);

/* The same for a whole cluster that was read already. */
int unpack_whole(const struct image *img, uint64_t host, const uint8_t *packed,
                 size_t packed_len, uint8_t *out, struct qstill_error *err);

#endif
