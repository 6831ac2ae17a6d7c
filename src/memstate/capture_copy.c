/* SPDX-License-Identifier: MIT */
/*
 * Mode `paused`: while the owner holds the VM stopped, its RAM is read out of
 * the process, chunk by chunk, and written behind. The guest may go on when
 * the last chunk was read; the writes may then still be in flight.
 */
#include <string.h>

#include "base/checked.h"
#include "memstate/capture_impl.h"
#include "memstate/chunk_write.h"
#include "memstate/procmem.h"

/* What is read while the disk is busy. More would shorten the pause by what
 * fits, and cost as much memory. */
#define BUFFERS 64u

struct copy {
    struct procmem *mem;
    struct capture_source *sources; /* ids are not kept */
    size_t count;
    struct pace pace;
};

static int copy_chunk(struct copy *k, struct capture *c, struct chunk_writer *w,
                      unsigned index, uint64_t number, struct qstill_error *err)
{
    uint64_t hva = k->sources[index].hva + number * RAMSET_CHUNK;
    struct chunk *chunk;
    uint64_t sum;
    size_t len;

    if (chunk_writer_get(w, index, number, &chunk, err) < 0)
        return err->code;
    len = chunk->pages * RAMSET_PAGE;
    if (capture_pace(c, &k->pace, len, err) < 0 ||
        procmem_read(k->mem, hva, chunk->data, len, err) < 0)
        return err->code;
    sum = ramset_scan(chunk->data, number * RAMSET_CHUNK_PAGES, chunk->pages,
                      &chunk->have);
    ramset_sum_add(capture_writer(c), index, number, sum);
    capture_figures(c)->written_bytes +=
        (uint64_t)ramset_map_count(&chunk->have) * RAMSET_PAGE;
    ramset_map_close_gaps(&chunk->have, chunk->pages);
    capture_add_done(c, len);
    return chunk_writer_put(w, chunk, err);
}

static int copy_block(struct copy *k, struct capture *c, struct chunk_writer *w,
                      unsigned index, struct qstill_error *err)
{
    const struct ramset_block *block =
        ramset_writer_block(capture_writer(c), index);

    for (uint64_t i = 0; i < block->chunks; i++)
        if (copy_chunk(k, c, w, index, i, err) < 0)
            return err_wrap(err, "copying RAM block '%.100s'", block->id);
    return 0;
}

static int copy_run(void *ctx, struct capture *c, struct qstill_error *err)
{
    CLEANUP(chunk_writer_closep) struct chunk_writer *w = NULL;
    const struct capture_options *o = capture_get_options(c);
    struct copy *k = ctx;

    if (chunk_writer_open(&w, capture_writer(c), o->io, BUFFERS, err) < 0)
        return err->code;
    capture_set_ready(c);
    if (capture_wait_instant(c, err) < 0)
        return err->code;
    pace_init(&k->pace, o->bwlimit);
    for (size_t i = 0; i < k->count; i++)
        if (copy_block(k, c, w, (unsigned)i, err) < 0)
            return err->code;
    capture_figures(c)->sent_bytes = capture_figures(c)->written_bytes;
    capture_set_instant_taken(c);
    return chunk_writer_drain(w, err);
}

static void copy_free(void *ctx)
{
    struct copy *k = ctx;

    procmem_close(k->mem);
    free(k->sources);
    free(k);
}

static const struct capture_ops copy_ops = {
    .stopped_by_owner = true,
    .run = copy_run,
    .free = copy_free,
};

static int add_sources(struct capture *c, const struct capture_source *blocks,
                       size_t count, struct qstill_error *err)
{
    uint64_t total = 0, end;

    for (size_t i = 0; i < count; i++) {
        if (add_u64(blocks[i].hva, blocks[i].size, &end))
            return err_set(err, QSTILL_E_FAILED,
                           "RAM block '%.100s' lies outside the address space",
                           blocks[i].id);
        if (ramset_add_block(capture_writer(c), blocks[i].id, blocks[i].size,
                             blocks[i].page_size, NULL, err) < 0)
            return err->code;
        total += blocks[i].size;
    }
    capture_set_total(c, total);
    return 0;
}

int capture_copy_open(struct capture **out, pid_t pid,
                      const struct capture_source *blocks, size_t count,
                      const struct capture_options *options,
                      struct qstill_error *err)
{
    CLEANUP(capture_closep) struct capture *c = NULL;
    struct copy *k = calloc(1, sizeof(*k));

    if (!k)
        return err_nomem(err);
    k->sources = calloc(count ? count : 1, sizeof(*k->sources));
    if (!k->sources) {
        copy_free(k);
        return err_nomem(err);
    }
    memcpy(k->sources, blocks, count * sizeof(*blocks));
    k->count = count;
    if (procmem_open(&k->mem, pid, err) < 0) {
        copy_free(k);
        return err->code;
    }
    if (capture_new(&c, &copy_ops, k, options, err) < 0 ||
        add_sources(c, blocks, count, err) < 0 || capture_start(c, err) < 0)
        return err->code;
    *out = take_ptr(&c);
    return 0;
}
