/* SPDX-License-Identifier: MIT */
/* What a merge will do, in numbers and in words. */
#include <string.h>

#include "merge_impl.h"

/* Guest bytes per second for the estimate, on a disk of a usual kind. */
#define ESTIMATE_RATE 400e6

static const char *direction_of(const struct merge_group *g)
{
    if (g->kind == MERGE_NEW_FILE)
        return "new";
    if (g->bytes == 0 && g->t == g->upper)
        return "none";
    return g->t == g->upper ? "up" : "down";
}

void merge_make_estimate(struct merge *m)
{
    struct merge_estimate *e = &m->estimate;

    e->direction = "none";
    for (size_t i = 0; i < m->group_count; i++) {
        const struct merge_group *g = &m->groups[i];

        if (strcmp(direction_of(g), "none") != 0)
            e->direction = direction_of(g);
        e->bytes += g->bytes;
        e->shared += g->shared;
        e->freed += g->freed;
        e->bitmaps_lost += g->join.lost_count;
        if (g->kind != MERGE_INTO_RAW) {
            e->needed += g->rw.end - g->rw.old_end - g->shared_room;
            e->metadata +=
                (g->rw.l2.n + g->rw.refblocks.n) * g->target->cluster_size +
                8ull * g->rw.l1_size;
        }
    }
    e->seconds = (double)(e->bytes - e->shared) / ESTIMATE_RATE + 0.01;
}

const struct merge_estimate *merge_estimate(const struct merge *m)
{
    return &m->estimate;
}

/* What other programs keep in a header, and nobody here can join. */
static int describe_lost_headers(const struct merge_group *g, struct buf *out)
{
    for (size_t i = g->upper; i <= g->last; i++) {
        const struct image *img = g->chain->layers[i];
        const struct qcow2_header *h = &img->info.header;

        if (i == g->t || !image_is_qcow2(img) ||
            (h->other.len == 0 && (h->compatible & ~QCOW2_COMPAT_LAZY) == 0))
            continue;
        if (buf_printf(out,
                       "header extensions of %s that are not known here are "
                       "not kept\n",
                       img->path) < 0)
            return -1;
    }
    return 0;
}

static int describe_group(const struct merge_group *g, struct buf *out)
{
    const struct chain *c = g->chain;
    const char *kept =
        g->kind == MERGE_NEW_FILE ? "a new file" : g->target->path;

    if (buf_printf(out, "%s: %llu bytes into %s", direction_of(g),
                   (unsigned long long)g->bytes, kept) < 0)
        return -1;
    if (g->shared > 0 && buf_printf(out, " (%llu of them shared, not copied)",
                                    (unsigned long long)g->shared) < 0)
        return -1;
    if (strcmp(kept, g->result) != 0 &&
        buf_printf(out, ", which becomes %s", g->result) < 0)
        return -1;
    if (g->kind == MERGE_OVERWRITE &&
        buf_puts(out, "; it is written over: once begun, only forward") < 0)
        return -1;
    if (buf_puts(out, "\n") < 0 ||
        (g->join.lost.len > 0 &&
         buf_append(out, g->join.lost.data, g->join.lost.len) < 0) ||
        describe_lost_headers(g, out) < 0)
        return -1;
    for (size_t i = g->upper; g->main && !g->m->output && i <= g->last; i++)
        if (strcmp(c->layers[i]->path, g->result) != 0 &&
            buf_printf(out, "gone afterwards: %s\n", c->layers[i]->path) < 0)
            return -1;
    for (size_t i = 0; g->main && i < g->m->heirs.n; i++)
        if (buf_printf(out, "gets another backing file: %s\n",
                       g->m->heirs.v[i].path) < 0)
            return -1;
    return 0;
}

int merge_describe(const struct merge *m, struct buf *out,
                   struct qstill_error *err)
{
    for (size_t i = 0; i < m->group_count; i++)
        if (describe_group(&m->groups[i], out) < 0)
            return err_nomem(err);
    if (buf_printf(out, "freed: about %llu bytes; needed before: %llu\n",
                   (unsigned long long)m->estimate.freed,
                   (unsigned long long)m->estimate.needed) < 0)
        return err_nomem(err);
    return 0;
}
