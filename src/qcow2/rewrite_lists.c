/* SPDX-License-Identifier: MIT */
/* What a plan is made of: lists that grow. */
#include <stdlib.h>

#include "rewrite_impl.h"

/* Room for one more element; the array may move. */
int rewrite_make_room(void **v, size_t n, size_t *cap, size_t size)
{
    size_t more = *cap ? *cap + *cap / 2 : 32;
    void *p;

    if (n < *cap)
        return 0;
    p = realloc(*v, more * size);
    if (!p)
        return -1;
    *v = p;
    *cap = more;
    return 0;
}

int moves_push(struct moves *m, const struct move *e)
{
    struct move *last = m->n ? &m->v[m->n - 1] : NULL;

    if (last && last->layer == MOVE_GUEST && e->layer == MOVE_GUEST &&
        last->over == e->over && last->from + last->len == e->from &&
        last->dst + last->len == e->dst) {
        last->len += e->len;
        return 0;
    }
    if (rewrite_make_room((void **)&m->v, m->n, &m->cap, sizeof(*m->v)) < 0)
        return -1;
    m->v[m->n++] = *e;
    return 0;
}

static int by_place(const void *a, const void *b)
{
    const struct move *x = a, *y = b;

    return x->dst < y->dst ? -1 : x->dst > y->dst;
}

/* They mostly are in order; qsort() takes a copy of all. */
void moves_sort(struct moves *m)
{
    size_t i = 1;

    while (i < m->n && m->v[i - 1].dst <= m->v[i].dst)
        i++;
    if (i < m->n)
        qsort(m->v, m->n, sizeof(*m->v), by_place);
}

int runs_push(struct runs *r, uint64_t first, uint64_t count)
{
    struct run *last = r->n ? &r->v[r->n - 1] : NULL;

    if (last && last->first + last->count == first) {
        last->count += count;
        return 0;
    }
    if (rewrite_make_room((void **)&r->v, r->n, &r->cap, sizeof(*r->v)) < 0)
        return -1;
    r->v[r->n++] = (struct run){first, count};
    return 0;
}

struct new_table *new_tables_add(struct new_tables *t, uint64_t index,
                                 size_t len)
{
    struct new_table *e;

    if (rewrite_make_room((void **)&t->v, t->n, &t->cap, sizeof(*t->v)) < 0)
        return NULL;
    e = &t->v[t->n];
    *e = (struct new_table){.index = index, .bytes = calloc(1, len)};
    if (!e->bytes)
        return NULL;
    t->n++;
    return e;
}

static void new_tables_fini(struct new_tables *t)
{
    for (size_t i = 0; i < t->n; i++)
        free(t->v[i].bytes);
    free(t->v);
}

void rewrite_fini(struct rewrite *rw)
{
    free(rw->moves.v);
    free(rw->freed.v);
    new_tables_fini(&rw->l2);
    new_tables_fini(&rw->refblocks);
    new_tables_fini(&rw->bitmaps);
    free(rw->l1);
    free(rw->reftable);
    refs_fini(&rw->refs);
    refblocks_fini(&rw->stored);
    refs_report_fini(&rw->report);
}
