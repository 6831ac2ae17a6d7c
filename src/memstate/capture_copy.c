/* SPDX-License-Identifier: MIT */
/*
 * Mode `paused`: while the owner holds the VM stopped, its RAM is read out of
 * the process, chunk by chunk, and written behind. The guest may go on when
 * the last chunk was read; the writes may then still be in flight.
 */
#include "base/checked.h"
#include "memstate/capture_impl.h"
#include "memstate/chunk_write.h"
#include "memstate/procmem.h"
#include "memstate/regions.h"
#include "memstate/vmread.h"

/* What is read while the disk is busy. More would shorten the pause by what
 * fits, and cost as much memory. */
#define BUFFERS 64u

struct copy_block {
    uint64_t hva;
    uint64_t size;
    struct vmread reader;
};

struct copy {
    pid_t pid;
    struct procmem *mem;
    struct copy_block *blocks; /* as in the file set */
    size_t count;
    struct pace pace;
};

static int put_chunk(struct capture *c, struct chunk_writer *w,
                     struct chunk *chunk, struct qstill_error *err)
{
    uint64_t sum = ramset_scan(chunk->data, chunk->number * RAMSET_CHUNK_PAGES,
                               chunk->pages, &chunk->have);

    ramset_sum_add(capture_writer(c), chunk->index, chunk->number, sum);
    capture_figures(c)->written_bytes +=
        (uint64_t)ramset_map_count(&chunk->have) * RAMSET_PAGE;
    ramset_map_close_gaps(&chunk->have, chunk->pages);
    return chunk_writer_put(w, chunk, err);
}

static int copy_chunk(struct copy *k, struct capture *c, struct chunk_writer *w,
                      unsigned index, uint64_t number, struct qstill_error *err)
{
    struct chunk *chunk;
    bool zero;
    size_t len;

    if (chunk_writer_get(w, index, number, &chunk, err) < 0)
        return err->code;
    len = chunk->pages * RAMSET_PAGE;
    if (vmread_chunk(&k->blocks[index].reader, number * RAMSET_CHUNK,
                     chunk->data, len, &zero, err) < 0 ||
        capture_pace(c, &k->pace, zero ? 0 : len, err) < 0)
        return err->code;
    capture_add_done(c, len);
    if (zero) /* nothing is set in chunk->have: it only goes back */
        return chunk_writer_put(w, chunk, err);
    return put_chunk(c, w, chunk, err);
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

/* Only now: while the VM ran, its mappings could change. */
static int open_readers(struct copy *k, struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf maps = BUF_INIT;

    if (regions_read(k->pid, &maps, err) < 0)
        return err->code;
    for (size_t i = 0; i < k->count; i++)
        vmread_open(&k->blocks[i].reader, k->mem, &maps, k->blocks[i].hva,
                    k->blocks[i].size);
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
    if (capture_wait_instant(c, err) < 0 || open_readers(k, err) < 0)
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

    for (size_t i = 0; i < k->count; i++)
        vmread_close(&k->blocks[i].reader);
    procmem_close(k->mem);
    free(k->blocks);
    free(k);
}

static const struct capture_ops copy_ops = {
    .stopped_by_owner = true,
    .run = copy_run,
    .free = copy_free,
};

static int add_blocks(struct capture *c, const struct capture_source *blocks,
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

static int keep_blocks(struct copy *k, const struct capture_source *blocks,
                       size_t count, struct qstill_error *err)
{
    k->blocks = calloc(count ? count : 1, sizeof(*k->blocks));
    if (!k->blocks)
        return err_nomem(err);
    for (k->count = 0; k->count < count; k->count++)
        k->blocks[k->count] = (struct copy_block){
            .hva = blocks[k->count].hva,
            .size = blocks[k->count].size,
            .reader = {.fd = -1},
        };
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
    k->pid = pid;
    if (keep_blocks(k, blocks, count, err) < 0 ||
        procmem_open(&k->mem, pid, err) < 0) {
        copy_free(k);
        return err->code;
    }
    if (capture_new(&c, &copy_ops, k, options, err) < 0 ||
        add_blocks(c, blocks, count, err) < 0 || capture_start(c, err) < 0)
        return err->code;
    *out = take_ptr(&c);
    return 0;
}
