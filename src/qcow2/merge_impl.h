/* SPDX-License-Identifier: MIT */
/* What the files of the merge share: merge.c (the whole), merge_describe.c (in
 * words), merge_plan.c (how), merge_rights.c (for whom), merge_names.c (paths),
 * merge_overlays.c (of what goes), merge_group.c (the steps), merge_undo.c
 * (back), merge_raw.c (into a raw base), merge_link.c, merge_recover.c (of a
 * dead one), merge_settle.c (its files), merge_recover_dir.c, merge_asked.c
 * (what is left of it). */
#ifndef QSTILL_QCOW2_MERGE_IMPL_H
#define QSTILL_QCOW2_MERGE_IMPL_H

#include "children.h"
#include "merge.h"
#include "merge_asked.h"
#include "merge_names.h"
#include "mover.h"
#include "share.h"

#define MERGE_NO_TARGET SIZE_MAX

enum merge_phase {
    PHASE_BEGIN,
    PHASE_MOVE,
    PHASE_TABLES,
    PHASE_FLIP,
    PHASE_NAMES, /* from here on only forward */
    PHASE_TRIM,
    PHASE_DONE,
};

/* Neighbouring dropped layers and what is above them. */
struct merge_group {
    struct merge *m;
    struct chain *chain; /* of m, or one whose layers but the first are m's */
    size_t upper;
    size_t last; /* layers upper+1 .. last are folded with upper */
    bool main;   /* they go afterwards */
    bool named; /* a group that is not main: the caller did, or it is the top */

    enum merge_kind kind;
    size_t t; /* the layer whose file is kept, or MERGE_NO_TARGET */
    struct image *target;
    struct image *fresh; /* the target, when it is a new file */
    struct extents view; /* of the group, or of all below, too: */
    size_t view_last;    /* down to this layer */
    struct bitmap_join join;
    struct rewrite rw;
    struct moves zeros; /* raw: to be zeroed; from and layer mean nothing */
    char *backing;      /* the name to be stored, or NULL */
    const char *backing_format;
    char *result; /* path */
    bool *stuck;  /* by layer, from upper on: its name cannot be taken away */
    struct merge_record record;
    struct sharing sharing;
    uint64_t bytes;
    uint64_t shared;      /* of these, that need not be copied */
    uint64_t shared_room; /* of these, beyond the target's old end */
    uint64_t freed;

    enum merge_phase phase;
    struct mover *mover;
    bool marked; /* what is torn meanwhile */
};

struct merge {
    const struct io *io;
    enum merge_direction direction;
    bool lower_name;
    bool keep_dropped;
    bool below_is_theirs;
    bool estimate_only;
    char *output;
    uint64_t bwlimit;
    bool gentle;
    struct chain *chain;
    char *foreign; /* the format of its bottom, when that is a foreign one */
    bool *drop;    /* by layer */
    struct children children;
    struct children heirs;      /* overlays of U, when R gets another name */
    struct children_seen *seen; /* of the request, or own_seen */
    struct children_seen *own_seen;
    struct merge_group *groups;
    size_t group_count;
    size_t now; /* the group at work */
    struct merge_estimate estimate;
    struct merge_count done;
    struct merge_journal journal;
    bool journalled;          /* the file is there */
    struct merge_asked asked; /* by this one */
    bool adopted; /* the journal is about files that are torn: it stays */
    int journal_dir;
    char *journal_name;
    bool failed; /* and could not undo: the journal stays */
};

/* merge.c: goes on with the journal of a dead process, which it takes over. */
void merge_adopt_journal(struct merge *m, struct merge_journal *j);

/* merge_describe.c */
void merge_make_estimate(struct merge *m);

/* The one beside the images, of merges of this top; NULL without memory. */
char *merge_journal_name(const char *top);

static inline struct image *group_layer(const struct merge_group *g, size_t i)
{
    return g->chain->layers[i];
}

/* merge_plan.c: locks, loads, chooses the target, plans its rewrite. */
int group_plan(struct merge_group *g, struct qstill_error *err);
void group_fini(struct merge_group *g);
/* Plans that layer t, or MERGE_NO_TARGET, keeps its file. */
int group_plan_target(struct merge_group *g, size_t t,
                      struct qstill_error *err);
/* Sets g->sharing for that. */
int group_find_sharing(struct merge_group *g, size_t t,
                       struct qstill_error *err);

/* merge_choose.c: plans the cheapest that may be. */
int group_choose(struct merge_group *g, struct qstill_error *err);

/* merge_rights.c: whether what it moves may come into the upper image's file.
 */
int group_check_rights(const struct merge_group *g, struct qstill_error *err);

/* merge_names.c */
/* Sets g->backing and g->backing_format, for a result at g->result. */
int group_name_backing(struct merge_group *g, struct qstill_error *err);
/* Sets g->result. */
int group_name_result(struct merge_group *g, struct qstill_error *err);
/* Sets g->stuck. */
int group_look_at_names(struct merge_group *g, struct qstill_error *err);
/* Whether the names of the other layers can go, and its own if that changes,
 * when layer t (or MERGE_NO_TARGET) keeps its file. */
int group_check_names(const struct merge_group *g, size_t t,
                      struct qstill_error *err);

/* merge_overlays.c */
/* BUSY when somebody has made one of what is to go since. */
int group_check_overlays(struct merge_group *g, struct qstill_error *err);
/* Whether all the children that were named stand on the chain. */
int merge_check_named(const struct merge *m, const struct merge_request *q,
                      struct qstill_error *err);

/* merge_record.c: fills g->record. */
int group_make_record(struct merge_group *g, struct qstill_error *err);
/* The suffix of a new file's name (temp_name.h). */
#define MERGE_TEMP "merge"

/* merge_group.c: one step; g->phase is PHASE_DONE at the end. */
int group_step(struct merge_group *g, struct qstill_error *err);
/* merge_undo.c: undoes a group that is before PHASE_NAMES, or lost. */
int group_undo(struct merge_group *g, struct qstill_error *err);
/* Its target has no name any more: whatever was done to that, nobody can see
 * it. */
bool group_is_lost(const struct merge_group *g);
/* merge_finish.c: moves names, unlinks: what recovery shares. `late`: others
 * had the time to go back to what is to go. */
int record_finish(const struct io *io, const struct merge_record *r, bool late,
                  uint64_t *freed, struct qstill_error *err);
/* Others may rename what is locked. BUSY when the target's name, or that which
 * it is to get, is no longer that of the file that it was: what has come there
 * is neither replaced nor taken for it. */
int record_check_target(const struct merge_record *r, struct qstill_error *err);
int record_check_names(const struct merge_record *r, struct qstill_error *err);
int record_check_upper(const struct merge_record *r, struct qstill_error *err);
/* Of one that is done: another file has the result's name. */
int record_check_done(const struct merge_record *r, struct qstill_error *err);
/* Whether an overlay has the result's name already: they get it only when the
 * result is whole. */
int record_is_repointed(const struct io *io, const struct merge_record *r,
                        bool *yes, struct qstill_error *err);
/* Why a file stays that was to go. */
void record_tell(const struct merge_record *r, const char *path,
                 const char *why);
/* merge_link.c: the target gets the result's name, too; false: it has not. */
bool record_link(const struct io *io, const struct merge_record *r);
/* What that leaves when it is cut off. */
int record_sweep_link(const struct io *io, const struct merge_record *r,
                      struct qstill_error *err);
/* When it has both names. */
int record_unlink_old_name(const struct io *io, const struct merge_record *r,
                           bool late, struct qstill_error *err);
/* Late: whether the target may lose the name that it has. */
bool record_may_rename(const struct io *io, const struct merge_record *r);

/* merge_settle.c: what recovery does with the files. */
/* The error for one that is gone, or another by now. */
int record_not_there(const struct merge_file *f, struct qstill_error *err);
/* record_finish(), when nobody else uses what it takes away. */
int record_finish_late(const struct io *io, const struct merge_record *r,
                       struct qstill_error *err);
/* Of a target that has, or gets, a header: back or forward. */
int record_settle(const struct io *io, const struct merge_record *r,
                  struct qstill_error *err);
int record_settle_new_file(const struct io *io, const struct merge_record *r,
                           const struct merge_journal *j,
                           struct qstill_error *err);
/* Whether clusters may have been written over, and the header is the old one.
 * What the broken attempt added to the file is cut off. */
int record_is_torn(const struct io *io, const struct merge_record *r,
                   bool *torn, struct qstill_error *err);

/* merge_raw.c */
int raw_plan(struct merge_group *g, struct qstill_error *err);
int raw_zero(struct merge_group *g, struct qstill_error *err);

#endif
