/* SPDX-License-Identifier: MIT */
/*
 * Where new clusters of an image go: into clusters that nothing refers to, by
 * our own count, as long as they come in runs worth it; else behind the end of
 * the file. Nothing that the image's present state needs is ever handed out,
 * so whatever is written there changes nothing until the header does.
 */
#ifndef QSTILL_QCOW2_ALLOC_H
#define QSTILL_QCOW2_ALLOC_H

#include "refs.h"

struct alloc {
    struct refs *refs;
    uint64_t cluster_size;
    uint64_t old_clusters; /* of the file as it is */
    uint64_t cursor;       /* free runs are looked for from here on */
    uint64_t run, run_end; /* the free run being used up */
    uint64_t min_run;      /* clusters */
    uint64_t end;          /* clusters of the file as it will be */
    uint64_t limit;        /* no cluster at or above */
};

/* `file_clusters`: of the file now; they need not all be counted. */
void alloc_init(struct alloc *a, struct refs *refs, uint64_t cluster_size,
                uint64_t file_clusters);

/* A run of 1 to `want` clusters, each counted once now. */
int alloc_run(struct alloc *a, uint64_t want, uint64_t *first, uint64_t *got,
              struct qstill_error *err);
/* The same, `want` in one piece, behind the end of the file. */
int alloc_tail(struct alloc *a, uint64_t want, uint64_t *first,
               struct qstill_error *err);
/* Counts one reference more; the cluster must exist. */
void alloc_ref(struct alloc *a, uint64_t cluster);
/* One reference less; clusters outside of the file are ignored. */
void alloc_unref(struct alloc *a, uint64_t first, uint64_t count);

#endif
