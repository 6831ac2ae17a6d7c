/* SPDX-License-Identifier: MIT */
#include "load.h"

#include <string.h>
#include <unistd.h>

#include "memstate/chunk_read.h"
#include "memstate/regions.h"
#include "memstate/worker.h"
#include "memstate/zero.h"

struct load {
    struct worker worker;
    struct ramset *set;
    uint8_t **memory; /* of each block of the set */
    struct buf device;
};

/* A page that is zero already is not written: it may never have been touched,
 * and would take memory then. */
static void clear_page(uint8_t *page)
{
    if (!zero_is(page, RAMSET_PAGE))
        memset(page, 0, RAMSET_PAGE);
}

static void put_chunk(struct load *l, const struct chunk_view *v)
{
    uint8_t *to = l->memory[v->index] + v->number * RAMSET_CHUNK;

    for (size_t i = 0; i < v->pages; i++, to += RAMSET_PAGE)
        if (v->data && ramset_map_has(&v->nonzero, i))
            memcpy(to, v->data + i * RAMSET_PAGE, RAMSET_PAGE);
        else
            clear_page(to);
}

static int load_run(void *ctx, struct qstill_error *err)
{
    CLEANUP(chunk_reader_closep) struct chunk_reader *r = NULL;
    struct load *l = ctx;
    struct chunk_view view;
    bool end = false;

    /* First what may fail without a change. */
    if (ramset_device_read(l->set, &l->device, err) < 0 ||
        chunk_reader_open(&r, l->set, RAMSET_DIRECT, err) < 0)
        return err->code;
    for (unsigned i = 0; i < l->set->block_count; i++) {
        struct chunk_span all = {i, 0, l->set->blocks[i].chunks};

        if (chunk_reader_add(r, &all, err) < 0)
            return err->code;
    }
    while (chunk_reader_next(r, &view, &end, err) == 0 && !end) {
        if (worker_check(&l->worker, err) < 0)
            return err->code;
        put_chunk(l, &view);
        worker_add_done(&l->worker, view.pages * RAMSET_PAGE);
    }
    return end ? 0 : err->code;
}

static int find_places(struct load *l, const struct load_place *places,
                       size_t count, struct qstill_error *err)
{
    for (size_t i = 0; i < count; i++) {
        const struct load_place *p = &places[i];
        unsigned index = 0;
        const struct ramset_block *b = ramset_find(l->set, p->id, &index);

        if (!b)
            return err_set(err, QSTILL_E_PRECONDITION,
                           "the capture has no block '%.100s'", p->id);
        if (b->size != p->length)
            return err_set(err, QSTILL_E_PRECONDITION,
                           "block '%.100s' has %llu bytes in the capture, and "
                           "%llu here",
                           p->id, (unsigned long long)b->size,
                           (unsigned long long)p->length);
        l->memory[index] = p->address;
    }
    for (size_t i = 0; i < l->set->block_count; i++)
        if (!l->memory[i])
            return err_set(err, QSTILL_E_PRECONDITION,
                           "block '%.100s' of the capture has no place here",
                           l->set->blocks[i].id);
    return 0;
}

/* Else the first write would be the end of this process. Where the mappings
 * may not be read nothing is said against them. */
static int check_writable(const struct load_place *places, size_t count,
                          struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf maps = BUF_INIT;
    struct qstill_error ignored = {0};
    struct region r;

    if (regions_read(getpid(), &maps, &ignored) < 0)
        return 0;
    for (size_t i = 0; i < count; i++) {
        uint64_t hva = (uintptr_t)places[i].address;

        for (uint64_t at = hva; at - hva < places[i].length; at = r.end) {
            if (regions_find(&maps, at, &r) && r.readable && r.writable)
                continue;
            err_set(err, QSTILL_E_PRECONDITION,
                    "region %s: there is no memory to be written at 0x%llx",
                    places[i].id, (unsigned long long)at);
            return err_hint(err, "give regions that are mapped, readable and "
                                 "writable, from end to end");
        }
    }
    return 0;
}

int load_open(struct load **out, int dirfd, const struct load_place *places,
              size_t count, struct qstill_error *err)
{
    CLEANUP(load_closep) struct load *l = calloc(1, sizeof(*l));

    if (!l)
        return err_nomem(err);
    if (worker_init(&l->worker, err) < 0 ||
        ramset_open(&l->set, dirfd, err) < 0)
        return err->code;
    l->memory = calloc(l->set->block_count + 1, sizeof(*l->memory));
    if (!l->memory)
        return err_nomem(err);
    if (find_places(l, places, count, err) < 0 ||
        check_writable(places, count, err) < 0)
        return err->code;
    worker_set_total(&l->worker, l->set->memory_bytes);
    if (worker_start(&l->worker, load_run, l, err) < 0)
        return err->code;
    *out = take_ptr(&l);
    return 0;
}

int load_fd(const struct load *l)
{
    return l->worker.event_fd;
}

void load_poll(struct load *l, struct load_status *status)
{
    status->complete =
        worker_poll(&l->worker, &status->bytes_done, &status->bytes_total);
}

int load_finish(struct load *l, struct buf *device, struct qstill_error *err)
{
    if (worker_result(&l->worker, err) < 0)
        return err->code;
    if (buf_append(device, l->device.data, l->device.len) < 0)
        return err_nomem(err);
    return 0;
}

void load_close(struct load *l)
{
    if (!l)
        return;
    worker_join(&l->worker);
    ramset_close(l->set);
    worker_fini(&l->worker);
    buf_fini(&l->device);
    free(l->memory);
    free(l);
}

void load_closep(struct load **l)
{
    load_close(*l);
    *l = NULL;
}
