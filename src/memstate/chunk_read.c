/* SPDX-License-Identifier: MIT */
/*
 * Slots form a queue: at the tail reads are started, at the head they are
 * waited for and handed out.
 */
#include "chunk_read.h"

#include <errno.h>
#include <string.h>

#include "base/aio.h"
#include "base/checked.h"

/* 32 MiB ahead keep any disk busy. */
#define SLOTS 32u

struct slot {
    struct aio_op op;
    uint8_t *data;
    unsigned index;
    uint64_t number;
    bool hole;
};

struct block_file {
    int fd; /* -1: not opened yet */
    /* What lseek told last: a hole from the first to the second, data from
     * there to the third. */
    uint64_t hole_from;
    uint64_t data_from;
    uint64_t data_to;
};

struct chunk_reader {
    const struct ramset *set;
    enum ramset_cache cache;
    struct block_file *files; /* per block */
    struct aio *aio;
    struct aio_pool *pool;
    struct slot slots[SLOTS];
    unsigned head; /* the oldest slot in use */
    unsigned used;
    bool lent; /* the head is with the caller */
    struct chunk_span *spans;
    size_t span_count;
    size_t span_at;   /* the span and */
    uint64_t span_in; /* the chunk in it to start next */
};

int chunk_reader_open(struct chunk_reader **out, const struct ramset *set,
                      enum ramset_cache cache, struct qstill_error *err)
{
    CLEANUP(chunk_reader_closep) struct chunk_reader *r = NULL;
    struct aio_options options = {
        .depth = SLOTS,
        .max_bytes = (size_t)SLOTS * RAMSET_CHUNK,
        .one_thread = true,
    };

    r = calloc(1, sizeof(*r));
    if (!r)
        return err_nomem(err);
    r->set = set;
    r->cache = cache;
    r->files =
        calloc(set->block_count ? set->block_count : 1, sizeof(*r->files));
    if (!r->files)
        return err_nomem(err);
    for (size_t i = 0; i < set->block_count; i++)
        r->files[i].fd = -1;
    if (aio_open(&r->aio, io_real(), &options, err) < 0 ||
        aio_pool_open(&r->pool, r->aio, RAMSET_CHUNK, SLOTS, err) < 0)
        return err->code;
    for (unsigned i = 0; i < SLOTS; i++)
        r->slots[i].data = aio_pool_get(r->pool);
    *out = take_ptr(&r);
    return 0;
}

void chunk_reader_close(struct chunk_reader *r)
{
    if (!r)
        return;
    aio_close(r->aio);
    aio_pool_free(r->pool);
    for (size_t i = 0; r->files && i < r->set->block_count; i++)
        closep(&r->files[i].fd);
    free(r->files);
    free(r->spans);
    free(r);
}

void chunk_reader_closep(struct chunk_reader **r)
{
    chunk_reader_close(*r);
    *r = NULL;
}

int chunk_reader_add(struct chunk_reader *r, const struct chunk_span *span,
                     struct qstill_error *err)
{
    struct chunk_span *spans;

    if (span->count == 0)
        return 0;
    spans = realloc(r->spans, (r->span_count + 1) * sizeof(*spans));
    if (!spans)
        return err_nomem(err);
    r->spans = spans;
    spans[r->span_count++] = *span;
    return 0;
}

static size_t chunk_len(const struct ramset_block *block, uint64_t number)
{
    return (size_t)min_u64(RAMSET_CHUNK, block->size - number * RAMSET_CHUNK);
}

/* Asks for the first data at or behind `from`. False: cannot be told. */
static bool seek_data(struct block_file *f, uint64_t from)
{
    off_t data = lseek(f->fd, (off_t)from, SEEK_DATA);
    off_t hole;

    if (data < 0 && errno == ENXIO) /* none up to the end */
        data = hole = INT64_MAX;
    else
        hole = data < 0 ? -1 : lseek(f->fd, data, SEEK_HOLE);
    if (hole < 0)
        return false;
    f->hole_from = from;
    f->data_from = (uint64_t)data;
    f->data_to = (uint64_t)hole;
    return true;
}

/* Has the file no data in [from, to)? */
static bool is_hole(struct block_file *f, uint64_t from, uint64_t to)
{
    if ((from < f->hole_from || from >= f->data_to) && !seek_data(f, from))
        return false;
    return to <= f->data_from;
}

/* Starts to read the next chunk into the slot behind those in use. */
static int start_next(struct chunk_reader *r, struct qstill_error *err)
{
    const struct chunk_span *span = &r->spans[r->span_at];
    struct slot *s = &r->slots[(r->head + r->used) % SLOTS];
    struct block_file *f = &r->files[span->index];
    uint64_t off;

    if (f->fd < 0 &&
        ramset_block_open(r->set, span->index, r->cache, &f->fd, err) < 0)
        return err->code;
    s->index = span->index;
    s->number = span->first + r->span_in;
    off = s->number * RAMSET_CHUNK;
    s->op = (struct aio_op){
        .type = AIO_READ,
        .fd = f->fd,
        .off = off,
        .data = s->data,
        .len = chunk_len(&r->set->blocks[s->index], s->number),
    };
    s->hole = is_hole(f, off, off + s->op.len);
    if (!s->hole)
        aio_submit(r->aio, &s->op);
    r->used++;
    if (++r->span_in == span->count) {
        r->span_in = 0;
        r->span_at++;
    }
    return 0;
}

static int damaged(const struct chunk_reader *r, const struct slot *s,
                   const char *what, struct qstill_error *err)
{
    char name[RAMSET_NAME_SIZE];

    if (ramset_file_name(r->set->blocks[s->index].id, name, err) < 0)
        return err->code;
    return err_set(err, QSTILL_E_CORRUPT, "%s, %zu bytes at offset %llu: %s",
                   name, s->op.len, (unsigned long long)s->op.off, what);
}

static int check(const struct chunk_reader *r, const struct slot *s,
                 struct chunk_view *out, struct qstill_error *err)
{
    const struct ramset_block *block = &r->set->blocks[s->index];
    uint64_t sum = 0;
    char why[128];

    *out = (struct chunk_view){
        .index = s->index,
        .number = s->number,
        .pages = s->op.len / RAMSET_PAGE,
        .data = s->hole ? NULL : s->data,
    };
    if (s->op.error)
        return damaged(r, s, strerror_r(s->op.error, why, sizeof(why)), err);
    if (!s->hole && s->op.moved < s->op.len)
        return damaged(r, s, "the file ends there", err);
    if (!s->hole)
        sum = ramset_scan(s->data, s->number * RAMSET_CHUNK_PAGES, out->pages,
                          &out->nonzero);
    if (sum != block->sums[s->number])
        return damaged(r, s, "does not match its checksum", err);
    return 0;
}

int chunk_reader_next(struct chunk_reader *r, struct chunk_view *out, bool *end,
                      struct qstill_error *err)
{
    if (r->lent) {
        r->lent = false;
        r->head = (r->head + 1) % SLOTS;
        r->used--;
    }
    while (r->used < SLOTS && r->span_at < r->span_count)
        if (start_next(r, err) < 0)
            return err->code;
    *end = r->used == 0;
    if (*end)
        return 0;
    if (aio_poll(r->aio, err) < 0)
        return err->code;
    while (r->slots[r->head].op.pending)
        if (aio_wait(r->aio, 1, -1, err) < 0)
            return err->code;
    r->lent = true;
    return check(r, &r->slots[r->head], out, err);
}
