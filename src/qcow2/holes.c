/* SPDX-License-Identifier: MIT */
#include "holes.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/checked.h"
#include "refs.h"

void holes_free(struct holes *h, size_t n)
{
    for (size_t i = 0; h && i < n; i++)
        free(h[i].v);
    free(h);
}

size_t holes_find(const struct holes *h, uint64_t off)
{
    size_t lo = 0, hi = h->n;

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;

        if (h->v[mid].to > off)
            hi = mid;
        else
            lo = mid + 1;
    }
    return lo;
}

/* -------------------------------------------------------------------- asking
 */

/* Whether more clusters are in use than the file has disk blocks for. */
static int qemu_would(const struct image *img, bool *out,
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

static int push(struct holes *h, uint64_t from, uint64_t to)
{
    if (h->n == h->cap) {
        size_t cap = h->cap ? 2 * h->cap : 64;
        struct holes_data *v = realloc(h->v, cap * sizeof(*v));

        if (!v)
            return -1;
        h->v = v;
        h->cap = cap;
    }
    h->v[h->n++] = (struct holes_data){from, to};
    return 0;
}

/* Once: the answer takes the filesystem the longer the more pieces the data
 * between here and the next hole has, and there may be as many questions. */
static int ask(struct holes *h, const struct image *img,
               struct qstill_error *err)
{
    uint64_t pos = 0, size = img->info.file_size;

    h->count = true;
    while (pos < size) {
        off_t data = lseek(img->fd, (off_t)pos, SEEK_DATA), hole;

        if (data < 0 && errno == ENXIO)
            break;
        data = data < 0 ? (off_t)pos : data; /* cannot tell */
        hole = lseek(img->fd, data, SEEK_HOLE);
        hole = hole <= data ? (off_t)size : hole;
        if (push(h, (uint64_t)data, (uint64_t)hole) < 0)
            return err_nomem(err);
        pos = (uint64_t)hole;
    }
    return 0;
}

int holes_ask(const struct chain *c, struct holes **out,
              struct qstill_error *err)
{
    *out = calloc(c->n, sizeof(**out));
    if (!*out)
        return err_nomem(err);
    for (size_t i = 0; i < c->n; i++) {
        bool count;

        if (qemu_would(c->layers[i], &count, err) < 0 ||
            (count && ask(&(*out)[i], c->layers[i], err) < 0))
            return err->code;
    }
    return 0;
}

/* ------------------------------------------------------------------ dropping
 */

/* Fewer are not worth it. Whether they are in use by the refcounts makes no
 * difference: these can be wrong. */
static bool has_many(const struct image *img)
{
    uint64_t size = img->info.file_size;

    return image_is_qcow2(img) && img->info.allocated < size - size / 16;
}

static int push_part(const struct extent *e, uint64_t from, uint64_t to,
                     bool zero, struct extents *out)
{
    struct extent part = *e;

    part.guest += from - e->host;
    part.host = zero ? 0 : from;
    part.len = to - from;
    if (zero)
        part.kind = EXTENT_ZERO;
    return to > from ? extents_push(out, &part) : 0;
}

/* Only whole clusters: what is left of a cluster could not be shared. */
static int split(const struct holes *h, const struct extent *e, uint64_t cs,
                 struct extents *out)
{
    uint64_t pos = e->host, end = e->host + e->len;

    for (size_t i = holes_find(h, pos); pos < end;) {
        uint64_t data = i < h->n ? h->v[i].from : end;
        uint64_t to = data >= end ? end : round_down_u64(data, cs);

        if (push_part(e, pos, max_u64(pos, to), true, out) < 0)
            return -1;
        pos = max_u64(pos, to);
        if (pos == end)
            return 0;
        to = min_u64(end, round_up_u64(h->v[i].to, cs));
        if (push_part(e, pos, to, false, out) < 0)
            return -1;
        pos = to;
        while (i < h->n && h->v[i].to <= pos)
            i++;
    }
    return 0;
}

static int split_all(const struct chain *c, const struct holes *h,
                     struct extents *view, struct qstill_error *err)
{
    CLEANUP(extents_fini) struct extents old = *view;

    *view = (struct extents)EXTENTS_INIT;
    for (struct extent_walk w = extents_walk(&old, 0); w.on; extents_next(&w)) {
        const struct extent *e = &w.e;
        int r = e->kind == EXTENT_DATA && h[e->layer].count
                    ? split(&h[e->layer], e, c->layers[e->layer]->cluster_size,
                            view)
                    : extents_push(view, e);

        if (r < 0)
            return err_nomem(err);
    }
    return 0;
}

int holes_drop(const struct chain *c, struct extents *view,
               struct qstill_error *err)
{
    struct holes *h = calloc(c->n, sizeof(*h));
    bool any = false;
    int r = h ? 0 : err_nomem(err);

    for (struct extent_walk w = extents_walk(view, 0); r == 0 && w.on;
         extents_next(&w))
        h[w.e.layer].count |= w.e.kind == EXTENT_DATA;
    for (size_t i = 0; r == 0 && i < c->n; i++) {
        h[i].count = h[i].count && has_many(c->layers[i]);
        any |= h[i].count;
        if (h[i].count)
            r = ask(&h[i], c->layers[i], err);
    }
    if (r == 0 && any)
        r = split_all(c, h, view, err);
    holes_free(h, c->n);
    return r;
}
