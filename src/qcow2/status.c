/* SPDX-License-Identifier: MIT */
#include "status.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/checked.h"
#include "refs.h"

/* Where the file of a layer has data. */
struct sparse {
    bool asked; /* see holes_count() */
    struct range {
        uint64_t from, to;
    } * v;
    size_t n, cap;
};

struct teller {
    const struct chain *c;
    struct block_status now; /* not yet told; length 0: nothing */
    block_status_fn *fn;
    void *user;
    struct sparse *sparse; /* by layer */
};

static void teller_finip(struct teller *t)
{
    for (size_t i = 0; t->sparse && i < t->c->n; i++)
        free(t->sparse[i].v);
    free(t->sparse);
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
    const struct extents *map = &t->c->layers[depth]->map;
    struct block_status s = {.depth = depth, .zero = true};
    size_t i = extents_find(map, from);

    while (from < to) {
        const struct extent *e =
            i < map->n && map->v[i].guest < to ? &map->v[i] : NULL;
        int r;

        s.start = from;
        s.has_offset = e && e->kind == EXTENT_OWNED && e->guest <= from;
        s.offset = s.has_offset ? e->host + (from - e->guest) : 0;
        if (s.has_offset)
            s.length = min_u64(extent_end(e), to) - from;
        else
            s.length = (e && e->guest > from ? e->guest : to) - from;
        if (e && (s.has_offset || e->guest <= from))
            i++;
        r = tell(t, &s);
        if (r)
            return r;
        from += s.length;
    }
    return 0;
}

/* The first data that ends behind `off`; s->n when there is none. */
static size_t find_data(const struct sparse *s, uint64_t off)
{
    size_t lo = 0, hi = s->n;

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;

        if (s->v[mid].to > off)
            hi = mid;
        else
            lo = mid + 1;
    }
    return lo;
}

/* Data clusters of an image with preallocated metadata may be holes of its
 * file: data that reads as zeros. */
static int tell_sparse(struct teller *t, struct block_status s)
{
    const struct sparse *sp = &t->sparse[s.depth];
    uint64_t end = s.start + s.length, off = s.offset;

    for (size_t i = find_data(sp, off); s.start < end; s.start += s.length) {
        const struct range *data = i < sp->n ? &sp->v[i] : NULL;
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
        if (t->sparse[e->layer].asked)
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
        return tell_nothing(t, e->layer, e->guest, extent_end(e));
    }
    return tell(t, &s);
}

/*
 * Whether QEMU would look for holes in the clusters of a layer: when more
 * clusters are in use than the file has disk blocks for.
 */
static int holes_count(const struct image *img, bool *out,
                       struct qstill_error *err)
{
    CLEANUP(refblocks_fini) struct refblocks stored = {0};
    CLEANUP(refs_report_fini) struct refs_report ignored = {0};
    uint64_t real = img->info.allocated / img->cluster_size, used = 0;
    uint64_t enough = max_u64(real * 10 / 9, real + 2);

    *out = false;
    if (!image_is_qcow2(img) || image_clusters(img) < enough)
        return 0;
    if (refblocks_load(img, &stored, &ignored, err) < 0)
        return err->code;
    for (uint64_t i = refblocks_seek(&stored, 0);
         i < image_clusters(img) && used < enough;
         i = refblocks_seek(&stored, i + 1))
        used += refblocks_get(&stored, i) != 0;
    *out = used >= enough;
    return 0;
}

static int push_range(struct sparse *s, uint64_t from, uint64_t to)
{
    if (s->n == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 64;
        struct range *v = realloc(s->v, cap * sizeof(*v));

        if (!v)
            return -1;
        s->v = v;
        s->cap = cap;
    }
    s->v[s->n++] = (struct range){from, to};
    return 0;
}

/* Once: the answer takes the filesystem the longer the more pieces the data
 * between here and the next hole has, and there may be as many questions. */
static int ask(struct sparse *s, const struct image *img,
               struct qstill_error *err)
{
    uint64_t pos = 0, size = img->info.file_size;

    s->asked = true;
    while (pos < size) {
        off_t data = lseek(img->fd, (off_t)pos, SEEK_DATA), hole;

        if (data < 0 && errno == ENXIO)
            break;
        data = data < 0 ? (off_t)pos : data; /* cannot tell */
        hole = lseek(img->fd, data, SEEK_HOLE);
        hole = hole <= data ? (off_t)size : hole;
        if (push_range(s, (uint64_t)data, (uint64_t)hole) < 0)
            return err_nomem(err);
        pos = (uint64_t)hole;
    }
    return 0;
}

static int ask_of_holes(struct teller *t, size_t i, struct qstill_error *err)
{
    bool sparse;

    if (holes_count(t->c->layers[i], &sparse, err) < 0)
        return err->code;
    return sparse ? ask(&t->sparse[i], t->c->layers[i], err) : 0;
}

static int tell_view(struct teller *t, const struct extents *view)
{
    uint64_t pos = 0, size = t->c->layers[0]->size;
    uint32_t last = (uint32_t)t->c->n - 1;

    for (size_t i = 0; i <= view->n; i++) {
        const struct extent *e = i < view->n ? &view->v[i] : NULL;
        int r = tell_nothing(t, last, pos, e ? e->guest : size);

        if (r == 0 && e) {
            r = tell_extent(t, e);
            pos = extent_end(e);
        }
        if (r)
            return r;
    }
    return t->now.length ? t->fn(t->user, &t->now) : 0;
}

int block_status(struct chain *c, block_status_fn *fn, void *user,
                 struct qstill_error *err)
{
    CLEANUP(extents_fini) struct extents view = EXTENTS_INIT;
    CLEANUP(teller_finip)
    struct teller t = {.c = c, .fn = fn, .user = user};

    t.sparse = calloc(c->n, sizeof(*t.sparse));
    if (!t.sparse)
        return err_nomem(err);
    for (size_t i = 0; i < c->n; i++)
        if (ask_of_holes(&t, i, err) < 0)
            return err->code;
    if (chain_view(c, 0, c->n - 1, CHAIN_KEEP_MAPS, &view, err) < 0)
        return err->code;
    return tell_view(&t, &view);
}
