/* SPDX-License-Identifier: MIT */
/* Within children.c (the way through the directories) and children_judge.c
 * (what a file there is to a chain). */
#ifndef QSTILL_QCOW2_CHILDREN_IMPL_H
#define QSTILL_QCOW2_CHILDREN_IMPL_H

#include <sys/stat.h>

#include "children.h"
#include "children_seen.h"

struct search {
    const struct io *io;
    struct children_seen *seen; /* may be NULL */
    int (*judge)(struct search *s, const struct seen_file *e,
                 struct qstill_error *err);
    /* of a chain: */
    const struct chain *c;
    size_t first, last;
    bool named; /* what is looked at now */
    struct children *out;
    /* of all: */
    const struct overlay_visitor *v;
};

/* `path` leads to `real`. */
int names_behind_link(const struct search *s, const char *path,
                      const char *real, struct stored_names *names,
                      struct qstill_error *err);

/* One that cannot be read: whether its owner cannot read the layers either, so
 * that it can be no overlay of theirs. */
bool cannot_stand_on(const struct search *s, const struct stat *st);
/* A file: an overlay of [first, last] is put into `out`. */
int judge_child(struct search *s, const struct seen_file *e,
                struct qstill_error *err);
/* Whether one reads what is in `out` as raw; the overlays are known. */
int judge_reader(struct search *s, const struct seen_file *e,
                 struct qstill_error *err);
/* A symbolic link; the overlays are known. */
int judge_link(struct search *s, const char *path, const char *real,
               const struct stat *st, struct qstill_error *err);

#endif
