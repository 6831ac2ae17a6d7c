/* SPDX-License-Identifier: MIT */
/*
 * A slot is a buffer and the operations that write it. It is free, out (being
 * filled by the caller), or in flight until its last operation is done.
 */
#include "chunk_write.h"

#include <linux/magic.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "base/aio.h"
#include "base/checked.h"

/* Runs of a chunk: every second page at worst. */
#define RUNS_MAX (RAMSET_CHUNK_PAGES / 2)

struct slot {
    struct chunk chunk; /* first: a chunk is its slot */
    struct chunk_writer *owner;
    unsigned flying;
    struct slot *next_free;
    struct aio_op ops[RUNS_MAX];
};

struct chunk_writer {
    struct ramset_writer *set;
    struct aio *aio;
    struct aio_pool *pool;
    struct slot *slots;
    unsigned slot_count;
    struct slot *free;
    bool at_once; /* what is put is written when that returns */
    int failed;   /* errno of the first write that failed */
    unsigned failed_index;
};

/* One ring for all of it: small runs may be many. */
#define RING_DEPTH 256u

/* A tmpfs of huge pages, which gives their size as that of its blocks: a write
 * is over sooner than the ring could hand it to a thread, as it does with each
 * write to a tmpfs. (One of small pages spends so long on each page that the
 * other thread pays.) */
static bool takes_at_once(const struct ramset_writer *set)
{
    struct statfs fs;
    struct stat st;
    int fd;

    if (ramset_writer_blocks(set) == 0)
        return false;
    fd = ramset_writer_fd(set, 0);
    return fstatfs(fd, &fs) == 0 && fs.f_type == TMPFS_MAGIC &&
           fstat(fd, &st) == 0 && st.st_blksize >= (blksize_t)RAMSET_CHUNK;
}

int chunk_writer_open(struct chunk_writer **out, struct ramset_writer *set,
                      const struct io *io, unsigned buffers,
                      struct qstill_error *err)
{
    CLEANUP(chunk_writer_closep) struct chunk_writer *w = NULL;
    struct aio_options options = {
        .depth = RING_DEPTH,
        .max_bytes = (size_t)buffers * RAMSET_CHUNK,
        .one_thread = true,
    };

    w = calloc(1, sizeof(*w));
    if (!w)
        return err_nomem(err);
    w->set = set;
    w->at_once = takes_at_once(set);
    if (w->at_once)
        options.backend = AIO_SYNC;
    if (aio_open(&w->aio, io, &options, err) < 0 ||
        aio_pool_open(&w->pool, w->aio, RAMSET_CHUNK, buffers, err) < 0)
        return err->code;
    w->slots = calloc(buffers, sizeof(*w->slots));
    if (!w->slots)
        return err_nomem(err);
    w->slot_count = buffers;
    for (unsigned i = 0; i < buffers; i++) {
        w->slots[i].owner = w;
        w->slots[i].chunk.data = aio_pool_get(w->pool);
        w->slots[i].next_free = w->free;
        w->free = &w->slots[i];
    }
    *out = take_ptr(&w);
    return 0;
}

void chunk_writer_close(struct chunk_writer *w)
{
    if (!w)
        return;
    aio_close(w->aio);
    aio_pool_free(w->pool);
    free(w->slots);
    free(w);
}

void chunk_writer_closep(struct chunk_writer **w)
{
    chunk_writer_close(*w);
    *w = NULL;
}

static int check_failed(const struct chunk_writer *w, struct qstill_error *err)
{
    if (!w->failed)
        return 0;
    return err_errno(err, w->failed, "writing the memory of RAM block '%.100s'",
                     ramset_writer_block(w->set, w->failed_index)->id);
}

int chunk_writer_get(struct chunk_writer *w, unsigned index, uint64_t number,
                     struct chunk **out, struct qstill_error *err)
{
    const struct ramset_block *block = ramset_writer_block(w->set, index);
    struct slot *slot;

    while (!w->free)
        if (aio_wait(w->aio, 1, -1, err) < 0)
            return err->code;
    if (check_failed(w, err) < 0)
        return err->code;
    slot = w->free;
    w->free = slot->next_free;
    slot->chunk.index = index;
    slot->chunk.number = number;
    slot->chunk.pages =
        (size_t)min_u64(RAMSET_CHUNK, block->size - number * RAMSET_CHUNK) /
        RAMSET_PAGE;
    memset(&slot->chunk.have, 0, sizeof(slot->chunk.have));
    memset(&slot->chunk.zero, 0, sizeof(slot->chunk.zero));
    *out = &slot->chunk;
    return 0;
}

static void release(struct slot *slot)
{
    slot->next_free = slot->owner->free;
    slot->owner->free = slot;
}

static void written(struct aio_op *op)
{
    struct slot *slot = op->user;
    struct chunk_writer *w = slot->owner;

    if (op->error && !w->failed) {
        w->failed = op->error;
        w->failed_index = slot->chunk.index;
    }
    if (--slot->flying == 0)
        release(slot);
}

/* Does a buffer in flight hold pages that c is about to write? */
static bool overtakes(const struct chunk_writer *w, const struct chunk *c)
{
    for (unsigned i = 0; i < w->slot_count; i++) {
        const struct slot *s = &w->slots[i];

        if (!s->flying || s->chunk.number != c->number ||
            s->chunk.index != c->index)
            continue;
        for (size_t k = 0; k < ARRAY_LEN(c->have.bits); k++)
            if (s->chunk.have.bits[k] & c->have.bits[k])
                return true;
    }
    return false;
}

/* A short gap whose pages are all known to be zero is written along. */
static void close_zero_gaps(struct chunk *c)
{
    struct ramset_map closed = c->have;

    ramset_map_close_gaps(&closed, c->pages);
    for (size_t k = 0; k < ARRAY_LEN(closed.bits); k++) {
        uint64_t gap = closed.bits[k] & ~c->have.bits[k] & c->zero.bits[k];

        c->have.bits[k] |= gap;
        for (; gap; gap &= gap - 1)
            memset(c->data +
                       (k * 64 + (size_t)__builtin_ctzll(gap)) * RAMSET_PAGE,
                   0, RAMSET_PAGE);
    }
}

static void submit_runs(struct chunk_writer *w, struct slot *slot)
{
    struct chunk *c = &slot->chunk;
    size_t at = 0, first, pages;

    while ((pages = ramset_map_run(&c->have, c->pages, &at, &first)) > 0) {
        struct aio_op *op = &slot->ops[slot->flying++];

        *op = (struct aio_op){
            .type = AIO_WRITE,
            .fd = ramset_writer_fd(w->set, c->index),
            .off = c->number * RAMSET_CHUNK + first * RAMSET_PAGE,
            .data = c->data + first * RAMSET_PAGE,
            .len = pages * RAMSET_PAGE,
            .done = written,
            .user = slot,
        };
        aio_submit(w->aio, op);
    }
}

int chunk_writer_put(struct chunk_writer *w, struct chunk *c,
                     struct qstill_error *err)
{
    struct slot *slot = (struct slot *)c;

    close_zero_gaps(c);
    while (overtakes(w, c))
        if (aio_wait(w->aio, 1, -1, err) < 0)
            return err->code;
    submit_runs(w, slot);
    if (slot->flying == 0)
        release(slot);
    return w->at_once ? aio_drain(w->aio, err) : aio_poll(w->aio, err);
}

int chunk_writer_drain(struct chunk_writer *w, struct qstill_error *err)
{
    if (aio_drain(w->aio, err) < 0)
        return err->code;
    return check_failed(w, err);
}
