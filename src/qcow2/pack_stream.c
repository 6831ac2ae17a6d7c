/* SPDX-License-Identifier: MIT */
#include "pack_stream.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

#define RUN_BYTES ((size_t)1 << 20)
#define BUFFERS   12u
/* Two streams, each at the end of one run and through the next. */
#define BUFFERS_FOR_A_CHUNK 4u

struct buffer {
    struct pack_streams *s;
    struct aio_op op;
    uint8_t *data;
    struct buffer *next_free;
};

struct stream {
    uint64_t pos; /* of the next byte */
    uint64_t end; /* of the stream's run */
    struct buffer *buffer;
    uint64_t buffer_at;
};

struct pack_streams {
    struct aio *aio;
    struct image *target;
    struct fresh *fresh;
    size_t run;
    struct aio_pool *pool;
    struct buffer buffers[BUFFERS];
    struct buffer *free;
    unsigned free_count;
    struct stream packed;
    struct stream plain;
    uint64_t file_end;
    int failed;
    struct qstill_error why;
};

int pack_streams_open(struct pack_streams **out, struct aio *aio,
                      struct image *target, struct fresh *fresh,
                      struct qstill_error *err)
{
    struct pack_streams *s = calloc(1, sizeof(*s));

    if (!s)
        return err_nomem(err);
    s->aio = aio;
    s->target = target;
    s->fresh = fresh;
    s->run = max_u64(RUN_BYTES, fresh->cs);
    s->file_end = fresh->cs; /* behind the header */
    if ((fresh->cs >= 4096 && image_open_direct(target, err) < 0) ||
        aio_pool_open(&s->pool, aio, s->run, BUFFERS, err) < 0) {
        free(s);
        return err->code;
    }
    for (size_t i = 0; i < BUFFERS; i++) {
        s->buffers[i] = (struct buffer){
            .s = s, .data = aio_pool_get(s->pool), .next_free = s->free};
        s->free = &s->buffers[i];
        s->free_count++;
    }
    *out = s;
    return 0;
}

void pack_streams_close(struct pack_streams *s)
{
    if (!s)
        return;
    aio_pool_free(s->pool);
    free(s);
}

bool pack_streams_have_room(const struct pack_streams *s)
{
    return s->free_count >= BUFFERS_FOR_A_CHUNK;
}

/* ------------------------------------------------------------------- writes */

static void written(struct aio_op *op)
{
    struct buffer *b = op->user;
    struct pack_streams *s = b->s;

    if (op->error && s->failed == 0)
        s->failed =
            err_errno(&s->why, op->error, "writing %s", s->target->path);
    b->next_free = s->free;
    s->free = b;
    s->free_count++;
}

/* The rest of a cluster begun is zeros. */
static void flush(struct pack_streams *s, struct stream *st)
{
    struct buffer *b = st->buffer;
    size_t used, len;

    if (!b)
        return;
    used = (size_t)(st->pos - st->buffer_at);
    len = (size_t)round_up_u64(used, s->fresh->cs);
    memset(b->data + used, 0, len - used);
    b->op = (struct aio_op){.type = AIO_WRITE,
                            .fd = s->target->direct >= 0 ? s->target->direct
                                                         : s->target->wfd,
                            .off = st->buffer_at,
                            .data = b->data,
                            .len = len,
                            .done = written,
                            .user = b};
    st->buffer = NULL;
    aio_submit(s->aio, &b->op);
}

/* A place for `len` bytes in one piece; runs that follow each other are one. */
static void make_room(struct pack_streams *s, struct stream *st, size_t len)
{
    if (st->end - st->pos >= len)
        return;
    if (st->end != s->file_end) {
        flush(s, st);
        st->pos = s->file_end;
    }
    st->end = s->file_end += s->run;
}

static void put(struct pack_streams *s, struct stream *st, const uint8_t *data,
                size_t len)
{
    while (len > 0) {
        size_t n;

        if (!st->buffer) {
            st->buffer = s->free;
            s->free = s->free->next_free;
            s->free_count--;
            st->buffer_at = st->pos;
        }
        n = min_u64(len, st->buffer_at + s->run - st->pos);
        memcpy(st->buffer->data + (st->pos - st->buffer_at), data, n);
        st->pos += n;
        data += n;
        len -= n;
        if (st->pos == st->buffer_at + s->run)
            flush(s, st);
    }
}

/* ------------------------------------------------------------------ clusters
 */

int pack_put_plain(struct pack_streams *s, const uint8_t *data, uint64_t *host)
{
    size_t cs = (size_t)s->fresh->cs;

    make_room(s, &s->plain, cs);
    *host = s->plain.pos;
    put(s, &s->plain, data, cs);
    return fresh_ref(s->fresh, *host / cs);
}

/* Leaves the cluster that is begun: its references cannot be counted higher. */
static void leave_cluster(struct pack_streams *s)
{
    static const uint8_t zeros[512];
    uint64_t cs = s->fresh->cs;
    uint64_t to = round_up_u64(s->packed.pos + 1, cs);

    while (s->packed.pos < to)
        put(s, &s->packed, zeros,
            (size_t)min_u64(sizeof(zeros), to - s->packed.pos));
}

int pack_put_packed(struct pack_streams *s, const uint8_t *data, size_t len,
                    uint64_t *host)
{
    uint64_t cs = s->fresh->cs, last;

    make_room(s, &s->packed, len);
    if (fresh_refs(s->fresh, s->packed.pos / cs) >= FRESH_REF_MAX) {
        leave_cluster(s);
        make_room(s, &s->packed, len);
    }
    *host = s->packed.pos;
    last = (*host + len - 1) / cs;
    put(s, &s->packed, data, len);
    for (uint64_t c = *host / cs; c <= last; c++)
        if (fresh_ref(s->fresh, c) < 0)
            return -1;
    return 0;
}

static void finish(struct pack_streams *s, struct stream *st)
{
    flush(s, st);
    if (st->end == s->file_end && st->end > 0)
        st->end = s->file_end = round_up_u64(st->pos, s->fresh->cs);
    st->pos = st->end;
}

void pack_streams_finish(struct pack_streams *s)
{
    finish(s, &s->packed);
    finish(s, &s->plain);
}

int pack_streams_error(const struct pack_streams *s, struct qstill_error *err)
{
    if (s->failed)
        *err = s->why;
    return s->failed;
}

uint64_t pack_streams_end(const struct pack_streams *s)
{
    return s->file_end;
}
