/* SPDX-License-Identifier: MIT */
/* What the files of collapse share: collapse.c (the passes), collapse_plan.c
 * (what is to be done next), collapse_identity.c (whether it may),
 * collapse_off.c (merges of files that no QEMU has open), collapse_live.c and
 * liveswap.c (of those that one has). */
#ifndef QSTILL_ENGINE_COLLAPSE_IMPL_H
#define QSTILL_ENGINE_COLLAPSE_IMPL_H

#include "journal.h"
#include "layers.h"
#include "session.h"

enum step_kind {
    STEP_NONE,      /* nothing, now: `why` unless that is as it should be */
    STEP_FORGET,    /* the file is gone */
    STEP_REMOVE,    /* nobody reads it */
    STEP_LEAVE,     /* nobody reads it, and it is no file of ours: it is
                       forgotten and stays */
    STEP_MERGE,     /* we merge it into all that read it */
    STEP_TAKE,      /* we merge it into one of them; it stays for the others */
    STEP_LOWER,     /* we merge all into the disk's first image, which takes
                       the place of the frozen layer above */
    STEP_FOLD,      /* the same with the head above, which then is the head */
    STEP_FOLD_LIVE, /* QEMU folds the head into the lowest layer */
    STEP_PULL_LIVE, /* QEMU pulls them into the layer above */
    STEP_SWAP_LIVE, /* a new file takes the place of the layer above */
};

/* Neighbouring hidden layers first..last, each the only child of the next,
 * and what stands on the first. */
struct step {
    enum step_kind kind;
    struct layer *child;
    struct layer *first;
    struct layer *last;
    const char *why;
    const struct layer *held; /* that is: others, whom we do not touch, stand on
                                 this one */
    const char *then; /* NONE: what has to be done before it can go on */
};

/* What ends with the file's being forgotten, or gone; all else is a merge. */
static inline bool step_is_cheap(const struct step *st)
{
    return st->kind == STEP_FORGET || st->kind == STEP_REMOVE ||
           st->kind == STEP_LEAVE;
}

struct collapse {
    struct session *s;
    struct journal *j;
    struct buf *text; /* may be NULL */
    struct layers all;
    struct children_seen *seen; /* of the files that may stand on these */
    struct qmp_graph graph;     /* see collapse_graph() */
    bool has_graph;
    bool patched;    /* by liveswap(), as far as this pass needs it */
    bool swaps;      /* see qmp_swap_works() */
    bool changed;    /* the step at hand would take in what others wrote */
    bool no_base;    /* what the step at hand reads below all layers is gone */
    bool no_room;    /* the step at hand had no room for data, and all is as it
                        was before it */
    uint64_t wanted; /* what it needs, if that is known; bytes */
};

/* collapse_plan.c: what can be done about one layer. */
struct step collapse_step(struct collapse *c, struct layer *l);
/* QEMU's stream goes through all of the disk, whatever of it is allocated: the
 * bytes that could be moved in that time (1 TiB takes about 5 s). */
uint64_t collapse_walk(const struct step *st);
/* Whether it is hidden and nobody's. */
bool collapse_is_idle(const struct layer *l);
/* Whether merging a layer into all that share it costs more room than it gives
 * back. */
bool collapse_costs_room(struct collapse *c, const struct layer *l);

/* collapse_identity.c */
/* CORRUPT, and says which, when a file that the step reads, writes or gives
 * another name for its backing file was changed behind our back. */
int collapse_check(struct collapse *c, const struct step *st,
                   struct qstill_error *err);
/* Before the step: what a merge writes itself is no such change. */
int collapse_expect(struct collapse *c, const struct step *st,
                    struct qstill_error *err);
/* After the last one: what stays is known for who comes next. */
int collapse_identify_rest(struct collapse *c, struct qstill_error *err);

/* collapse_off.c */
struct merge_request;
/* The request of a step; `drop` and `children` belong to the record's arena.
 * `r` must be initialised. */
int collapse_request(struct collapse *c, const struct step *st,
                     struct merge_request *r, struct qstill_error *err);
int collapse_run(struct collapse *c, const struct merge_request *r,
                 struct qstill_error *err);
int collapse_off(struct collapse *c, const struct step *st,
                 struct qstill_error *err);
int collapse_settle_off(struct session *s, struct journal *j,
                        struct qstill_error *err);
/* A file that a snapshot names, or a hidden one, has another header; manifest
 * or record follows. */
int collapse_reidentify(struct session *s, const char *path,
                        struct qstill_error *err);
/* The snapshot that names `from` names `to` from now on. */
int collapse_move_layer(struct session *s, const char *from, const char *to,
                        const char *format, struct qstill_error *err);
/* The record forgets a hidden layer; durable. */
int collapse_forget(struct session *s, const char *path,
                    struct qstill_error *err);

/* collapse_live.c */
/* What QEMU has open, asked for once until somebody says that it is another
 * now: it is the most that a merge asks QEMU. NULL with no error: VM off. */
struct qmp_graph *collapse_graph(struct collapse *c, struct qstill_error *err);
void collapse_graph_changed(struct collapse *c);
/* Closes what is left in QEMU of layers that the live chain has lost. */
int collapse_release(struct collapse *c, const struct step *st,
                     struct qstill_error *err);
int collapse_live(struct collapse *c, const struct step *st,
                  struct qstill_error *err);

#endif
