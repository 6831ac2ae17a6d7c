/* SPDX-License-Identifier: MIT */
/*
 * An I/O table that records every change to the files below one directory, in
 * order, while it happens for real; and rebuilds there, afterwards, what a
 * power cut at any point may leave: the same inodes under the same names, so
 * that a journal that names them holds. For that a file that loses its name is
 * put into a directory beside it, DIR.nodes-*; until then it has no other name,
 * for how many there are is seen by the code under test.
 *
 * What a cut keeps: what was synced, for certain; of everything else any part.
 * Of a file, any subset of the writes since its last fdatasync or fsync, torn
 * between any two sectors of 512 bytes, its size with or without them. Of the
 * names, any prefix of the creations, renames and unlinks since the last fsync
 * of their directory (journalling filesystems keep that order). A clone is a
 * write of what was cloned.
 */
#ifndef TESTS_RECORD_IO_H
#define TESTS_RECORD_IO_H

#include "base/io.h"

struct record;

/* Watches the files below `dir` as they are now; until record_free() nobody
 * may change them but through the table. */
struct record *record_new(const char *dir);
/* Another one of the same directory, for what is done after a replay of the
 * first; to be freed before it and before its next replay. */
struct record *record_nested(const struct record *outer);
void record_free(struct record *r);
/* The table to pass to the code under test; belongs to the record. */
const struct io *record_io(struct record *r);
/* One for what is not to be recorded, between replays: the kernel, but what it
 * removes can be replayed again. Also the record's. */
const struct io *record_keeping_io(struct record *r);

/* Operations recorded so far; a cut may come after any of 0..count. */
size_t record_count(const struct record *r);
/* The operation as text ("write top.qcow2 65536+512"), in a static buffer. */
const char *record_describe(const struct record *r, size_t index);
bool record_is_sync(const struct record *r, size_t index);

enum record_loss {
    RECORD_KEEP_ALL, /* killed process, not a power cut: nothing is lost */
    RECORD_LOSE_ALL, /* all that was not synced is lost */
    RECORD_SUBSET,   /* each write kept or lost by a coin */
    RECORD_TORN,     /* each sector kept or lost by a coin */
    RECORD_ONE_LOST, /* all but one write kept */
    RECORD_ONE_KEPT, /* all but one write lost */
    RECORD_LOSS_KINDS
};

/* Puts the directory into the state after `count` operations and a cut,
 * whatever is in it now. `seed` drives the coins. */
void record_replay(const struct record *r, size_t count, enum record_loss loss,
                   uint64_t seed);

/* NULL when a replay of everything equals the watched directory; else what
 * differs (static buffer): something went past the table. To be asked before
 * the first replay. */
const char *record_bypassed(const struct record *r);

#endif
