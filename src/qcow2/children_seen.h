/* SPDX-License-Identifier: MIT */
/* Within the search of children.h: the files that were looked at. */
#ifndef QSTILL_QCOW2_CHILDREN_SEEN_H
#define QSTILL_QCOW2_CHILDREN_SEEN_H

#include <sys/stat.h>

#include "children.h"
#include "stored_names.h"

/* A file of a directory, as long as it is as `st` says. */
struct seen_file {
    char *path;
    struct stat st;
    bool settled; /* what changes it from now on changes its times, too */
    struct stored_names names;
};
void seen_file_fini(struct seen_file *f);

/* What was seen at that path; NULL: nothing, also when `seen` is NULL. */
struct seen_file *seen_find(const struct children_seen *seen, const char *path);
/* Whether the file is as it was then. */
bool seen_is_as_it_was(const struct seen_file *f, int dirfd, const char *name);
/* Whether a change from now on shows in the times of `st`. */
bool seen_is_settled(const struct stat *st);
/* Takes over what is in *f. */
int seen_put(struct children_seen *seen, struct seen_file *f,
             struct qstill_error *err);

#endif
