/* SPDX-License-Identifier: MIT */
/*
 * Takes layers out of a chain. Every other file of the chain, and every other
 * overlay of a dropped layer, keeps its path and what a guest sees through it.
 *
 * Neighbouring dropped layers D1..Dk and the layer U above them become one
 * image R that shows what U showed. R's file is one of theirs, rewritten in
 * place, or a new one:
 *
 *   up    U takes in what it did not have itself
 *   down  Dk (or another D) takes in what is above it and gets U's name
 *   new   a new file takes in everything and gets U's name
 *
 * Whatever the direction, the old state stands until one sector (in place) or
 * one name (new) changes, and no file that anybody has open for writing, or
 * that a VM has in its chain, is touched (locks). Other overlays of a dropped
 * layer take in what they need first.
 *
 * Where the filesystem cannot share blocks, "down" writes over those clusters
 * of the lower image that the layers above mask (merge_group.c). What U shows
 * does not change by that at any moment, but D alone, which is to go, reads as
 * neither old nor new until the merge is over, and that can only go forward.
 *
 * The steps of each group: journal -> reserve -> move data -> tables -> sync
 * -> header -> attributes, names -> unlink -> give blocks back -> journal off.
 * A failure before the header (before the data, when that is written over)
 * undoes all of it; after it only forward.
 */
#ifndef QSTILL_QCOW2_MERGE_H
#define QSTILL_QCOW2_MERGE_H

#include "base/buf.h"
#include "chain.h"
#include "children.h"

struct merge_asked;

enum merge_direction { MERGE_AUTO, MERGE_UP, MERGE_DOWN, MERGE_NEW };

struct merge_request {
    const char *top;
    enum qcow2_format format; /* of top */
    const char *const *drop;  /* paths of layers of top's chain */
    size_t drop_count;
    /* overlays outside of the directories; or inside, that may be given what
     * they read from layers that go whoever owns them (rights.h) */
    const char *const *children;
    size_t child_count;
    /* One that stands on no layer of the chain at all is a mistake, and refused
     * (PRECONDITION); but for those that an earlier try has made to stand on
     * nothing, by what merges of this top were asked before. May be NULL. */
    bool children_are_ours;
    const struct merge_asked *tried;
    /* children.h; may be NULL, else it outlives the merge */
    struct children_seen *seen;
    enum merge_direction direction;
    /* R gets the name of the lowest dropped layer instead of U's, and U's
     * overlays are made to name it. For the case that the last snapshot goes
     * and the disk is to be one image at its first path again. Only with one
     * group. This is also the only way to fold into a raw image. */
    bool lower_name;
    /* The dropped layers stay as they are, for their other overlays; only top
     * changes, by taking in what it reads from them. */
    bool keep_dropped;
    /* What the layers that go stand on may be copied into files of who owns the
     * image above, as clusters are filled: the caller knows that it is theirs.
     * Otherwise that is asked (rights.h: PRECONDITION). */
    bool below_is_theirs;
    /* Merge into this new file and change nothing else: for layers that a
     * running VM has open. Its backing name is right at this place and at
     * U's, its owner and mode are U's. The caller removes the file after a
     * failure or a crash. */
    const char *output;
    uint64_t bwlimit; /* bytes per second; 0: none */
    /* A VM runs on the same disk: its requests are not to wait behind many of
     * ours. */
    bool gentle;
    /* Where the journal stands: a directory (its fd is the caller's), or -1
     * for the directory of top; and its name, or NULL for MERGE_JOURNAL and a
     * number made from top's name. */
    int journal_dir;
    const char *journal_name;
    /* What was asked for, too, and an earlier try has taken away: were this one
     * to end between two groups, the next may be asked for them again. */
    const char *const *went;
    size_t went_count;
    /* Only the estimate is wanted: layers that cannot be removed or renamed now
     * (the caller has made them immutable) are no hindrance. */
    bool estimate_only;
    struct aio_stop stop; /* asked while merge_open() reads the tables */
};
#define MERGE_REQUEST_INIT                                                     \
    {                                                                          \
        .format = QCOW2_FORMAT_QCOW2, .journal_dir = -1                        \
    }
#define MERGE_JOURNAL ".qstill-merge-"

struct merge;

struct merge_estimate {
    const char *direction; /* "none": no data moves; "up", "down", "new" */
    uint64_t bytes;        /* of guest data to be moved, */
    uint64_t shared;       /* and of these, those that are shared (reflink) */
    uint64_t metadata;     /* bytes of tables */
    uint64_t freed;        /* disk blocks given back at the end */
    uint64_t needed;       /* disk blocks needed before that */
    size_t bitmaps_lost;   /* dirty bitmaps that the result cannot hold */
    double seconds;        /* at 400 MB/s */
};

/* Plans: takes read locks, reads all tables, changes nothing. NOT_FOUND,
 * USAGE, PRECONDITION, CORRUPT, BUSY. */
int merge_open(struct merge **out, const struct io *io,
               const struct merge_request *request, struct qstill_error *err);
const struct merge_estimate *merge_estimate(const struct merge *m);
/* The plan in words, a line for each image that changes or goes. */
int merge_describe(const struct merge *m, struct buf *out,
                   struct qstill_error *err);

/* Some work. After a failure the merge has undone itself, or its journal is
 * still there and merge_recover() must be called. */
int merge_step(struct merge *m, bool *done, struct qstill_error *err);
int merge_fd(struct merge *m); /* readable when a step has work; or -1 */
/* Past the point of return: the group at hand can only be finished. The steps
 * that are left of it are few and move no data. */
bool merge_is_late(const struct merge *m);
/* Undoes the group at hand, or finishes it when that is late. When layers of an
 * earlier group are gone, and others left, the journal stays and tells so
 * (merge_asked.h). A fold that writes over the lower image can do neither at
 * once: its journal stays, and merge_recover() goes on. What the top shows is
 * right all the time. */
int merge_cancel(struct merge *m, struct qstill_error *err);
/* Cancels when not done. NULL is fine. */
void merge_close(struct merge *m);
void merge_closep(struct merge **m);

struct merge_count {
    uint64_t done;   /* bytes, of merge_estimate()->bytes */
    uint64_t shared; /* of these, shared by the filesystem */
    uint64_t freed;  /* disk blocks given back so far */
};
struct merge_count merge_count(const struct merge *m);

/* What recoveries have done: a fold that they go on with counts like a merge,
 * from the start; of what was done but for its end the end alone. */
struct merge_recovered {
    struct merge_count count;
    const char *direction; /* as in the estimate, of the last fold; or NULL */
};

/* How a recovery goes about it. A fold copies as much as a merge does. */
struct merge_recovery {
    struct merge_recovered *done; /* is added to; or NULL */
    struct buf *told;             /* or NULL */
    uint64_t bwlimit;             /* these as in struct merge_request */
    bool gentle;
    struct aio_stop stop;
    /* After some work of a fold: how far it has come. An error stops it, while
     * it can be stopped. NULL: nobody asks. */
    int (*pulse)(void *user, uint64_t done, uint64_t total,
                 struct qstill_error *err);
    void *user;
};

/*
 * Finishes or undoes the merge of a journal, if there is one: *did. BUSY: its
 * process is alive. CORRUPT: the files are neither in the old nor in the new
 * state, and nothing is changed; or what a fold reads is damaged. Such a fold
 * is given up, its journal removed: what the top shows is what it always was.
 * So is one whose images a VM has open by now, without an error. A fold
 * that is stopped (CANCELLED) leaves the journal, so that the next goes on with
 * it. `how` may be NULL. Its `told` gets a line ("note: ...") for each file
 * that was to go and stays, because somebody has gone back to it since.
 */
int merge_recover(const struct io *io, int dirfd, const char *name,
                  const struct merge_recovery *how, bool *did,
                  struct qstill_error *err);
/* The same, but a fold that could only go on is given up: for a caller who has
 * cancelled it, does not use the lower image by itself, and will merge again.
 */
int merge_abandon(const struct io *io, int dirfd, const char *name, bool *did,
                  struct qstill_error *err);
/* merge_recover() for every journal that a merge without a place of its own has
 * left in a directory; those of living processes are passed over. One that
 * fails does not keep the others from it: the first such error is returned. */
int merge_recover_dir(const struct io *io, const char *dir, bool *did,
                      struct qstill_error *err);
/* The same for the directory of request->top, before that merge, with those
 * alone that may be about its images; the others stay as they are, readable or
 * not. `asked`, zeroed: what merges of this top were asked for before. */
int merge_recover_before(const struct io *io,
                         const struct merge_request *request,
                         const struct merge_recovery *how, bool *did,
                         struct merge_asked *asked, struct qstill_error *err);
/* The same as it stands there, with nothing recovered or changed. */
int merge_look_at_asked(const struct io *io, const char *top,
                        struct merge_asked *asked, struct qstill_error *err);

#endif
