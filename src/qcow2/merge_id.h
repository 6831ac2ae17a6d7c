/* SPDX-License-Identifier: MIT */
/*
 * Which file it is that a merge wrote down, as seen by who comes later, perhaps
 * after the machine was booted again. The device's number may be another then;
 * an inode's number may be another file's by now. So the time of its birth
 * decides where the filesystem knows that.
 */
#ifndef QSTILL_QCOW2_MERGE_ID_H
#define QSTILL_QCOW2_MERGE_ID_H

#include "base/error.h"

struct merge_id {
    uint64_t dev;
    uint64_t ino;     /* 0: none */
    int64_t born_ns;  /* since the epoch; 0: not known */
    int64_t mtime_ns; /* when it was written down; no part of what it is */
};

int merge_id_of(int fd, struct merge_id *id, struct qstill_error *err);

enum merge_there {
    MERGE_ABSENT, /* nothing has that name */
    MERGE_SAME,
    MERGE_OTHER, /* another file has, or it cannot be told */
};
/* `id`, where it is not NULL, is what to compare with; a link is not that file
 * unless `follow`. *now may be NULL. */
enum merge_there merge_id_look(const char *path, const struct merge_id *id,
                               bool follow, struct merge_id *now);
bool merge_id_same(const struct merge_id *a, const struct merge_id *b);
/* Whether the file is there by that very name. */
bool merge_id_is(const char *path, const struct merge_id *id);

#endif
