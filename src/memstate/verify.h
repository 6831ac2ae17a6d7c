/* SPDX-License-Identifier: MIT */
/*
 * Checks a whole file set against its sums, on a thread of its own; the first
 * damage by file and offset ends it. Same shape as restore.h.
 */
#ifndef QSTILL_MEMSTATE_VERIFY_H
#define QSTILL_MEMSTATE_VERIFY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "memstate/ramset.h"

struct verify;

struct verify_options {
    int dirfd;        /* of the file set; duplicated */
    uint64_t bwlimit; /* bytes per second; 0: none */
    enum ramset_cache
        cache; /* RAMSET_DIRECT by default: the disk, not a cache */
};

struct verify_status {
    bool complete;
    uint64_t bytes_done;
    uint64_t bytes_total;
};

int verify_open(struct verify **out, const struct verify_options *options,
                struct qstill_error *err);
int verify_fd(const struct verify *v); /* readable when complete */
void verify_poll(struct verify *v, struct verify_status *status);
/* Valid once complete: 0, or CORRUPT with the first damage, or what kept us
 * from reading. */
int verify_finish(struct verify *v, struct qstill_error *err);
void verify_cancel(struct verify *v); /* any thread */
void verify_close(struct verify *v);  /* cancels and joins; NULL is fine */
void verify_closep(struct verify **v);

#endif
