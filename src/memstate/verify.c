/* SPDX-License-Identifier: MIT */
#include "verify.h"

#include "base/buf.h"
#include "memstate/chunk_read.h"
#include "memstate/worker.h"

struct verify {
    struct verify_options options; /* dirfd is not kept */
    struct worker worker;
    struct ramset *set;
};

static int verify_chunks(struct verify *v, struct qstill_error *err)
{
    CLEANUP(chunk_reader_closep) struct chunk_reader *r = NULL;
    struct chunk_view view;
    struct pace pace;
    bool end = false;

    if (chunk_reader_open(&r, v->set, v->options.cache, err) < 0)
        return err->code;
    for (unsigned i = 0; i < v->set->block_count; i++) {
        struct chunk_span all = {i, 0, v->set->blocks[i].chunks};

        if (chunk_reader_add(r, &all, err) < 0)
            return err->code;
    }
    pace_init(&pace, v->options.bwlimit);
    while (chunk_reader_next(r, &view, &end, err) == 0 && !end) {
        size_t len = view.pages * RAMSET_PAGE;

        if (worker_pace(&v->worker, &pace, view.data ? len : 0, err) < 0)
            return err->code;
        worker_add_done(&v->worker, len);
    }
    return end ? 0 : err->code;
}

static int verify_run(void *ctx, struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf device = BUF_INIT;
    struct verify *v = ctx;

    if (ramset_device_read(v->set, &device, err) < 0)
        return err->code;
    return verify_chunks(v, err);
}

int verify_open(struct verify **out, const struct verify_options *options,
                struct qstill_error *err)
{
    CLEANUP(verify_closep) struct verify *v = calloc(1, sizeof(*v));

    if (!v)
        return err_nomem(err);
    v->options = *options;
    v->options.dirfd = -1;
    if (worker_init(&v->worker, err) < 0 ||
        ramset_open(&v->set, options->dirfd, err) < 0)
        return err->code;
    worker_set_total(&v->worker, v->set->memory_bytes);
    if (worker_start(&v->worker, verify_run, v, err) < 0)
        return err->code;
    *out = take_ptr(&v);
    return 0;
}

int verify_fd(const struct verify *v)
{
    return v->worker.event_fd;
}

void verify_poll(struct verify *v, struct verify_status *status)
{
    status->complete =
        worker_poll(&v->worker, &status->bytes_done, &status->bytes_total);
}

int verify_finish(struct verify *v, struct qstill_error *err)
{
    return worker_result(&v->worker, err);
}

void verify_cancel(struct verify *v)
{
    worker_cancel(&v->worker);
}

void verify_close(struct verify *v)
{
    if (!v)
        return;
    worker_join(&v->worker);
    ramset_close(v->set);
    worker_fini(&v->worker);
    free(v);
}

void verify_closep(struct verify **v)
{
    verify_close(*v);
    *v = NULL;
}
