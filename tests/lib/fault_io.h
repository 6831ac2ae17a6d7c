/* SPDX-License-Identifier: MIT */
/*
 * An I/O table that fails: the n-th call of the chosen kinds returns the
 * chosen errno (or moves fewer bytes than asked), all others go below.
 */
#ifndef TESTS_FAULT_IO_H
#define TESTS_FAULT_IO_H

#include "base/io.h"

enum fault_kind {
    FAULT_OPEN = 1 << 0,
    FAULT_READ = 1 << 1,
    FAULT_WRITE = 1 << 2,
    FAULT_SYNC = 1 << 3, /* fdatasync and fsync */
    FAULT_TRUNCATE = 1 << 4,
    FAULT_ALLOCATE = 1 << 5, /* fallocate, clone */
    FAULT_NAME = 1 << 6,     /* rename, unlink */
    FAULT_ATTR = 1 << 7,     /* chmod, chown, xattr, chattr */
};

struct fault_io {
    struct io io; /* pass &f.io */
    const struct io *below;
    unsigned kinds; /* which calls count */
    long at;        /* the call that fails, from 1; 0: none, only count */
    bool onwards;   /* and every later one of these kinds */
    int error;      /* positive errno; 0: transfers are cut to one byte */
    long seen;      /* calls of these kinds so far */
    long failed;    /* how often it did fail */
};

/* Sets f->io; `below` NULL is the kernel. The rest is the caller's to set. */
void fault_io_init(struct fault_io *f, const struct io *below);

#endif
