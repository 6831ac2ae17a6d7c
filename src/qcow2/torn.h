/* SPDX-License-Identifier: MIT */
/*
 * The mark of an image that a fold writes over, or was writing over when it
 * broke off, and of those above that go with it: by itself it reads as neither
 * old nor new, and only an image above that masks what is written over may read
 * it. The bits are QEMU's corrupt bit and an autoclear bit of ours: QEMU opens
 * such an image for reading, as a backing file is, and not for writing; whoever
 * repairs it clears both. Version 2 has no room for them: nothing is written
 * over in such an image, nor below it where it goes, too (merge_plan.c).
 */
#ifndef QSTILL_QCOW2_TORN_H
#define QSTILL_QCOW2_TORN_H

#include "base/error.h"
#include "base/io.h"
#include "header.h"

static inline bool torn_is(const struct qcow2_header *h)
{
    return (h->incompatible & QCOW2_INCOMPAT_CORRUPT) != 0 &&
           (h->autoclear & QCOW2_AUTOCLEAR_TORN) != 0;
}

/* PRECONDITION: it is `name` itself that is to be read or changed. */
int torn_refuse(const char *name, struct qstill_error *err);

/* Into the header of a file, one sector, durable; `now` is as it was read. */
int torn_mark(const struct io *io, int fd, const char *name,
              const struct qcow2_header *now, struct qstill_error *err);
/* As it was: for a fold that wrote nothing. */
int torn_unmark(const struct io *io, int fd, const char *name,
                const struct qcow2_header *now, struct qstill_error *err);

/* Of the header that ends it. */
static inline void torn_clear(struct qcow2_header *h)
{
    if (torn_is(h))
        h->incompatible &= ~QCOW2_INCOMPAT_CORRUPT;
    h->autoclear &= ~QCOW2_AUTOCLEAR_TORN;
}

#endif
