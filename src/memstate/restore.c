/* SPDX-License-Identifier: MIT */
/*
 * Writes the stream of a restore. Happy path: device state read and checked,
 * head and list, a PART per chunk of what travels, END, device state.
 * Failures: a damaged chunk ends the stream in the middle of RAM; QEMU then
 * fails its load, and never sees a device.
 */
#include "restore.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/uio.h>

#include "base/checked.h"
#include "memstate/chunk_read.h"
#include "memstate/devstate.h"
#include "memstate/stream_write.h"
#include "memstate/worker.h"

#define PIPE_SIZE (1 << 20)
/* A record per page, and for data its page: below IOV_MAX (1024). */
#define IOV_COUNT (2u * RAMSET_CHUNK_PAGES + 2u)

enum travel { TRAVEL_NONE, TRAVEL_ALL, TRAVEL_RANGES };

struct plan {
    enum travel travel;
    bool zeros; /* zero pages are sent, too */
};

/* Pages of a block, from a restore_range. */
struct page_range {
    unsigned index;
    uint64_t first;
    uint64_t behind;
};

struct restore {
    const struct ramset *set;
    char *machine;
    struct plan *plans; /* per block */
    struct page_range *ranges;
    size_t range_count;
    uint64_t bwlimit;
    enum ramset_cache cache;
    int fd;           /* the sink: a pipe, */
    struct buf *sink; /* or a buffer, */
    bool nowhere;     /* or none */
    bool footers;
    struct buf device;
    struct buf text; /* records and frames of a chunk */
    struct restore_result result;
    struct worker worker;
};

/* -------------------------------------------------------------------- plan */

static bool is_mapped(const struct restore_options *o, const char *id)
{
    for (size_t i = 0; i < o->mapped_count; i++)
        if (strcmp(o->mapped[i], id) == 0)
            return true;
    return false;
}

static int plan_ranges(struct restore *r, const struct restore_options *o,
                       struct qstill_error *err)
{
    r->ranges = calloc(o->range_count ? o->range_count : 1, sizeof(*r->ranges));
    if (!r->ranges)
        return err_nomem(err);
    for (size_t i = 0; i < o->range_count; i++) {
        const struct restore_range *in = &o->ranges[i];
        struct page_range *out = &r->ranges[r->range_count++];
        const struct ramset_block *block =
            ramset_find(r->set, in->id, &out->index);
        uint64_t end;

        if (!block)
            return err_set(err, QSTILL_E_NOT_FOUND,
                           "there is no RAM block '%s'", in->id);
        if (in->offset % RAMSET_PAGE || in->length % RAMSET_PAGE ||
            add_u64(in->offset, in->length, &end) || end > block->size)
            return err_set(err, QSTILL_E_FAILED,
                           "range %llu+%llu is not in RAM block '%s'",
                           (unsigned long long)in->offset,
                           (unsigned long long)in->length, in->id);
        out->first = in->offset / RAMSET_PAGE;
        out->behind = end / RAMSET_PAGE;
        if (r->plans[out->index].travel == TRAVEL_NONE)
            r->plans[out->index] = (struct plan){TRAVEL_RANGES, true};
    }
    return 0;
}

static int plan_blocks(struct restore *r, const struct restore_options *o,
                       struct qstill_error *err)
{
    for (size_t i = 0; i < o->mapped_count; i++)
        if (!ramset_find(r->set, o->mapped[i], NULL))
            return err_set(err, QSTILL_E_NOT_FOUND,
                           "there is no RAM block '%s'", o->mapped[i]);
    for (size_t i = 0; i < r->set->block_count; i++) {
        const struct ramset_block *block = &r->set->blocks[i];
        struct plan *plan = &r->plans[i];

        if (o->pages == RESTORE_ALL ||
            (o->pages == RESTORE_UNMAPPED && !is_mapped(o, block->id)))
            plan->travel = TRAVEL_ALL;
        plan->zeros =
            o->zeros == RESTORE_SEND_ZEROS || block->size <= RESTORE_SMALL_MAX;
    }
    return plan_ranges(r, o, err);
}

static int restore_new(struct restore **out, const struct restore_options *o,
                       struct qstill_error *err)
{
    CLEANUP(restore_closep) struct restore *r = calloc(1, sizeof(*r));

    if (!r)
        return err_nomem(err);
    r->fd = -1;
    r->worker.event_fd = r->worker.cancel_fd = -1;
    r->set = o->set;
    r->bwlimit = o->bwlimit;
    r->cache = o->cache;
    r->device = (struct buf)BUF_INIT;
    r->text = (struct buf)BUF_INIT;
    if (!o->machine || !o->machine[0] || strlen(o->machine) > 255)
        return err_set(err, QSTILL_E_FAILED, "no or no proper machine type");
    r->machine = strdup(o->machine);
    r->plans = calloc(r->set->block_count ? r->set->block_count : 1,
                      sizeof(*r->plans));
    if (!r->machine || !r->plans)
        return err_nomem(err);
    if (worker_init(&r->worker, err) < 0 || plan_blocks(r, o, err) < 0)
        return err->code;
    *out = take_ptr(&r);
    return 0;
}

/* -------------------------------------------------------------------- sink */

/* Drops `n` written bytes from the front. */
static void iov_advance(struct iovec **iov, unsigned *count, size_t n)
{
    while (*count > 0 && n >= (*iov)->iov_len) {
        n -= (*iov)->iov_len;
        (*iov)++;
        (*count)--;
    }
    if (n > 0) {
        (*iov)->iov_base = (char *)(*iov)->iov_base + n;
        (*iov)->iov_len -= n;
    }
}

static int sink_buf(struct restore *r, const struct iovec *iov, unsigned count,
                    struct qstill_error *err)
{
    for (unsigned i = 0; i < count; i++) {
        if (iov[i].iov_len > RESTORE_BUILD_MAX - r->sink->len)
            return err_set(err, QSTILL_E_CORRUPT,
                           "the VM state is longer than %zu bytes",
                           RESTORE_BUILD_MAX);
        if (buf_append(r->sink, iov[i].iov_base, iov[i].iov_len) < 0)
            return err_nomem(err);
        r->result.stream_bytes += iov[i].iov_len;
    }
    return 0;
}

static int sink_iov(struct restore *r, struct iovec *iov, unsigned count,
                    struct qstill_error *err)
{
    if (r->nowhere)
        return 0;
    if (r->sink)
        return sink_buf(r, iov, count, err);
    while (count > 0) {
        ssize_t n = writev(r->fd, iov, (int)count);

        if (n >= 0) {
            r->result.stream_bytes += (size_t)n;
            iov_advance(&iov, &count, (size_t)n);
        } else if (errno == EAGAIN) {
            if (worker_wait(&r->worker, r->fd, POLLOUT, err) < 0)
                return err->code;
        } else if (errno == EPIPE || errno == ECONNRESET) {
            return err_set(err, QSTILL_E_UNREACHABLE,
                           "QEMU closed the stream before its end");
        } else if (errno != EINTR) {
            return err_errno(err, errno, "writing the migration stream");
        }
    }
    return 0;
}

static int sink_bytes(struct restore *r, const void *data, size_t len,
                      struct qstill_error *err)
{
    struct iovec iov = {(void *)(uintptr_t)data, len};

    return sink_iov(r, &iov, 1, err);
}

/* ------------------------------------------------------------------- pages */

static bool in_ranges(const struct restore *r, unsigned index, uint64_t page)
{
    for (size_t i = 0; i < r->range_count; i++)
        if (r->ranges[i].index == index && page >= r->ranges[i].first &&
            page < r->ranges[i].behind)
            return true;
    return false;
}

/* Which pages of the chunk are sent, with data or as zero. */
static struct ramset_map wanted(const struct restore *r,
                                const struct chunk_view *v)
{
    const struct plan *plan = &r->plans[v->index];
    uint64_t first = v->number * RAMSET_CHUNK_PAGES;
    struct ramset_map m = {{0}};

    for (size_t i = 0; i < v->pages; i++)
        if ((plan->zeros || ramset_map_has(&v->nonzero, i)) &&
            (plan->travel == TRAVEL_ALL || in_ranges(r, v->index, first + i)))
            ramset_map_set(&m, i);
    return m;
}

/* A vector under construction: text pieces become entries when data comes. */
struct vector {
    struct iovec iov[IOV_COUNT];
    unsigned count;
    size_t text_from; /* the part of r->text that is in no entry yet */
};

static void vector_flush_text(struct vector *v, const struct buf *text)
{
    if (text->len == v->text_from)
        return;
    v->iov[v->count++] =
        (struct iovec){text->data + v->text_from, text->len - v->text_from};
    v->text_from = text->len;
}

static int put_page(struct restore *r, const struct chunk_view *c, size_t i,
                    const char *id, struct vector *v)
{
    bool data = ramset_map_has(&c->nonzero, i);
    uint64_t off = c->number * RAMSET_CHUNK + i * RAMSET_PAGE;

    if (stream_put_record(&r->text, off,
                          data ? STREAM_RAM_PAGE : STREAM_RAM_ZERO, id) < 0)
        return -1;
    if (!data)
        return buf_append_u8(&r->text, 0);
    vector_flush_text(v, &r->text);
    v->iov[v->count++] = (struct iovec){
        (void *)(uintptr_t)(c->data + i * RAMSET_PAGE), RAMSET_PAGE};
    r->result.sent_bytes += RAMSET_PAGE;
    return 0;
}

/* Records are at most 8 + 256 bytes once and 9 bytes per page otherwise, so
 * that the text never moves under the vector that points into it. */
#define TEXT_MAX (64u + 264u + RAMSET_CHUNK_PAGES * 9u)

/* One PART with the pages of the chunk. */
static int send_chunk(struct restore *r, const struct chunk_view *c,
                      struct qstill_error *err)
{
    const char *id = r->set->blocks[c->index].id;
    struct ramset_map map = wanted(r, c);
    struct vector v = {.count = 0};
    size_t at = 0, first, n;

    if (ramset_map_count(&map) == 0)
        return 0;
    r->text.len = 0;
    if (buf_reserve(&r->text, TEXT_MAX) < 0 ||
        stream_begin_section(&r->text, STREAM_PART) < 0)
        return err_nomem(err);
    while ((n = ramset_map_run(&map, c->pages, &at, &first)) > 0)
        for (size_t i = first; i < first + n; i++, id = NULL)
            if (put_page(r, c, i, id, &v) < 0)
                return err_nomem(err);
    if (stream_end_section(&r->text, r->footers) < 0)
        return err_nomem(err);
    vector_flush_text(&v, &r->text);
    return sink_iov(r, v.iov, v.count, err);
}

/* The chunks of a block that hold pages which travel. */
static int add_spans(struct restore *r, struct chunk_reader *reader,
                     unsigned index, struct qstill_error *err)
{
    const struct ramset_block *block = &r->set->blocks[index];
    struct chunk_span span = {index, 0, block->chunks};

    if (r->plans[index].travel == TRAVEL_ALL)
        return chunk_reader_add(reader, &span, err);
    for (size_t i = 0; i < r->range_count; i++) {
        const struct page_range *p = &r->ranges[i];

        if (p->index != index || p->behind == p->first)
            continue;
        span.first = p->first / RAMSET_CHUNK_PAGES;
        span.count = (p->behind - 1) / RAMSET_CHUNK_PAGES + 1 - span.first;
        if (chunk_reader_add(reader, &span, err) < 0)
            return err->code;
    }
    return 0;
}

static int send_pages(struct restore *r, struct qstill_error *err)
{
    CLEANUP(chunk_reader_closep) struct chunk_reader *reader = NULL;
    struct chunk_view view;
    struct pace pace;
    bool end = false;

    if (chunk_reader_open(&reader, r->set, r->cache, err) < 0)
        return err->code;
    for (unsigned i = 0; i < r->set->block_count; i++)
        if (r->plans[i].travel != TRAVEL_NONE &&
            add_spans(r, reader, i, err) < 0)
            return err->code;
    pace_init(&pace, r->bwlimit);
    while (chunk_reader_next(reader, &view, &end, err) == 0 && !end) {
        size_t len = view.pages * RAMSET_PAGE;

        r->result.read_bytes += view.data ? len : 0;
        if (worker_pace(&r->worker, &pace, view.data ? len : 0, err) < 0 ||
            send_chunk(r, &view, err) < 0)
            return err->code;
        worker_add_done(&r->worker, len);
    }
    return end ? 0 : err->code;
}

/* ------------------------------------------------------------------ frames */

static int send_head(struct restore *r, struct qstill_error *err)
{
    struct buf *b = &r->text;

    b->len = 0;
    if (stream_put_head(b, r->machine) < 0 ||
        stream_begin_ram(b, r->set->memory_bytes) < 0)
        return err_nomem(err);
    for (size_t i = 0; i < r->set->block_count; i++)
        if (stream_put_block(b, r->set->blocks[i].id, r->set->blocks[i].size) <
            0)
            return err_nomem(err);
    if (stream_end_section(b, r->footers) < 0)
        return err_nomem(err);
    return sink_bytes(r, b->data, b->len, err);
}

static int send_tail(struct restore *r, bool vmdescription,
                     struct qstill_error *err)
{
    struct buf *b = &r->text;

    b->len = 0;
    if (stream_begin_section(b, STREAM_END) < 0 ||
        stream_end_section(b, r->footers) < 0)
        return err_nomem(err);
    if (sink_bytes(r, b->data, b->len, err) < 0 ||
        sink_bytes(r, r->device.data + DEVSTATE_HEADER,
                   r->device.len - DEVSTATE_HEADER, err) < 0)
        return err->code;
    if (vmdescription)
        return 0;
    b->len = 0;
    if (stream_put_empty_vmdescription(b) < 0)
        return err_nomem(err);
    return sink_bytes(r, b->data, b->len, err);
}

static int send_all(struct restore *r, struct qstill_error *err)
{
    struct devstate parsed;

    if (ramset_device_read(r->set, &r->device, err) < 0 ||
        devstate_parse(&parsed, r->device.data, r->device.len, err) < 0)
        return err->code;
    r->footers = parsed.footers;
    if (send_head(r, err) < 0 || send_pages(r, err) < 0)
        return err->code;
    return send_tail(r, parsed.vmdescription, err);
}

static int restore_run(void *ctx, struct qstill_error *err)
{
    struct restore *r = ctx;
    int rc = send_all(r, err);

    /* QEMU sees the end at once, of a whole stream or of a broken one. */
    closep(&r->fd);
    r->fd = -1;
    return rc;
}

/* --------------------------------------------------------------- the owner */

int restore_open(struct restore **out, int fd,
                 const struct restore_options *options,
                 struct qstill_error *err)
{
    CLEANUP(restore_closep) struct restore *r = NULL;
    CLEANUP(closep) int owned = fd;
    int flags = fcntl(fd, F_GETFL);
    uint64_t total = 0;

    if (restore_new(&r, options, err) < 0)
        return err->code;
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return err_errno(err, errno, "cannot use the migration's pipe");
    fcntl(fd, F_SETPIPE_SZ, PIPE_SIZE); /* a wish; a socket has none */
    for (size_t i = 0; i < r->set->block_count; i++)
        if (r->plans[i].travel == TRAVEL_ALL)
            total += r->set->blocks[i].size;
    worker_set_total(&r->worker, total);
    r->fd = take_fd(&owned);
    if (worker_start(&r->worker, restore_run, r, err) < 0)
        return err->code;
    *out = take_ptr(&r);
    return 0;
}

int restore_build(struct buf *out, const struct restore_options *options,
                  struct qstill_error *err)
{
    CLEANUP(restore_closep) struct restore *r = NULL;
    CLEANUP(buf_fini) struct buf b = BUF_INIT;

    if (restore_new(&r, options, err) < 0)
        return err->code;
    r->sink = &b;
    if (send_all(r, err) < 0)
        return err->code;
    if (buf_append(out, b.data, b.len) < 0)
        return err_nomem(err);
    return 0;
}

int restore_check(const struct restore_options *options,
                  struct qstill_error *err)
{
    CLEANUP(restore_closep) struct restore *r = NULL;

    if (restore_new(&r, options, err) < 0)
        return err->code;
    r->nowhere = true;
    return send_all(r, err);
}

int restore_fd(const struct restore *r)
{
    return r->worker.event_fd;
}

void restore_poll(struct restore *r, struct restore_status *status)
{
    status->complete =
        worker_poll(&r->worker, &status->bytes_done, &status->bytes_total);
}

int restore_finish(struct restore *r, struct restore_result *out,
                   struct qstill_error *err)
{
    if (worker_result(&r->worker, err) < 0)
        return err->code;
    *out = r->result;
    return 0;
}

void restore_cancel(struct restore *r)
{
    worker_cancel(&r->worker);
}

void restore_close(struct restore *r)
{
    if (!r)
        return;
    worker_join(&r->worker);
    closep(&r->fd);
    worker_fini(&r->worker);
    buf_fini(&r->device);
    buf_fini(&r->text);
    free(r->machine);
    free(r->plans);
    free(r->ranges);
    free(r);
}

void restore_closep(struct restore **r)
{
    restore_close(*r);
    *r = NULL;
}
