/* SPDX-License-Identifier: MIT */
#include "fill.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/compress.h"

struct fill_piece {
    struct aio_op op;
    struct fill *fill;
    size_t at;       /* in the fill's buffer */
    size_t len;      /* there */
    uint64_t skip;   /* compressed: bytes of the cluster before it */
    uint8_t *packed; /* compressed: the input, ours */
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
        free(f->pieces[i].packed);
        f->pieces[i].packed = NULL;
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

static int add_compressed(struct fill *f, const struct image *img,
                          const struct extent *e, uint64_t guest, size_t len)
{
    struct fill_piece *p = add_piece(f, img, len);

    if (!p)
        return -1;
    p->packed = malloc(e->clen);
    if (!p->packed)
        return -1;
    p->skip = guest % img->cluster_size;
    p->op.off = e->host;
    p->op.len = e->clen;
    p->op.data = p->packed;
    f->len += len;
    return 0;
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
        return add_compressed(f, img, e, guest, len);
    default:
        add_zeros(f, len);
        return 0;
    }
}

/* The first extent that ends after `guest`; ranges mostly come in order. */
static size_t find(struct filler *fl, uint64_t guest)
{
    const struct extents *x = fl->view;
    size_t i = fl->hint;

    if (i >= x->n || x->v[i].guest > guest || extent_end(&x->v[i]) <= guest) {
        if (i + 1 < x->n && x->v[i + 1].guest <= guest &&
            extent_end(&x->v[i + 1]) > guest)
            i++;
        else
            i = extents_find(x, guest);
    }
    fl->hint = i;
    return i;
}

int fill_guest(struct filler *fl, struct fill *f, uint64_t guest, size_t len)
{
    uint64_t end = guest + len;
    size_t i = find(fl, guest);

    while (guest < end) {
        const struct extent *e = i < fl->view->n ? &fl->view->v[i] : NULL;
        uint64_t to;

        if (!e || e->guest > guest) {
            to = e ? min_u64(e->guest, end) : end;
            add_zeros(f, (size_t)(to - guest));
        } else {
            to = min_u64(extent_end(e), end);
            if (add_extent(fl, f, e, guest, (size_t)(to - guest)) < 0)
                return -1;
            if (to == extent_end(e))
                i++;
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

static int inflate_into(const struct image *img, uint8_t *out, size_t len,
                        const struct fill_piece *p)
{
    if (img->info.header.compression_type == QCOW2_COMPRESSION_ZSTD)
        return compress_unzstd(out, len, p->packed, p->op.len);
    return compress_inflate(out, len, p->packed, p->op.len);
}

static int unpack(struct fill *f, struct fill_piece *p)
{
    size_t cs = (size_t)p->img->cluster_size;
    CLEANUP(freep) uint8_t *whole = NULL;
    uint8_t *out = f->data + p->at;

    if (p->len < cs) {
        out = whole = malloc(cs);
        if (!whole)
            return err_nomem(&f->why);
    }
    if (inflate_into(p->img, out, cs, p) < 0)
        return err_set(&f->why, QSTILL_E_CORRUPT,
                       "%s: compressed data at offset %llu is damaged",
                       p->img->path, (unsigned long long)p->op.off);
    if (whole)
        memcpy(f->data + p->at, whole + p->skip, p->len);
    return 0;
}

static void piece_end(struct fill *f, struct fill_piece *p)
{
    struct aio_op *op = &p->op;

    if (op->error && f->error == 0)
        f->error = err_errno(&f->why, op->error, "reading %s", p->img->path);
    else if (op->moved < op->len)
        memset((uint8_t *)op->data + op->moved, 0, op->len - op->moved);
    if (p->packed && f->error == 0)
        f->error = unpack(f, p);
    free(p->packed);
    p->packed = NULL;
}

static void piece_done(struct aio_op *op)
{
    struct fill_piece *p = op->user;
    struct fill *f = p->fill;

    piece_end(f, p);
    if (--f->pending == 0)
        f->done(f);
}

int fill_now(const struct io *io, struct fill *f)
{
    for (size_t i = 0; i < f->count; i++) {
        struct fill_piece *p = &f->pieces[i];
        struct qstill_error why;

        p->op.error = p->op.moved = 0;
        if (f->error == 0 && io_read_upto(io, p->op.fd, p->op.data, p->op.len,
                                          p->op.off, &p->op.moved, &why) < 0) {
            f->why = why;
            f->error = err_wrap(&f->why, "reading %s", p->img->path);
        }
        piece_end(f, p);
    }
    return f->error;
}

void fill_start(struct filler *fl, struct fill *f)
{
    f->filler = fl;
    f->pending = f->count;
    if (f->count == 0) {
        f->done(f);
        return;
    }
    /* pieces do not move any more from here on */
    for (size_t i = 0; i < f->count; i++) {
        f->pieces[i].fill = f;
        f->pieces[i].op.user = &f->pieces[i];
        f->pieces[i].op.done = piece_done;
        aio_submit(fl->aio, &f->pieces[i].op);
    }
}
