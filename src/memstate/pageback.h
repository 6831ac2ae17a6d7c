/* SPDX-License-Identifier: MIT */
/*
 * Makes the RAM of a process that stands still equal to a file set: every page
 * is compared, only those that differ are written. Several threads take chunks
 * in turn. What a file says is checked against its sum before it is believed.
 *
 * Memory that the process never touched is compared as zero without touching
 * it (vmread.h). The files are read through the page cache: a VM goes back to
 * one snapshot more often than to many.
 */
#ifndef QSTILL_MEMSTATE_PAGEBACK_H
#define QSTILL_MEMSTATE_PAGEBACK_H

#include "memstate/capture.h"
#include "memstate/ramset.h"
#include "memstate/undolog.h"

struct pageback;

struct pageback_options {
    const struct ramset *set; /* stays open until pageback_close */
    pid_t pid;
    /* Where the process has the set's blocks; of one that it lacks nothing is
     * compared. Their strings are the caller's until pageback_close. */
    const struct capture_source *blocks;
    size_t count;
    struct undolog *undo; /* NULL: what is overwritten is lost */
    unsigned threads;     /* 0: as many as there are CPUs for us */
    uint64_t max_size;    /* only blocks up to this size; 0: all */
};

struct pageback_result {
    uint64_t compared_bytes;
    uint64_t read_bytes; /* of the files */
    uint64_t written_pages;
};

/* Starts at once. Each block's size must be the set's: PRECONDITION. */
int pageback_open(struct pageback **out, const struct pageback_options *options,
                  struct qstill_error *err);
/* Readable when it is complete. */
int pageback_fd(const struct pageback *p);
/* *complete: call pageback_finish(). */
void pageback_poll(struct pageback *p, bool *complete, uint64_t *bytes_done,
                   uint64_t *bytes_total);
/* The result or the error: CORRUPT names the damaged file, UNREACHABLE: the
 * process has ended. A part may have been written by then. */
int pageback_finish(struct pageback *p, struct pageback_result *out,
                    struct qstill_error *err);
void pageback_close(struct pageback *p); /* cancels and joins; NULL is fine */
void pageback_closep(struct pageback **p);

/* Waits for it: for small amounts. */
int pageback_run(const struct pageback_options *options,
                 struct pageback_result *out, struct qstill_error *err);

#endif
