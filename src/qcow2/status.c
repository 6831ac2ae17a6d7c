/* SPDX-License-Identifier: MIT */
#include "status.h"

#include "base/checked.h"
#include "holes.h"

struct teller {
    const struct chain *c;
    struct block_status now; /* not yet told; length 0: nothing */
    block_status_fn *fn;
    void *user;
    struct holes *holes; /* by layer */
};

static void teller_finip(struct teller *t)
{
    holes_free(t->holes, t->c->n);
}

static bool continues(const struct block_status *a,
                      const struct block_status *b)
{
    return a->start + a->length == b->start && a->depth == b->depth &&
           a->present == b->present && a->zero == b->zero &&
           a->data == b->data && a->compressed == b->compressed &&
           a->has_offset == b->has_offset &&
           (!a->has_offset || a->offset + a->length == b->offset);
}

static int tell(struct teller *t, const struct block_status *s)
{
    int r = 0;

    if (s->length == 0)
        return 0;
    if (t->now.length && continues(&t->now, s)) {
        t->now.length += s->length;
        return 0;
    }
    if (t->now.length)
        r = t->fn(t->user, &t->now);
    t->now = *s;
    return r;
}

/* A range that layer `depth` lets fall through to nothing. With extended L2
 * entries it may own clusters there, whose offset QEMU tells. */
static int tell_nothing(struct teller *t, uint32_t depth, uint64_t from,
                        uint64_t to)
{
    struct extent_walk w = extents_walk(&t->c->layers[depth]->map, from);
    struct block_status s = {.depth = depth, .zero = true};

    while (from < to) {
        const struct extent *e = w.on && w.e.guest < to ? &w.e : NULL;
        int r;

        s.start = from;
        s.has_offset = e && e->kind == EXTENT_OWNED && e->guest <= from;
        s.offset = s.has_offset ? e->host + (from - e->guest) : 0;
        if (s.has_offset)
            s.length = min_u64(extent_end(e), to) - from;
        else
            s.length = (e && e->guest > from ? e->guest : to) - from;
        if (e && (s.has_offset || e->guest <= from))
            extents_next(&w);
        r = tell(t, &s);
        if (r)
            return r;
        from += s.length;
    }
    return 0;
}

/* Data clusters of an image with preallocated metadata may be holes of its
 * file: data that reads as zeros. */
static int tell_sparse(struct teller *t, struct block_status s)
{
    const struct holes *h = &t->holes[s.depth];
    uint64_t end = s.start + s.length, off = s.offset;

    for (size_t i = holes_find(h, off); s.start < end; s.start += s.length) {
        const struct holes_data *data = i < h->n ? &h->v[i] : NULL;
        int r;

        s.zero = !data || data->from > off;
        s.offset = off;
        s.length = end - s.start;
        if (data)
            s.length =
                min_u64(s.length, (s.zero ? data->from : data->to) - off);
        r = tell(t, &s);
        if (r)
            return r;
        off += s.length;
        i += data && off == data->to;
    }
    return 0;
}

/* The bytes between the end of a raw file and that of its last sector. */
static uint64_t behind_end(const struct image *img, const struct extent *e)
{
    uint64_t size = img->info.file_size;

    return image_is_qcow2(img) || e->host + e->len <= size || e->host >= size
               ? 0
               : e->host + e->len - size;
}

static int tell_extent(struct teller *t, const struct extent *e)
{
    struct block_status s = {.start = e->guest,
                             .length = e->len,
                             .depth = e->layer,
                             .present = true};
    uint64_t behind;
    int r;

    switch ((enum extent_kind)e->kind) {
    case EXTENT_DATA:
        s.data = s.has_offset = true;
        s.offset = e->host;
        if (t->holes[e->layer].count)
            return tell_sparse(t, s);
        behind = behind_end(t->c->layers[e->layer], e);
        if (behind > 0) {
            s.length -= behind;
            if ((r = tell(t, &s)) != 0)
                return r;
            s.start += s.length;
            s.offset += s.length;
            s.length = behind;
            s.data = false;
            s.zero = true;
        }
        break;
    case EXTENT_ZERO_OWNED:
        s.zero = s.has_offset = true;
        s.offset = e->host;
        break;
    case EXTENT_ZERO:
        s.zero = true;
        s.has_offset = !image_is_qcow2(t->c->layers[e->layer]);
        s.offset = s.has_offset ? e->guest : 0;
        break;
    case EXTENT_COMPRESSED:
        s.data = s.compressed = true;
        break;
    case EXTENT_OWNED:
    case EXTENT_PAST_END:
    case EXTENT_FOREIGN: /* in no view of chain_view() */
        return tell_nothing(t, e->layer, e->guest, extent_end(e));
    }
    return tell(t, &s);
}

static int tell_view(struct teller *t, const struct extents *view)
{
    uint64_t pos = 0, size = t->c->layers[0]->size;
    uint32_t last = (uint32_t)t->c->n - 1;
    int r;

    for (struct extent_walk w = extents_walk(view, 0); w.on; extents_next(&w)) {
        r = tell_nothing(t, last, pos, w.e.guest);
        if (r == 0)
            r = tell_extent(t, &w.e);
        if (r)
            return r;
        pos = extent_end(&w.e);
    }
    r = tell_nothing(t, last, pos, size);
    if (r)
        return r;
    return t->now.length ? t->fn(t->user, &t->now) : 0;
}

int block_status(struct chain *c, block_status_fn *fn, void *user,
                 struct qstill_error *err)
{
    CLEANUP(extents_fini) struct extents view = EXTENTS_INIT;
    CLEANUP(teller_finip)
    struct teller t = {.c = c, .fn = fn, .user = user};

    if (holes_ask(c, &t.holes, err) < 0)
        return err->code;
    if (chain_view(c, 0, c->n - 1, CHAIN_KEEP_MAPS, &view, err) < 0)
        return err->code;
    return tell_view(&t, &view);
}
