/* SPDX-License-Identifier: MIT */
#include "fill.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

/* As much as 256 reads of 64 KiB in flight take. */
#define SPARE_BYTES ((size_t)16 << 20)

struct fill_piece {
    struct unpack_wait wait; /* first */
    struct aio_op op;
    struct fill *fill;
    size_t at;       /* in the fill's buffer */
    size_t len;      /* there */
    bool whole;      /* a compressed cluster: */
    uint8_t *packed; /* the input, while it is read; ours */
    size_t packed_size;
    struct fill_spares *spares;
    struct unpack *unpack; /* a part of one, ... */
    uint64_t skip;         /* ... bytes of it before that */
    const struct image *img;
};

void fill_begin(struct fill *f, void *data, size_t room)
{
    f->data = data;
    f->room = room;
    f->len = 0;
    f->error = 0;
    f->count = 0;
}

static void drop_packed(struct fill *f)
{
    for (size_t i = 0; i < f->count; i++) {
        free(take_ptr(&f->pieces[i].packed));
        unpack_put(&f->pieces[i].unpack);
    }
}

void fill_fini(struct fill *f)
{
    drop_packed(f);
    free(f->pieces);
    f->pieces = NULL;
    f->count = f->cap = 0;
}

/* ------------------------------------------------------------------- pieces */

static struct fill_piece *add_piece(struct fill *f, const struct image *img,
                                    size_t len)
{
    struct fill_piece *p;

    if (f->count == f->cap) {
        size_t cap = f->cap ? 2 * f->cap : 16;

        p = realloc(f->pieces, cap * sizeof(*p));
        if (!p)
            return NULL;
        f->pieces = p;
        f->cap = cap;
    }
    p = &f->pieces[f->count++];
    *p = (struct fill_piece){.img = img, .at = f->len, .len = len};
    p->op.type = AIO_READ;
    p->op.fd = img->fd;
    return p;
}

static void add_zeros(struct fill *f, size_t len)
{
    memset(f->data + f->len, 0, len);
    f->len += len;
}

/* What lies across the end of the file goes through the page cache: direct
 * reads end there in ways that differ between filesystems. */
static bool can_be_direct(const struct image *img, uint64_t off, size_t len,
                          const void *data)
{
    return img->direct >= 0 && off % img->align.off == 0 &&
           len % img->align.off == 0 && (uintptr_t)data % img->align.mem == 0 &&
           off + len <= img->info.file_size;
}

static int add_bytes(struct fill *f, const struct image *img, uint64_t off,
                     size_t len)
{
    struct fill_piece *p = add_piece(f, img, len);

    if (!p)
        return -1;
    p->op.off = off;
    p->op.len = len;
    p->op.data = f->data + f->len;
    if (can_be_direct(img, off, len, p->op.data))
        p->op.fd = img->direct;
    f->len += len;
    return 0;
}

static bool begin_whole(struct aio_op *op)
{
    struct fill_piece *p = op->user;
    struct fill_spares *s = p->spares;

    if (s && s->n > 0 && s->size == p->packed_size)
        p->packed = s->v[--s->n];
    else
        p->packed = malloc(p->packed_size);
    op->data = p->packed;
    return op->data;
}

static void spares_drop(struct fill_spares *s)
{
    while (s->n > 0)
        free(s->v[--s->n]);
}

static void end_whole(struct fill_piece *p)
{
    struct fill_spares *s = p->spares;
    uint8_t *packed = take_ptr(&p->packed);

    if (!packed || !s || s->n == FILL_SPARES ||
        (s->n + 1) * p->packed_size > SPARE_BYTES) {
        free(packed);
        return;
    }
    if (s->size != p->packed_size)
        spares_drop(s);
    s->size = p->packed_size;
    s->v[s->n++] = packed;
}

static int add_compressed(struct filler *fl, struct fill *f,
                          const struct image *img, const struct extent *e,
                          uint64_t guest, size_t len)
{
    struct fill_piece *p = add_piece(f, img, len);

    if (!p)
        return -1;
    f->len += len;
    p->whole = len == img->cluster_size;
    if (p->whole) {
        p->op.off = e->host;
        p->op.len = e->clen;
        p->op.begin = begin_whole;
        p->packed_size = max_u64(e->clen, len);
        return 0;
    }
    p->unpack = unpack_get(fl->unpack, img, e);
    p->skip = guest % img->cluster_size;
    return p->unpack ? 0 : -1;
}

/* A part of one extent. */
static int add_extent(struct filler *fl, struct fill *f, const struct extent *e,
                      uint64_t guest, size_t len)
{
    const struct image *img = fl->chain->layers[e->layer];

    switch ((enum extent_kind)e->kind) {
    case EXTENT_DATA:
        return add_bytes(f, img, e->host + (guest - e->guest), len);
    case EXTENT_COMPRESSED:
        return add_compressed(fl, f, img, e, guest, len);
    default:
        add_zeros(f, len);
        return 0;
    }
}

int fill_guest(struct filler *fl, struct fill *f, uint64_t guest, size_t len)
{
    uint64_t end = guest + len;
    struct extent_walk *w = &fl->at;

    if (!w->x)
        w->x = fl->view;
    extents_seek(w, guest); /* ranges mostly come in order */
    while (guest < end) {
        const struct extent *e = w->on ? &w->e : NULL;
        uint64_t to;

        if (!e || e->guest > guest) {
            to = e ? min_u64(e->guest, end) : end;
            add_zeros(f, (size_t)(to - guest));
        } else {
            to = min_u64(extent_end(e), end);
            if (add_extent(fl, f, e, guest, (size_t)(to - guest)) < 0)
                return -1;
            if (to == extent_end(e))
                extents_next(w);
        }
        guest = to;
    }
    return 0;
}

int fill_raw(struct filler *fl, struct fill *f, uint16_t layer, uint64_t off,
             size_t take, size_t len)
{
    if (add_bytes(f, fl->chain->layers[layer], off, take) < 0)
        return -1;
    add_zeros(f, len - take);
    return 0;
}

/* --------------------------------------------------------------------- end */

static int piece_copy(struct fill *f, struct fill_piece *p)
{
    uint8_t *out = f->data + p->at;

    if (p->unpack)
        return unpack_copy(p->unpack, out, p->skip, p->len, &f->why);
    return p->whole ? unpack_whole(p->img, p->op.off, p->packed, p->op.len, out,
                                   &f->why)
                    : 0;
}

static int piece_result(struct fill *f, struct fill_piece *p)
{
    struct aio_op *op = &p->op;

    if (op->error == ENOMEM && p->whole && !p->packed)
        return err_nomem(&f->why);
    if (op->error)
        return err_errno(&f->why, op->error, "reading %s", p->img->path);
    if (op->moved < op->len)
        memset((uint8_t *)op->data + op->moved, 0, op->len - op->moved);
    return piece_copy(f, p);
}

static void piece_end(struct fill *f, struct fill_piece *p)
{
    if (f->error == 0)
        f->error = piece_result(f, p);
    end_whole(p);
    unpack_put(&p->unpack);
}

static void piece_over(struct fill_piece *p)
{
    struct fill *f = p->fill;

    piece_end(f, p);
    if (--f->pending == 0)
        f->done(f);
}

static void piece_read(struct aio_op *op)
{
    piece_over(op->user);
}

static void piece_unpacked(struct unpack_wait *w)
{
    piece_over((struct fill_piece *)w);
}

static int read_now(const struct io *io, struct fill *f, struct fill_piece *p)
{
    struct qstill_error why;

    if (p->unpack) {
        unpack_now(p->unpack, io);
        return 0;
    }
    if (p->whole && !begin_whole(&p->op))
        return err_nomem(&f->why);
    if (io_read_upto(io, p->op.fd, p->op.data, p->op.len, p->op.off,
                     &p->op.moved, &why) < 0) {
        f->why = why;
        return err_wrap(&f->why, "reading %s", p->img->path);
    }
    return 0;
}

int fill_now(const struct io *io, struct fill *f)
{
    for (size_t i = 0; i < f->count; i++) {
        struct fill_piece *p = &f->pieces[i];

        p->op.error = p->op.moved = 0;
        p->op.user = p;
        if (f->error == 0)
            f->error = read_now(io, f, p);
        piece_end(f, p);
    }
    return f->error;
}

void fill_start(struct filler *fl, struct fill *f)
{
    /* pieces do not move any more from here on, and some may be over at once:
     * one more than there are, so that all have begun before that is told */
    f->filler = fl;
    f->pending = f->count + 1;
    for (size_t i = 0; i < f->count; i++) {
        struct fill_piece *p = &f->pieces[i];

        p->fill = f;
        p->spares = &fl->spares;
        p->wait.ready = piece_unpacked;
        p->op.user = p;
        p->op.done = piece_read;
        if (p->unpack)
            unpack_start(p->unpack, fl->aio, &p->wait);
        else
            aio_submit(fl->aio, &p->op);
    }
    if (--f->pending == 0)
        f->done(f);
}

void filler_fini(struct filler *fl)
{
    spares_drop(&fl->spares);
    for (size_t i = 0; i < UNPACK_KEPT; i++)
        unpack_put(&fl->unpack[i]);
}
