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

/* ------------------------------------------------------------------- moves */

static uint32_t bits_up_to(unsigned n)
{
    return n < 32 ? (1u << n) - 1 : UINT32_MAX;
}

/* The same parts in smaller ones, 2^by of each. */
static uint32_t finer(uint32_t parts, unsigned by)
{
    uint32_t out = 0;

    for (unsigned i = 0; i < 32u >> by; i++)
        if (parts >> i & 1)
            out |= bits_up_to(1u << by) << (i << by);
    return out;
}

/* e becomes more parts of the last one. */
static bool join(const struct moves *m, struct move *last, const struct move *e)
{
    uint64_t ahead = e->from - last->from, span = ahead + e->len;
    unsigned bits = (unsigned)__builtin_ctzll(ahead | e->len | last->len);

    if (last->parts && last->part_bits < bits)
        bits = last->part_bits;
    if (m->block == 0 || e->dst - last->dst != ahead || ahead < last->len ||
        last->dst / m->block != (last->dst + span - 1) / m->block ||
        span >> bits > 32)
        return false;
    last->parts = last->parts ? finer(last->parts, last->part_bits - bits)
                              : bits_up_to((unsigned)(last->len >> bits));
    last->parts |= bits_up_to((unsigned)(e->len >> bits)) << (ahead >> bits);
    last->part_bits = (uint8_t)bits;
    last->len = span;
    return true;
}

int moves_push(struct moves *m, const struct move *e)
{
    struct move *last = m->n ? &m->lots[m->n - 1] : NULL;

    if (last && last->layer == MOVE_GUEST && e->layer == MOVE_GUEST &&
        last->over == e->over) {
        if (!last->parts && last->from + last->len == e->from &&
            last->dst + last->len == e->dst) {
            last->len += e->len;
            return 0;
        }
        if (join(m, last, e))
            return 0;
    }
    if (rewrite_make_room((void **)&m->lots, m->n, &m->cap, sizeof(*m->lots)) <
        0)
        return -1;
    m->lots[m->n++] = *e;
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

    while (i < m->n && m->lots[i - 1].dst <= m->lots[i].dst)
        i++;
    if (i < m->n)
        qsort(m->lots, m->n, sizeof(*m->lots), by_place);
}

/* The next piece of x->lots[i], or of what follows. */
static void load(struct move_walk *w)
{
    const struct move *v;
    unsigned n;

    w->on = w->i < w->x->n;
    if (!w->on)
        return;
    v = &w->x->lots[w->i];
    w->m = *v;
    if (v->layer != MOVE_GUEST || v->parts == 0) {
        w->i++;
        return;
    }
    w->part += (unsigned)__builtin_ctz(v->parts >> w->part);
    n = (unsigned)__builtin_ctzll(~(uint64_t)(v->parts >> w->part));
    w->m.from += (uint64_t)w->part << v->part_bits;
    w->m.dst += (uint64_t)w->part << v->part_bits;
    w->m.len = (uint64_t)n << v->part_bits;
    w->m.parts = 0;
    w->part += n;
    if (w->part >= 32 || v->parts >> w->part == 0) {
        w->i++;
        w->part = 0;
    }
}

struct move_walk moves_walk(const struct moves *x)
{
    struct move_walk w = {.x = x};

    load(&w);
    return w;
}

void moves_next(struct move_walk *w)
{
    load(w);
}

/* -------------------------------------------------------------- other lists */

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
    free(rw->moves.lots);
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
