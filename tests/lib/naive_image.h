/* SPDX-License-Identifier: MIT */
/*
 * What a guest sees through a chain of images, found the slow and plain way,
 * sector by sector, with no code of the engine: the second opinion of crash
 * tests and fuzzers, where QEMU would be too slow. For images that the engine
 * has found valid; others end in NULL or in zeros, never out of bounds.
 */
#ifndef TESTS_NAIVE_IMAGE_H
#define TESTS_NAIVE_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NAIVE_SECTOR     512u
#define NAIVE_MAX_LAYERS 16u

struct naive_layer;

struct naive_chain {
    struct naive_layer *layers[NAIVE_MAX_LAYERS]; /* 0 is the top */
    size_t n;
    uint64_t size; /* of the top, in bytes */
};

/* Opens DIR/NAME and its backing files, whose names are relative to DIR or
 * absolute. NULL when that cannot be done. `qcow2`: the format of the top. */
struct naive_chain *naive_open(const char *dir, const char *name, bool qcow2);
void naive_close(struct naive_chain *c);

struct naive_status {
    size_t layer; /* which decides; n when none does */
    bool zero;    /* reads as zeros */
    bool compressed;
    uint64_t host; /* of data that is not compressed */
};
/* Of the sector that begins at `guest`. */
struct naive_status naive_status(const struct naive_chain *c, uint64_t guest);

/* 512 bytes; the file's missing ones are zeros. False: it cannot be inflated.
 */
bool naive_read(const struct naive_chain *c, uint64_t guest, uint8_t *out);

/* A hash of the size and of all that the guest reads; 0 when something cannot
 * be read. */
uint64_t naive_hash(const struct naive_chain *c);
/* The same of a file, opened for this; 0 when it cannot be opened. */
uint64_t naive_hash_file(const char *dir, const char *name, bool qcow2);

/* Counts all references again: 0 when every refcount is right, 1 when there
 * are leaks only, 2 when a count is too low or a COPIED bit is wrong. */
int naive_check(const struct naive_chain *c);

#endif
