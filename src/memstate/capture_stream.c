/* SPDX-License-Identifier: MIT */
/*
 * Modes `background` and `precopy`: QEMU writes a migration stream into our
 * pipe, and its pages are put where they belong. One thread reads, parses,
 * sums and places; writes are in flight behind it. It reads as fast as it can,
 * since QEMU (and in background mode a guest that wants to write) waits for a
 * full pipe.
 * What becomes of a page is in capture_stream_pages.c.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>

#include "base/checked.h"
#include "memstate/capture_stream_impl.h"
#include "memstate/devstate.h"
#include "memstate/stream.h"
#include "memstate/stream_amend.h"

#define BUFFERS 32u
/* As much as the kernel gives without privilege; one read takes it all. */
#define PIPE_SIZE (1 << 20)
#define READ_SIZE ((size_t)1 << 20)
/* A background snapshot is written page by page: when a read brings less than
 * this, the next one is put off a little, so that QEMU need not wake us (and
 * the scheduler not change over) for each page. The pipe has room for what
 * comes meanwhile: 1 MiB in 0.2 ms would be 5 GB/s. */
#define READ_ENOUGH ((size_t)128 << 10)
#define NAP_NS      200000

/* A QEMU that sends nothing for so long is not sending any more. */
#define SILENCE_MS 30000

/* ------------------------------------------------------------------ blocks */

static int on_blocks_done(void *user, struct qstill_error *err)
{
    struct stream *s = user;
    uint64_t total = 0;

    (void)err;
    for (size_t i = 0; i < s->block_count; i++)
        total +=
            ramset_writer_block(capture_writer(s->capture), (unsigned)i)->size;
    capture_set_total(s->capture, total);
    return 0;
}

static int on_part(void *user, struct qstill_error *err)
{
    struct stream *s = user;

    (void)err;
    if (s->flavour == CAPTURE_BACKGROUND)
        capture_set_instant_taken(s->capture);
    return 0;
}

/* -------------------------------------------------------------------- tail */

static int on_ram_done(void *user, struct qstill_error *err)
{
    struct stream *s = user;

    if (stream_flush(s, err) < 0)
        return err->code;
    if (buf_append_be32(&s->tail, STREAM_MAGIC) < 0 ||
        buf_append_be32(&s->tail, STREAM_VERSION) < 0)
        return err_nomem(err);
    return 0;
}

static int on_tail(void *user, const uint8_t *data, size_t len,
                   struct qstill_error *err)
{
    struct stream *s = user;

    if (len > RAMSET_DEVICE_MAX - s->tail.len)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the device state is longer than %llu bytes",
                       (unsigned long long)RAMSET_DEVICE_MAX);
    if (buf_append(&s->tail, data, len) < 0)
        return err_nomem(err);
    return 0;
}

static const struct stream_events events = {
    .block = stream_on_block,
    .blocks_done = on_blocks_done,
    .part = on_part,
    .page = stream_on_page,
    .zero = stream_on_zero,
    .ram_done = on_ram_done,
    .tail = on_tail,
};

/* The stream has ended well: the device state is judged and kept. */
static int keep_tail(struct stream *s, struct qstill_error *err)
{
    struct capture_result *r = capture_figures(s->capture);
    struct devstate parsed;

    if (devstate_parse(&parsed, s->tail.data, s->tail.len, err) < 0)
        return err->code;
    r->footers = stream_parser_footers(s->parser);
    if (r->footers && !parsed.footers)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the migration stream ends in the device state");
    r->vmdescription = parsed.vmdescription;
    return ramset_device_append(capture_writer(s->capture), s->tail.data,
                                s->tail.len, err);
}

/* ------------------------------------------------------------------ thread */

/* Reads what is there, at least a byte; *got is 0 at the end. */
static int read_pipe(struct stream *s, uint8_t *data, size_t room, size_t *got,
                     struct qstill_error *err)
{
    for (;;) {
        ssize_t n = read(s->fd, data, room);

        if (n >= 0) {
            *got = (size_t)n;
            return 0;
        }
        if (errno != EAGAIN && errno != EINTR)
            return err_errno(err, errno, "reading the migration stream");
        if (errno == EAGAIN &&
            capture_wait_fd(s->capture, s->fd, POLLIN, err) < 0)
            return err->code;
    }
}

static int pump(struct stream *s, struct qstill_error *err)
{
    uint64_t before = worker_now_ns();
    size_t left = 0, got = 0, used;
    struct pace pace;

    pace_init(&pace, capture_get_options(s->capture)->bwlimit);
    for (;;) {
        uint64_t now = worker_now_ns();

        s->longest_ns = max_u64(s->longest_ns, now - before);
        if (read_pipe(s, s->input + left, READ_SIZE, &got, err) < 0)
            return err->code;
        before = worker_now_ns();
        if (got == 0)
            return stream_parser_end(s->parser, left, err);
        left += got;
        if (stream_parser_feed(s->parser, s->input, left, &used, err) < 0)
            return err->code;
        left -= used;
        memmove(s->input, s->input + used, left);
        if (got < READ_ENOUGH && capture_nap(s->capture, NAP_NS, err) < 0)
            return err->code;
        if (capture_pace(s->capture, &pace, got, err) < 0)
            return err->code;
    }
}

/*
 * QEMU 7.2 hangs for good when the pipe of a background snapshot breaks: its
 * RAM stays write-protected and nobody serves the faults any more. So what we
 * cannot use is read all the same, until QEMU has done or has been cancelled.
 */
static void swallow(struct stream *s)
{
    struct pollfd p = {.fd = s->fd, .events = POLLIN};
    ssize_t n = 1;

    while (n != 0 && poll(&p, 1, SILENCE_MS) > 0) {
        n = read(s->fd, s->input, READ_SIZE);
        if (n < 0 && errno != EAGAIN && errno != EINTR)
            return;
    }
}

static int take_page(void *user, unsigned index, uint64_t offset,
                     const uint8_t *data, struct qstill_error *err)
{
    return data ? stream_on_page(user, index, offset, data, err)
                : stream_on_zero(user, index, offset, err);
}

static int amend(struct stream *s, struct qstill_error *err)
{
    const struct capture_options *o = capture_get_options(s->capture);
    struct stream_amend a = {stream_same_page, take_page, s};

    if (s->flavour != CAPTURE_PRECOPY || o->ram_count == 0)
        return 0;
    if (stream_amend(&a, capture_writer(s->capture), o->pid, o->ram,
                     o->ram_count, &capture_figures(s->capture)->amended_pages,
                     err) < 0)
        return err->code;
    return stream_flush(s, err);
}

static int receive(struct stream *s, struct qstill_error *err)
{
    struct capture *c = s->capture;
    int rc;

    if (chunk_writer_open(&s->writer, capture_writer(c),
                          capture_get_options(c)->io, BUFFERS, err) < 0)
        return err->code;
    capture_set_ready(c);
    rc = pump(s, err);
    if (rc < 0 && s->flavour == CAPTURE_BACKGROUND)
        swallow(s);
    /* precopy: at once, also when we failed: QEMU must not wait for us. */
    closep(&s->fd);
    s->fd = -1;
    if (rc < 0 || amend(s, err) < 0 || chunk_writer_drain(s->writer, err) < 0)
        return err->code;
    return keep_tail(s, err);
}

static int stream_run(void *ctx, struct capture *c, struct qstill_error *err)
{
    struct capture_result *r = capture_figures(c);
    struct stream *s = ctx;

    s->capture = c;
    if (receive(s, err) < 0)
        return err->code;
    chunk_writer_closep(&s->writer);
    r->written_bytes = s->written_pages * RAMSET_PAGE;
    r->longest_stall_ms = (double)s->longest_ns / 1e6;
    r->machine = stream_parser_machine(s->parser);
    r->config = stream_parser_config(s->parser)->data;
    r->config_len = stream_parser_config(s->parser)->len;
    return 0;
}

static void stream_free(void *ctx)
{
    struct stream *s = ctx;

    chunk_writer_close(s->writer);
    stream_parser_free(s->parser);
    stream_pages_fini(s);
    buf_fini(&s->tail);
    free(s->input);
    closep(&s->fd);
    free(s);
}

static const struct capture_ops stream_ops = {
    .run = stream_run,
    .free = stream_free,
};

static int stream_new(struct stream **out, int *fd,
                      enum capture_flavour flavour, struct qstill_error *err)
{
    struct stream *s = calloc(1, sizeof(*s));
    int flags = fcntl(*fd, F_GETFL);

    if (!s)
        return err_nomem(err);
    s->fd = take_fd(fd);
    s->flavour = flavour;
    s->tail = (struct buf)BUF_INIT;
    s->input = malloc(READ_SIZE + STREAM_ELEMENT_MAX);
    *out = s;
    if (!s->input)
        return err_nomem(err);
    if (flags < 0 || fcntl(s->fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return err_errno(err, errno, "cannot use the migration's pipe");
    fcntl(s->fd, F_SETPIPE_SZ, PIPE_SIZE); /* a wish; a socket has none */
    return stream_parser_new(&s->parser,
                             flavour == CAPTURE_BACKGROUND ? STREAM_BACKGROUND
                                                           : STREAM_PRECOPY,
                             &events, s, err);
}

int capture_stream_open(struct capture **out, int fd,
                        enum capture_flavour flavour,
                        const struct capture_options *options,
                        struct qstill_error *err)
{
    CLEANUP(capture_closep) struct capture *c = NULL;
    CLEANUP(closep) int owned = fd;
    struct stream *s = NULL;

    if (stream_new(&s, &owned, flavour, err) < 0) {
        if (s)
            stream_free(s);
        return err->code;
    }
    if (capture_new(&c, &stream_ops, s, options, err) < 0 ||
        capture_start(c, err) < 0)
        return err->code;
    *out = take_ptr(&c);
    return 0;
}
