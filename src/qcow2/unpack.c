/* SPDX-License-Identifier: MIT */
#include "unpack.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/compress.h"

enum state { UNPACK_NEW, UNPACK_READING, UNPACK_READY };

struct unpack {
    atomic_uint refs;
    const struct image *img;
    uint64_t host;
    uint32_t clen;
    enum state state;
    uint8_t *packed;          /* while it is read */
    uint8_t *data;            /* when it is ready; NULL: it failed, */
    struct qstill_error *why; /* or NULL: out of memory */
    struct aio_op op;
    struct unpack_wait *waiting;
    pthread_mutex_t lock; /* of unpack_now() */
};

/* ---------------------------------------------------------------- lifetime */

static struct unpack *make(const struct image *img, const struct extent *e)
{
    struct unpack *u = calloc(1, sizeof(*u));

    if (!u)
        return NULL;
    u->img = img;
    u->host = e->host;
    u->clen = e->clen;
    pthread_mutex_init(&u->lock, NULL);
    atomic_init(&u->refs, 1);
    return u;
}

static bool is_of(const struct unpack *u, const struct image *img,
                  const struct extent *e)
{
    return u && u->img == img && u->host == e->host && u->clen == e->clen;
}

/* The last one asked for comes first. */
struct unpack *unpack_get(struct unpack *kept[UNPACK_KEPT],
                          const struct image *img, const struct extent *e)
{
    struct unpack *u = NULL;
    size_t i = 0;

    while (i < UNPACK_KEPT && !is_of(kept[i], img, e))
        i++;
    if (i < UNPACK_KEPT) {
        u = kept[i];
    } else {
        u = make(img, e);
        if (!u)
            return NULL;
        unpack_put(&kept[--i]);
    }
    memmove(kept + 1, kept, i * sizeof(*kept));
    kept[0] = u;
    atomic_fetch_add(&u->refs, 1);
    return u;
}

void unpack_put(struct unpack **u)
{
    struct unpack *gone = take_ptr(u);

    if (!gone || atomic_fetch_sub(&gone->refs, 1) > 1)
        return;
    pthread_mutex_destroy(&gone->lock);
    free(gone->packed);
    free(gone->data);
    free(gone->why);
    free(gone);
}

/* ---------------------------------------------------------------- the work */

int unpack_whole(const struct image *img, uint64_t host, const uint8_t *packed,
                 size_t packed_len, uint8_t *out, struct qstill_error *err)
{
    size_t cs = (size_t)img->cluster_size;
    int r = img->info.header.compression_type == QCOW2_COMPRESSION_ZSTD
                ? compress_unzstd(out, cs, packed, packed_len)
                : compress_inflate(out, cs, packed, packed_len);

    if (r < 0)
        return err_nomem(err);
    return r > 0 ? err_set(err, QSTILL_E_CORRUPT,
                           "%s: compressed data at offset %llu is damaged",
                           img->path, (unsigned long long)host)
                 : 0;
}

static void keep_error(struct unpack *u, const struct qstill_error *why)
{
    free(take_ptr(&u->data));
    u->why = malloc(sizeof(*u->why));
    if (u->why)
        *u->why = *why;
}

/* `got` bytes were read; past the end of the file there are zeros. */
static void inflate(struct unpack *u, size_t got)
{
    struct qstill_error why;

    memset(u->packed + got, 0, u->clen - got);
    u->data = malloc((size_t)u->img->cluster_size);
    if (u->data &&
        unpack_whole(u->img, u->host, u->packed, u->clen, u->data, &why) < 0)
        keep_error(u, &why);
}

static void be_ready(struct unpack *u)
{
    struct unpack_wait *w = take_ptr(&u->waiting);

    free(take_ptr(&u->packed));
    u->state = UNPACK_READY;
    while (w) {
        struct unpack_wait *next = w->next; /* whose it is may be gone then */

        w->ready(w);
        w = next;
    }
}

/* Thousands of clusters may wait to be read, each for a few bytes. */
static bool begin_read(struct aio_op *op)
{
    struct unpack *u = op->user;

    op->data = u->packed = malloc(op->len);
    return op->data;
}

static void was_read(struct aio_op *op)
{
    struct unpack *u = op->user;
    struct qstill_error why;

    if (op->error == ENOMEM && !u->packed) {
        /* that is what neither data nor a reason says */
    } else if (op->error) {
        err_errno(&why, op->error, "reading %s", u->img->path);
        keep_error(u, &why);
    } else {
        inflate(u, op->moved);
    }
    be_ready(u);
    unpack_put(&u);
}

void unpack_start(struct unpack *u, struct aio *aio, struct unpack_wait *w)
{
    if (u->state == UNPACK_READY) {
        w->ready(w);
        return;
    }
    w->next = u->waiting;
    u->waiting = w;
    if (u->state == UNPACK_READING)
        return;
    u->state = UNPACK_READING;
    atomic_fetch_add(&u->refs, 1);
    u->op = (struct aio_op){.type = AIO_READ,
                            .fd = u->img->fd,
                            .off = u->host,
                            .len = u->clen,
                            .begin = begin_read,
                            .done = was_read,
                            .user = u};
    aio_submit(aio, &u->op);
}

static void read_now(struct unpack *u, const struct io *io)
{
    struct qstill_error why;
    size_t got;

    u->packed = malloc(u->clen);
    if (!u->packed)
        return;
    if (io_read_upto(io, u->img->fd, u->packed, u->clen, u->host, &got, &why) <
        0) {
        err_wrap(&why, "reading %s", u->img->path);
        keep_error(u, &why);
        return;
    }
    inflate(u, got);
}

void unpack_now(struct unpack *u, const struct io *io)
{
    pthread_mutex_lock(&u->lock);
    if (u->state != UNPACK_READY) {
        read_now(u, io);
        be_ready(u);
    }
    pthread_mutex_unlock(&u->lock);
}

int unpack_copy(const struct unpack *u, uint8_t *out, uint64_t skip, size_t len,
                struct qstill_error *err)
{
    if (!u->data && !u->why)
        return err_nomem(err);
    if (!u->data) {
        *err = *u->why;
        return err->code;
    }
    memcpy(out, u->data + skip, len);
    return 0;
}
