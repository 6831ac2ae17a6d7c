/* SPDX-License-Identifier: MIT */
/*
 * Writes what a guest sees through a chain into one new image, which stands on
 * nothing. The chain is only read, under QEMU's locks for readers: a VM that
 * has its top open for writing makes it BUSY.
 *
 * The new image is made beside its name (.NAME.flatten), flushed, and renamed;
 * an existing name is never replaced. What a killed one leaves is removed by
 * the next one of the same name.
 *
 * qcow2: version 3, with the cluster size and kind of compression of the top
 * (64 KiB and zlib when that is raw). What reads as zeros stays a hole, also
 * where the chain has it as data.
 */
#ifndef QSTILL_QCOW2_FLATTEN_H
#define QSTILL_QCOW2_FLATTEN_H

#include "base/buf.h"
#include "chain.h"

struct flatten_request {
    const char *top;
    enum qcow2_format format; /* of top */
    const char *out;
    enum qcow2_format out_format;
    bool compress; /* qcow2 only */
    uint64_t bwlimit;
    struct aio_stop stop; /* asked while flatten_open() reads the tables */
};

struct flatten;

/* Locks, reads all tables, writes nothing. BUSY: the name exists. */
int flatten_open(struct flatten **out, const struct io *io,
                 const struct flatten_request *request,
                 struct qstill_error *err);
int flatten_describe(const struct flatten *f, struct buf *out,
                     struct qstill_error *err);
/* After a failure nothing of the new file is left. */
int flatten_step(struct flatten *f, bool *done, struct qstill_error *err);
int flatten_fd(struct flatten *f); /* readable when a step has work; or -1 */
/* Cancels when not done. NULL is fine. */
void flatten_close(struct flatten *f);
void flatten_closep(struct flatten **f);

struct flatten_count {
    uint64_t total;  /* guest bytes to be looked at */
    uint64_t done;   /* of these */
    uint64_t shared; /* of these, shared by the filesystem */
};
struct flatten_count flatten_count(const struct flatten *f);

#endif
