/* SPDX-License-Identifier: MIT */
/*
 * Modes `background` and `precopy`: QEMU writes a migration stream into our
 * pipe, and its pages are put where they belong. One thread reads, parses,
 * sums and places; writes are in flight behind it. It reads as fast as it can,
 * since QEMU (and in background mode a guest that wants to write) waits for a
 * full pipe.
 *
 * Pages gather in a few open chunks, so that most writes are of 1 MiB. A chunk
 * is written when it is complete or when its place is needed for another.
 *
 * A background snapshot sends each page at most once, so a second time is
 * damage. Precopy sends pages again; then the old sum is taken off, for which
 * each page's sum is kept (2 MiB per GiB of RAM), and a page that has become
 * zero is written as zeros.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>

#include "base/checked.h"
#include "memstate/capture_impl.h"
#include "memstate/chunk_write.h"
#include "memstate/devstate.h"
#include "memstate/stream.h"
#include "memstate/stream_amend.h"
#include "memstate/stream_parse.h"
#include "memstate/zero.h"

#define BUFFERS  32u
#define OPEN_MAX 8u
/* As much as the kernel gives without privilege; one read takes it all. */
#define PIPE_SIZE (1 << 20)
#define READ_SIZE ((size_t)1 << 20)
/* A background snapshot is written page by page: when a read brings less than
 * this, the next one is put off a little, so that QEMU need not wake us (and
 * the scheduler not change over) for each page. The pipe has room for what
 * comes meanwhile: 1 MiB in 0.2 ms would be 5 GB/s. */
#define READ_ENOUGH ((size_t)128 << 10)
#define NAP_NS      200000

struct page_state {
    uint64_t *seen;    /* bit per page: came, zero or not */
    uint64_t *written; /* bit per page: the file holds data there */
    uint64_t *sums;    /* precopy: per page, of its present content; mapped,
                          so that what is never touched takes no memory */
    size_t sums_len;
};

/* A QEMU that sends nothing for so long is not sending any more. */
#define SILENCE_MS 30000

struct stream {
    int fd;
    enum capture_flavour flavour;
    struct stream_parser *parser;
    struct capture *capture;
    struct chunk_writer *writer;
    struct chunk *open[OPEN_MAX]; /* the one used last comes first */
    unsigned open_count;
    struct page_state *pages; /* per block */
    size_t block_count;
    struct buf tail; /* device state, from its header on */
    uint64_t written_pages;
    uint64_t longest_ns; /* without reading */
    uint8_t *input;
};

/* ------------------------------------------------------------------ blocks */

static int add_pages(struct stream *s, uint64_t size, struct qstill_error *err)
{
    size_t pages = (size_t)(size / RAMSET_PAGE);
    struct page_state *p;
    void *sums;

    p = realloc(s->pages, (s->block_count + 1) * sizeof(*p));
    if (!p)
        return err_nomem(err);
    s->pages = p;
    p += s->block_count++;
    *p = (struct page_state){0};
    p->seen = calloc(pages / 64 + 1, sizeof(*p->seen));
    p->written = calloc(pages / 64 + 1, sizeof(*p->written));
    if (!p->seen || !p->written)
        return err_nomem(err);
    if (s->flavour != CAPTURE_PRECOPY || pages == 0)
        return 0;
    sums = mmap(NULL, pages * sizeof(*p->sums), PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (sums == MAP_FAILED)
        return err_nomem(err);
    p->sums = sums;
    p->sums_len = pages * sizeof(*p->sums);
    return 0;
}

static int on_block(void *user, unsigned index, const char *id, uint64_t size,
                    struct qstill_error *err)
{
    struct stream *s = user;

    (void)index;
    if (ramset_add_block(capture_writer(s->capture), id, size, 0, NULL, err) <
        0)
        return err->code;
    return add_pages(s, size, err);
}

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

/* ------------------------------------------------------------- open chunks */

static bool complete(const struct chunk *c)
{
    size_t pages = ramset_map_count(&c->have) + ramset_map_count(&c->zero);

    return pages == c->pages;
}

/* Takes the chunk out of the open ones. */
static struct chunk *take_open(struct stream *s, unsigned i)
{
    struct chunk *c = s->open[i];

    s->open_count--;
    memmove(&s->open[i], &s->open[i + 1],
            (s->open_count - i) * sizeof(s->open[0]));
    return c;
}

static void put_first(struct stream *s, struct chunk *c)
{
    memmove(&s->open[1], &s->open[0], s->open_count * sizeof(s->open[0]));
    s->open[0] = c;
    s->open_count++;
}

static int find_open(const struct stream *s, unsigned index, uint64_t number)
{
    for (unsigned i = 0; i < s->open_count; i++)
        if (s->open[i]->number == number && s->open[i]->index == index)
            return (int)i;
    return -1;
}

/* Brings the chunk to the first place, opened if need be. */
static int use_chunk(struct stream *s, unsigned index, uint64_t number,
                     struct qstill_error *err)
{
    int i = find_open(s, index, number);
    struct chunk *c;

    if (i == 0)
        return 0;
    if (i > 0) {
        put_first(s, take_open(s, (unsigned)i));
        return 0;
    }
    if (s->open_count == OPEN_MAX &&
        chunk_writer_put(s->writer, take_open(s, OPEN_MAX - 1), err) < 0)
        return err->code;
    if (chunk_writer_get(s->writer, index, number, &c, err) < 0)
        return err->code;
    put_first(s, c);
    return 0;
}

static int flush_open(struct stream *s, struct qstill_error *err)
{
    while (s->open_count > 0)
        if (chunk_writer_put(s->writer, take_open(s, s->open_count - 1), err) <
            0)
            return err->code;
    return 0;
}

/* ------------------------------------------------------------------- pages */

static bool test_and_set(uint64_t *bits, uint64_t page)
{
    uint64_t mask = (uint64_t)1 << (page % 64);
    bool was = (bits[page / 64] & mask) != 0;

    bits[page / 64] |= mask;
    return was;
}

static bool test(const uint64_t *bits, uint64_t page)
{
    return bits[page / 64] >> (page % 64) & 1;
}

static void clear(uint64_t *bits, uint64_t page)
{
    bits[page / 64] &= ~((uint64_t)1 << (page % 64));
}

/* Counts the page as come; a second time is damage unless pages may. */
static int note_seen(struct stream *s, unsigned index, uint64_t page,
                     struct qstill_error *err)
{
    if (!test_and_set(s->pages[index].seen, page)) {
        capture_add_done(s->capture, RAMSET_PAGE);
        return 0;
    }
    if (s->flavour == CAPTURE_PRECOPY)
        return 0;
    return err_set(
        err, QSTILL_E_CORRUPT,
        "the background snapshot has page %llu of RAM block '%.100s' twice",
        (unsigned long long)page,
        ramset_writer_block(capture_writer(s->capture), index)->id);
}

/* The page's sum becomes `sum`; its chunk's follows. */
static void account(struct stream *s, unsigned index, uint64_t page,
                    uint64_t sum)
{
    struct page_state *p = &s->pages[index];
    uint64_t old = 0;

    if (p->sums) {
        old = p->sums[page];
        if (old != sum)
            p->sums[page] = sum;
    }
    ramset_sum_add(capture_writer(s->capture), index, page / RAMSET_CHUNK_PAGES,
                   sum - old);
}

static int place(struct stream *s, unsigned index, uint64_t page,
                 const uint8_t *data, struct qstill_error *err)
{
    size_t in_chunk = page % RAMSET_CHUNK_PAGES;
    struct chunk *c;

    if (use_chunk(s, index, page / RAMSET_CHUNK_PAGES, err) < 0)
        return err->code;
    c = s->open[0];
    ramset_map_set(&c->have, in_chunk);
    ramset_map_clear(&c->zero, in_chunk);
    if (data)
        memcpy(c->data + in_chunk * RAMSET_PAGE, data, RAMSET_PAGE);
    else
        memset(c->data + in_chunk * RAMSET_PAGE, 0, RAMSET_PAGE);
    if (complete(c))
        return chunk_writer_put(s->writer, take_open(s, 0), err);
    return 0;
}

static int on_zero(void *user, unsigned index, uint64_t offset,
                   struct qstill_error *err)
{
    struct stream *s = user;
    uint64_t page = offset / RAMSET_PAGE;
    int i;

    if (note_seen(s, index, page, err) < 0)
        return err->code;
    if (test(s->pages[index].written, page)) {
        clear(s->pages[index].written, page);
        s->written_pages--;
        account(s, index, page, 0);
        return place(s, index, page, NULL, err);
    }
    /* A hole stays one; noted where the chunk is open, to close gaps. */
    i = find_open(s, index, page / RAMSET_CHUNK_PAGES);
    if (i < 0 || ramset_map_has(&s->open[i]->have, page % RAMSET_CHUNK_PAGES))
        return 0;
    ramset_map_set(&s->open[i]->zero, page % RAMSET_CHUNK_PAGES);
    if (complete(s->open[i]))
        return chunk_writer_put(s->writer, take_open(s, (unsigned)i), err);
    return 0;
}

static int on_page(void *user, unsigned index, uint64_t offset,
                   const uint8_t *data, struct qstill_error *err)
{
    struct stream *s = user;
    uint64_t page = offset / RAMSET_PAGE;

    capture_figures(s->capture)->sent_bytes += RAMSET_PAGE;
    if (zero_is(data, RAMSET_PAGE))
        return on_zero(user, index, offset, err);
    if (note_seen(s, index, page, err) < 0)
        return err->code;
    if (!test_and_set(s->pages[index].written, page))
        s->written_pages++;
    account(s, index, page, ramset_page_sum(data, page));
    return place(s, index, page, data, err);
}

/* -------------------------------------------------------------------- tail */

static int on_ram_done(void *user, struct qstill_error *err)
{
    struct stream *s = user;

    if (flush_open(s, err) < 0)
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
    .block = on_block,
    .blocks_done = on_blocks_done,
    .part = on_part,
    .page = on_page,
    .zero = on_zero,
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

static bool same_page(void *user, unsigned index, uint64_t page,
                      const uint8_t *data)
{
    struct stream *s = user;
    const struct page_state *p = &s->pages[index];
    bool zero = !data || zero_is(data, RAMSET_PAGE);

    if (zero || !test(p->written, page))
        return zero && !test(p->written, page);
    return p->sums[page] == ramset_page_sum(data, page);
}

static int take_page(void *user, unsigned index, uint64_t offset,
                     const uint8_t *data, struct qstill_error *err)
{
    return data ? on_page(user, index, offset, data, err)
                : on_zero(user, index, offset, err);
}

static int amend(struct stream *s, struct qstill_error *err)
{
    const struct capture_options *o = capture_get_options(s->capture);
    struct stream_amend a = {same_page, take_page, s};

    if (s->flavour != CAPTURE_PRECOPY || o->ram_count == 0)
        return 0;
    if (stream_amend(&a, capture_writer(s->capture), o->pid, o->ram,
                     o->ram_count, &capture_figures(s->capture)->amended_pages,
                     err) < 0)
        return err->code;
    return flush_open(s, err);
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
    for (size_t i = 0; i < s->block_count; i++) {
        free(s->pages[i].seen);
        free(s->pages[i].written);
        if (s->pages[i].sums)
            munmap(s->pages[i].sums, s->pages[i].sums_len);
    }
    free(s->pages);
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
