/* SPDX-License-Identifier: MIT */
/*
 * A ring of chunks, each a few clusters: read -> compress (on a thread) ->
 * place, in the guest's order, so that the result does not depend on who was
 * first.
 */
#include "pack.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/compress.h"
#include "base/taskpool.h"
#include "fill.h"
#include "l2.h"
#include "pack_stream.h"
#include "ratelimit.h"

#define CHUNK_BYTES  ((size_t)256 << 10)
#define CHUNK_ITEMS  512u
#define CHUNK_MEMORY ((size_t)48 << 20)
/* Beside it: what compressed clusters are read into. */
#define FLYING_BYTES ((size_t)32 << 20)
#define MAX_THREADS  16u
#define STEP_MS      100
#define ZSTD_LEVEL   3 /* QEMU's */

enum item_result { ITEM_ZEROS = 0, ITEM_PLAIN = UINT32_MAX };

struct item {
    uint64_t guest;
    uint32_t packed; /* bytes, or an item_result */
    bool copied;     /* packed already; the bytes are in the chunk's data */
};

enum chunk_state { CHUNK_FREE, CHUNK_READING, CHUNK_PACKING, CHUNK_READY };

struct chunk {
    struct task task; /* first */
    struct pack *p;
    struct fill fill;
    enum chunk_state state;
    bool failed; /* out of memory, on the thread */
    struct item *items;
    size_t n;
    uint8_t *data;   /* n clusters */
    uint8_t *packed; /* room for as many */
};

struct pack {
    struct pack_options o;
    uint64_t cs;
    uint8_t type;
    struct aio *aio;
    int event_fd;
    struct filler filler;
    struct taskpool *threads;
    struct pack_streams *streams;
    struct ratelimit limit;
    struct chunk *chunks;
    size_t count;
    size_t per_chunk;
    size_t head; /* to be placed next */
    size_t tail; /* to be filled next */
    size_t used; /* chunks between them */
    struct extent_walk at;
    uint64_t pos; /* guest, all before it is begun */
    bool moved;   /* this step has got somewhere */
    uint64_t done;
    int failed;
    struct qstill_error why;
};

/* -------------------------------------------------------------- what to do */

/* Walks over the clusters of a view that have bytes. */
static bool next_cluster(const struct pack_options *o, struct extent_walk *x,
                         uint64_t *pos, uint64_t *guest)
{
    while (x->on && (extent_end(&x->e) <= *pos || !extent_has_bytes(&x->e)))
        extents_next(x);
    if (!x->on)
        return false;
    *guest = max_u64(*pos, round_down_u64(x->e.guest, o->fresh->cs));
    *pos = *guest + o->fresh->cs;
    return true;
}

uint64_t pack_bytes(const struct pack_options *o)
{
    struct extent_walk x = extents_walk(o->view, 0);
    uint64_t bytes = 0, pos = 0, guest;

    while (next_cluster(o, &x, &pos, &guest))
        bytes += o->fresh->cs;
    return bytes;
}

/* The extent that can be taken over as it is, or NULL. What a larger layer has
 * behind the end must not be seen when the disk grows. */
static const struct extent *ready_packed(const struct pack *p, uint64_t guest)
{
    const struct extent *e = &p->at.e;
    const struct image *img = p->o.chain->layers[e->layer];
    uint64_t size = p->o.fresh->h.size;

    if (e->kind != EXTENT_COMPRESSED || e->guest != guest ||
        extent_end(e) < min_u64(guest + p->cs, size) || e->clen > p->cs ||
        img->cluster_size != p->cs ||
        img->info.header.compression_type != p->type)
        return NULL;
    return guest + p->cs <= size || img->size <= size ? e : NULL;
}

static int add_item(struct pack *p, struct chunk *k, uint64_t guest)
{
    const struct extent *e = ready_packed(p, guest);
    struct item *it = &k->items[k->n++];

    *it = (struct item){.guest = guest, .copied = e != NULL};
    if (!e)
        return fill_guest(&p->filler, &k->fill, guest, (size_t)p->cs);
    it->packed = e->clen;
    return fill_raw(&p->filler, &k->fill, e->layer, e->host, e->clen,
                    (size_t)p->cs);
}

/* -------------------------------------------------------------- on a thread */

static int compress_one(const struct pack *p, struct item *it,
                        const uint8_t *data, uint8_t *packed)
{
    size_t cs = (size_t)p->cs, used = 0;
    int r;

    if (it->copied)
        return 0;
    it->packed = ITEM_ZEROS;
    if (bytes_are_zero(data, cs))
        return 0;
    r = p->type == QCOW2_COMPRESSION_ZSTD
            ? compress_zstd(packed, cs - 1, data, cs, ZSTD_LEVEL, &used)
            : compress_deflate(packed, cs - 1, data, cs, &used);
    it->packed = r == 0 ? (uint32_t)used : ITEM_PLAIN;
    return r < 0 ? -1 : 0;
}

static void compress_chunk(struct task *t)
{
    struct chunk *k = (struct chunk *)t;

    for (size_t i = 0; i < k->n && !k->failed; i++)
        k->failed = compress_one(k->p, &k->items[i], k->data + i * k->p->cs,
                                 k->packed + i * k->p->cs) < 0;
}

/* ------------------------------------------------------------------- chunks */

static void fail(struct pack *p, const struct qstill_error *why)
{
    if (p->failed == 0) {
        p->failed = why->code;
        p->why = *why;
    }
}

static void chunk_filled(struct fill *f)
{
    struct chunk *k = f->user;
    struct pack *p = k->p;
    bool work = false;

    p->moved = true;
    k->state = CHUNK_READY;
    if (f->error < 0)
        fail(p, &f->why);
    for (size_t i = 0; i < k->n; i++)
        work |= !k->items[i].copied;
    if (p->failed || !work)
        return;
    k->state = CHUNK_PACKING;
    taskpool_submit(p->threads, &k->task);
}

static int start_chunk(struct pack *p, struct chunk *k,
                       struct qstill_error *err)
{
    uint64_t guest;

    k->n = 0;
    k->failed = false;
    fill_begin(&k->fill, k->data, p->per_chunk * (size_t)p->cs);
    while (k->n < p->per_chunk && next_cluster(&p->o, &p->at, &p->pos, &guest))
        if (add_item(p, k, guest) < 0)
            return err_nomem(err);
    if (k->n == 0)
        return 0;
    ratelimit_begin(&p->limit, k->n * p->cs);
    k->state = CHUNK_READING;
    p->tail = (p->tail + 1) % p->count;
    p->used++;
    p->moved = true;
    fill_start(&p->filler, &k->fill);
    return 0;
}

static bool all_begun(const struct pack *p)
{
    struct extent_walk at = p->at;
    uint64_t pos = p->pos, guest;

    return !next_cluster(&p->o, &at, &pos, &guest);
}

static int start_chunks(struct pack *p, struct qstill_error *err)
{
    while (p->used < p->count && !all_begun(p) &&
           ratelimit_wait_ms(&p->limit, STEP_MS) == 0)
        if (start_chunk(p, &p->chunks[p->tail], err) < 0)
            return err->code;
    return 0;
}

static void take_packed(struct pack *p)
{
    struct qstill_error why;
    struct task *t;

    while ((t = taskpool_take(p->threads))) {
        struct chunk *k = (struct chunk *)t;

        k->state = CHUNK_READY;
        p->moved = true;
        if (k->failed) {
            err_nomem(&why);
            fail(p, &why);
        }
    }
}

/* -------------------------------------------------------------------- place */

static int place_item(struct pack *p, const struct chunk *k, size_t i,
                      struct qstill_error *err)
{
    const struct item *it = &k->items[i];
    const uint8_t *data = k->data + i * p->cs;
    uint64_t host, entry;

    if (it->packed == ITEM_ZEROS)
        return 0;
    if (it->packed == ITEM_PLAIN) {
        if (pack_put_plain(p->streams, data, &host) < 0)
            return err_nomem(err);
        entry = host | QCOW2_COPIED;
    } else {
        if (!it->copied)
            data = k->packed + i * p->cs;
        if (pack_put_packed(p->streams, data, it->packed, &host) < 0)
            return err_nomem(err);
        entry = l2_encode_compressed(&p->o.fresh->h, host, it->packed);
    }
    return fresh_map(p->o.fresh, it->guest, entry) < 0 ? err_nomem(err) : 0;
}

static int place_chunks(struct pack *p, struct qstill_error *err)
{
    while (p->used > 0 && p->chunks[p->head].state == CHUNK_READY &&
           pack_streams_have_room(p->streams)) {
        struct chunk *k = &p->chunks[p->head];

        for (size_t i = 0; i < k->n; i++)
            if (place_item(p, k, i, err) < 0)
                return err->code;
        p->done += k->n * p->cs;
        k->state = CHUNK_FREE;
        p->head = (p->head + 1) % p->count;
        p->used--;
        p->moved = true;
    }
    return 0;
}

/* --------------------------------------------------------------------- step */

/* Nobody touches the chunks any more. */
static bool is_quiet(const struct pack *p)
{
    for (size_t i = 0; i < p->count; i++)
        if (p->chunks[i].state == CHUNK_PACKING)
            return false;
    return aio_pending(p->aio) == 0;
}

static int advance(struct pack *p, bool *done, struct qstill_error *err)
{
    if (start_chunks(p, err) < 0 || place_chunks(p, err) < 0 ||
        pack_streams_error(p->streams, err) < 0)
        return err->code;
    if (p->used > 0 || !all_begun(p))
        return 0;
    pack_streams_finish(p->streams);
    *done = aio_pending(p->aio) == 0;
    return 0;
}

int pack_step(struct pack *p, bool *done, struct qstill_error *err)
{
    struct pollfd fd = {.fd = p->event_fd, .events = POLLIN};
    int wait;

    *done = false;
    p->moved = false;
    /* first the ring, which clears the event, then all that can set it */
    if (aio_poll(p->aio, err) < 0)
        return err->code;
    take_packed(p);
    if (p->failed == 0 && advance(p, done, err) < 0)
        fail(p, err);
    if (p->failed && is_quiet(p)) {
        *err = p->why;
        return p->failed;
    }
    if (*done || p->moved)
        return 0;
    wait = ratelimit_wait_ms(&p->limit, STEP_MS);
    poll(&fd, 1, wait > 0 ? wait : STEP_MS);
    return 0;
}

int pack_fd(const struct pack *p)
{
    return p->used > 0 ? p->event_fd : -1; /* else nobody makes it readable */
}

uint64_t pack_done(const struct pack *p)
{
    return p->done;
}

uint64_t pack_end(const struct pack *p)
{
    return pack_streams_end(p->streams);
}

/* -------------------------------------------------------------- open, close */

static int make_chunks(struct pack *p, struct qstill_error *err)
{
    size_t cs = (size_t)p->cs, bytes;
    size_t most = ratelimit_piece(p->o.bwlimit, CHUNK_BYTES);

    p->per_chunk = max_u64(1, min_u64(most / cs, CHUNK_ITEMS));
    bytes = p->per_chunk * cs;
    p->count = min_u64(2 * taskpool_threads(p->threads) + 6,
                       max_u64(CHUNK_MEMORY / (2 * bytes), 2));
    p->chunks = calloc(p->count, sizeof(*p->chunks));
    if (!p->chunks)
        return err_nomem(err);
    for (size_t i = 0; i < p->count; i++) {
        struct chunk *k = &p->chunks[i];

        k->p = p;
        k->task.run = compress_chunk;
        k->fill.done = chunk_filled;
        k->fill.user = k;
        k->items = calloc(p->per_chunk, sizeof(*k->items));
        k->data = aligned_alloc(4096, round_up_u64(bytes, 4096));
        k->packed = malloc(bytes);
        if (!k->items || !k->data || !k->packed)
            return err_nomem(err);
    }
    return 0;
}

static int open_all(struct pack *p, struct qstill_error *err)
{
    struct aio_options a = {.depth = 256, .max_bytes = FLYING_BYTES};
    const struct chain *c = p->o.chain;

    if (aio_open(&p->aio, p->o.target->io, &a, err) < 0)
        return err->code;
    p->event_fd = aio_eventfd(p->aio, err);
    if (p->event_fd < 0)
        return err->code;
    p->filler = (struct filler){.aio = p->aio, .chain = c, .view = p->o.view};
    for (size_t i = 0; i < c->n; i++)
        if (image_open_direct(c->layers[i], err) < 0)
            return err->code;
    if (taskpool_open(&p->threads, MAX_THREADS, p->event_fd, err) < 0 ||
        make_chunks(p, err) < 0)
        return err->code;
    return pack_streams_open(&p->streams, p->aio, p->o.target, p->o.fresh, err);
}

int pack_open(struct pack **out, const struct pack_options *o,
              struct qstill_error *err)
{
    struct pack *p = calloc(1, sizeof(*p));

    if (!p)
        return err_nomem(err);
    p->o = *o;
    p->cs = o->fresh->cs;
    p->type = o->fresh->h.compression_type;
    p->at = extents_walk(o->view, 0);
    ratelimit_init(&p->limit, o->bwlimit);
    if (open_all(p, err) < 0) {
        pack_close(p);
        return err->code;
    }
    *out = p;
    return 0;
}

void pack_close(struct pack *p)
{
    if (!p)
        return;
    p->failed = QSTILL_E_CANCELLED; /* chunks that come back go no further */
    taskpool_close(p->threads);     /* they write to the event of the aio */
    aio_close(p->aio);
    for (size_t i = 0; p->chunks && i < p->count; i++) {
        fill_fini(&p->chunks[i].fill);
        free(p->chunks[i].items);
        free(p->chunks[i].data);
        free(p->chunks[i].packed);
    }
    free(p->chunks);
    filler_fini(&p->filler);
    pack_streams_close(p->streams);
    free(p);
}
