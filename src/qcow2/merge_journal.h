/* SPDX-License-Identifier: MIT */
/*
 * What a merge writes down before it changes anything: enough to tell from the
 * files how far it came, and to go back or forward from there. One group at a
 * time. The file is locked as long as its process lives.
 *
 * Text, a record per line, words separated by spaces, bytes that are no plain
 * characters as %XX; the line `sum` ends it. A journal without a right sum was
 * cut off while it was written: then nothing else had begun. A line `made` may
 * follow, with its own sum. A recovery that begins anew writes its record
 * behind the first; the last whole one counts. Files of the journal's own
 * directory go by their names there, so that both can be moved, or be seen at
 * another place.
 *
 * Before the records of one that stands beside the images are lines that only
 * become more: `top`, an `asked` for each layer that a merge of it was asked to
 * drop, and a `child` for each overlay that was named. They alone stay where a
 * merge ends between two of its groups, until none of these layers is in the
 * chain any more: whoever asks again names those that have gone, too. (Older
 * journals have lines `went` for these, in the record or instead of it.)
 */
#ifndef QSTILL_QCOW2_MERGE_JOURNAL_H
#define QSTILL_QCOW2_MERGE_JOURNAL_H

#include "base/buf.h"
#include "base/io.h"
#include "merge_id.h"

enum merge_kind {
    MERGE_IN_PLACE, /* the target's header flips */
    MERGE_NEW_FILE, /* a name flips */
    MERGE_INTO_RAW, /* no flip: only forward */
    /* in place, but clusters in use are written over before the header flips:
     * only forward, from the start if need be */
    MERGE_OVERWRITE,
};

struct merge_file {
    char *path; /* absolute; NULL: none */
    struct merge_id id;
    bool is_child; /* in a list of what was asked: an overlay that was named */
};

struct merge_repoint {
    struct merge_file file;
    char *backing;
    char *format;
};

/* What merges of one top were asked to drop, and the overlays named with it. */
struct merge_asked {
    char *top; /* absolute; NULL: an older journal, or one that has a place of
                  its own */
    struct merge_file *v; /* id 0: it had gone before; or a child */
    size_t n;
};

struct merge_record {
    enum merge_kind kind;
    struct merge_file target; /* new file: path of the temporary */
    struct merge_file result; /* the name it gets; id 0: has it already */
    /* the file at `result` when we began; changed meanwhile: not replaced */
    int64_t result_mtime_ns;
    uint64_t result_size;
    uint64_t old_size; /* of the target's file */
    uint64_t old_l1, new_l1;
    char *old_backing; /* "" when none */
    char *new_backing;
    struct merge_file upper; /* the image that is folded, not the target */
    struct merge_file *gone; /* to be unlinked */
    size_t gone_count;
    struct merge_repoint *repoint;
    size_t repoint_count;
    struct merge_id made; /* new file: its id, once it exists */
    struct buf *told; /* for people, lines of what a recovery leaves; or NULL:
                         no part of the journal */
    const struct merge_recovery *how; /* likewise, of a recovery */
    struct children_seen *seen;       /* likewise, of a living merge */
};

void merge_record_fini(struct merge_record *r);
void merge_asked_fini(struct merge_asked *a);
/* `dir`: the absolute name of the journal's directory. */
int merge_record_emit(const struct merge_record *r, const char *dir,
                      struct buf *out, struct qstill_error *err);
/* The records are from *start on; *used is where the last whole one ends, or
 * *start: the journal was cut off. `r` must be zeroed. */
int merge_record_parse(struct merge_record *r, const char *dir,
                       const uint8_t *data, size_t len, size_t *start,
                       size_t *used, struct qstill_error *err);
int merge_asked_emit(const struct merge_asked *a, const char *dir,
                     struct buf *out, struct qstill_error *err);
/* `a` must be zeroed. Lines that make no sense are passed over. */
int merge_asked_parse(struct merge_asked *a, const char *dir,
                      const uint8_t *data, size_t len, size_t *start,
                      struct qstill_error *err);

/* ------------------------------------------------------------- on the disk */

struct merge_journal {
    const struct io *io;
    int dirfd; /* ours */
    int fd;
    char *name;
    size_t start; /* of the records in it */
    size_t len;   /* up to their end */
};
#define MERGE_JOURNAL_INIT                                                     \
    {                                                                          \
        NULL, -1, -1, NULL, 0, 0                                               \
    }

/* Makes the file, empty and locked, or takes one of which nothing is under way.
 * BUSY. */
int merge_journal_begin(struct merge_journal *j, const struct io *io, int dirfd,
                        const char *name, struct qstill_error *err);
/* Opens and locks what a dead process left. NOT_FOUND; BUSY: it lives;
 * PRECONDITION: another user may have written it. */
int merge_journal_open(struct merge_journal *j, const struct io *io, int dirfd,
                       const char *name, struct qstill_error *err);
/* To read it only: whoever's it is, at work or not. */
int merge_journal_look(struct merge_journal *j, const struct io *io, int dirfd,
                       const char *name, struct qstill_error *err);
int merge_journal_read(struct merge_journal *j, struct merge_record *r,
                       bool *whole, struct qstill_error *err);
/* Behind what was read. Durable when it returns 0. */
int merge_journal_write(struct merge_journal *j, const struct merge_record *r,
                        struct qstill_error *err);
int merge_journal_made(struct merge_journal *j, const struct merge_id *id,
                       struct qstill_error *err);
/* For what is said to people: as it is called now, or NULL. The caller's. */
char *merge_journal_path(int dirfd, const char *name);
/* What stands before the records, into `a`, which is zeroed. */
int merge_journal_asked(struct merge_journal *j, struct merge_asked *a,
                        struct qstill_error *err);
/* Writes that, with no record yet. It is durable with the first. */
int merge_journal_ask(struct merge_journal *j, const struct merge_asked *a,
                      struct qstill_error *err);
/* Nothing is under way any more: takes the records out; durable. */
int merge_journal_clear(struct merge_journal *j, struct qstill_error *err);
/* Removes the file. */
int merge_journal_remove(struct merge_journal *j, struct qstill_error *err);
/* Closes and leaves the file. */
void merge_journal_fini(struct merge_journal *j);

#endif
