/* SPDX-License-Identifier: MIT */
/*
 * COPIED says that a cluster has one owner, and so may be written in place: set
 * it must be when and only when the refcount is 1. The entries that the plan
 * leaves as they are have the marks of before, which may not go with the new
 * refcounts: where the old ones were too high (a writer was killed) or not kept
 * (the dirty bit), and where one of two owners goes.
 */
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "l2walk.h"
#include "rewrite_impl.h"

static bool has_one_owner(const struct work *w, uint64_t host)
{
    return w->rw->refs.count[host / w->cs] == 1;
}

/* Whether any was wrong. Compressed entries have none. */
static bool mark_table(const struct work *w, uint8_t *table)
{
    bool changed = false;

    for (uint8_t *p = table; p < table + w->cs; p += w->entry) {
        struct l2_entry e = work_entry(w, p);

        if (e.host == 0 || e.kind == L2_COMPRESSED || e.kind == L2_BAD ||
            e.copied == has_one_owner(w, e.host))
            continue;
        put_be64(p, get_be64(p) ^ QCOW2_COPIED);
        changed = true;
    }
    return changed;
}

/* A table that the plan has left as it is. */
static int visit(void *user, uint64_t l1_index, size_t from,
                 const uint8_t *table, size_t len, struct qstill_error *err)
{
    struct work *w = user;
    struct new_table *t = new_tables_add(&w->rw->l2, l1_index, w->cs);

    if (!t)
        return err_nomem(err);
    memcpy(t->bytes + from, table, len);
    if (mark_table(w, t->bytes))
        return 0;
    free(t->bytes);
    w->rw->l2.n--;
    return 0;
}

static int mark_other_tables(struct work *w, struct qstill_error *err)
{
    struct rewrite *rw = w->rw;
    CLEANUP(freep) uint64_t *l1 = malloc(rw->l1_size * sizeof(*l1));
    struct l2walk walk = {.img = rw->target,
                          .aio = rw->aio,
                          .l1 = l1,
                          .l1_size = rw->l1_size,
                          .whole = true,
                          .visit = visit,
                          .user = w};

    if (!l1)
        return err_nomem(err);
    memcpy(l1, rw->l1, rw->l1_size * sizeof(*l1));
    for (size_t i = 0; i < rw->l2.n; i++)
        l1[rw->l2.v[i].index] = 0;
    return l2walk(&walk, err);
}

static void mark_l1(struct work *w)
{
    struct rewrite *rw = w->rw;

    for (uint32_t i = 0; i < rw->l1_size; i++) {
        uint64_t off = rw->l1[i] & QCOW2_L1_OFFSET_MASK;
        uint64_t v = has_one_owner(w, off) ? off | QCOW2_COPIED : off;

        if (off == 0 || v == rw->l1[i])
            continue;
        rw->l1[i] = v;
        rw->tables = true;
    }
}

static bool may_be_wrong(const struct rewrite *rw)
{
    const struct qcow2_header *h = &rw->target->info.header;

    if (rw->report.leaks > 0 || (h->incompatible & QCOW2_INCOMPAT_DIRTY))
        return true;
    for (size_t i = 0; i < rw->freed.n; i++)
        for (uint64_t k = 0; k < rw->freed.v[i].count; k++)
            if (rw->refs.count[rw->freed.v[i].first + k] == 1)
                return true;
    return false;
}

static int mark_all(struct work *w, struct qstill_error *err)
{
    if (!may_be_wrong(w->rw))
        return 0;
    for (size_t i = 0; i < w->rw->l2.n; i++)
        mark_table(w, w->rw->l2.v[i].bytes);
    if (mark_other_tables(w, err) < 0)
        return err->code;
    mark_l1(w);
    return 0;
}

int rewrite_marks(struct work *w, struct qstill_error *err)
{
    struct rewrite *rw = w->rw;
    const struct runs *freed = &rw->freed;
    size_t n = rw->l2.n;
    int r;

    /* as it will be; nobody may use these clusters yet, though */
    for (size_t i = 0; i < freed->n; i++)
        alloc_unref(&rw->alloc, freed->v[i].first, freed->v[i].count);
    r = mark_all(w, err);
    for (size_t i = 0; i < freed->n; i++)
        for (uint64_t k = 0; k < freed->v[i].count; k++)
            alloc_ref(&rw->alloc, freed->v[i].first + k);
    if (r < 0)
        return r;
    for (; n < rw->l2.n; n++) {
        uint64_t old = rw->l1[rw->l2.v[n].index] & QCOW2_L1_OFFSET_MASK;

        if (runs_push(&rw->freed, old / w->cs, 1) < 0)
            return err_nomem(err);
        rw->tables = true;
    }
    return 0;
}
