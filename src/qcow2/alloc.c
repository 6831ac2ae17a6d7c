/* SPDX-License-Identifier: MIT */
#include "alloc.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

/* Shorter holes than this are left alone: the data would be scattered. */
#define MIN_RUN_BYTES (1u << 20)

void alloc_init(struct alloc *a, struct refs *refs, uint64_t cluster_size,
                uint64_t file_clusters)
{
    *a = (struct alloc){.refs = refs,
                        .cluster_size = cluster_size,
                        .old_clusters = file_clusters,
                        .min_run = max_u64(1, MIN_RUN_BYTES / cluster_size),
                        .end = file_clusters,
                        .limit = IMAGE_MAX_CLUSTERS};
}

/* The next run of unused clusters that is long enough. */
static bool next_free_run(struct alloc *a)
{
    uint64_t n = min_u64(a->old_clusters, a->refs->n);

    while (a->cursor < n) {
        uint64_t from = a->cursor, to;

        while (from < n && a->refs->count[from] != 0)
            from++;
        for (to = from; to < n && a->refs->count[to] == 0; to++)
            ;
        a->cursor = to;
        if (to - from >= a->min_run) {
            a->run = from;
            a->run_end = to;
            return true;
        }
    }
    return false;
}

static int grow(struct alloc *a, uint64_t clusters, struct qstill_error *err)
{
    uint32_t *count;
    uint64_t n;

    if (clusters > a->limit)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "the image would grow beyond %llu clusters",
                       (unsigned long long)a->limit);
    if (clusters <= a->refs->n)
        return 0;
    n = clusters + clusters / 4;
    count = realloc(a->refs->count, n * sizeof(*count));
    if (!count)
        return err_nomem(err);
    memset(count + a->refs->n, 0, (n - a->refs->n) * sizeof(*count));
    a->refs->count = count;
    a->refs->n = n;
    return 0;
}

static void take(struct alloc *a, uint64_t first, uint64_t count)
{
    for (uint64_t i = first; i < first + count; i++)
        a->refs->count[i] = 1;
}

int alloc_tail(struct alloc *a, uint64_t want, uint64_t *first,
               struct qstill_error *err)
{
    /* compressed data may be said to reach over the end of the file */
    while (a->end < a->refs->n && a->refs->count[a->end] != 0)
        a->end++;
    if (grow(a, a->end + want, err) < 0)
        return err->code;
    *first = a->end;
    take(a, *first, want);
    a->end += want;
    return 0;
}

int alloc_run(struct alloc *a, uint64_t want, uint64_t *first, uint64_t *got,
              struct qstill_error *err)
{
    if (a->run == a->run_end && !next_free_run(a)) {
        *got = want;
        return alloc_tail(a, want, first, err);
    }
    *first = a->run;
    *got = min_u64(want, a->run_end - a->run);
    a->run += *got;
    take(a, *first, *got);
    return 0;
}

void alloc_ref(struct alloc *a, uint64_t cluster)
{
    if (a->refs->count[cluster] < UINT32_MAX)
        a->refs->count[cluster]++;
}

void alloc_unref(struct alloc *a, uint64_t first, uint64_t count)
{
    for (uint64_t i = first; i < first + count && i < a->refs->n; i++)
        if (a->refs->count[i] > 0 && a->refs->count[i] < UINT32_MAX)
            a->refs->count[i]--;
}

/* A saturated count cannot be followed down: it stays, a leak at worst. */
