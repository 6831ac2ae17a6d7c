/* SPDX-License-Identifier: MIT */
/*
 * Reads a file set into our own memory, on a thread of its own: each chunk is
 * checked against its sum before it is copied, and pages that are zero in the
 * file become zero. The first damage ends it, with the memory half written.
 * Same shape as verify.h.
 */
#ifndef QSTILL_MEMSTATE_LOAD_H
#define QSTILL_MEMSTATE_LOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"
#include "memstate/ramset.h"

struct load;

struct load_place {
    const char *id; /* of the block */
    void *address;
    uint64_t length;
};

struct load_status {
    bool complete;
    uint64_t bytes_done;
    uint64_t bytes_total;
};

/* `dirfd` is used during the call only; the places are copied. PRECONDITION
 * when the set's blocks are not just these, with these lengths. */
int load_open(struct load **out, int dirfd, const struct load_place *places,
              size_t count, struct qstill_error *err);
int load_fd(const struct load *l); /* readable when complete */
void load_poll(struct load *l, struct load_status *status);
/* Valid once complete: the result; `device` gets device.state (appended). */
int load_finish(struct load *l, struct buf *device, struct qstill_error *err);
void load_close(struct load *l); /* cancels and joins; NULL is fine */
void load_closep(struct load **l);

#endif
