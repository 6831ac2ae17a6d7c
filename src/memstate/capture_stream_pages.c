/* SPDX-License-Identifier: MIT */
/*
 * The pages of a migration stream, on their way into the file set.
 *
 * They gather in a few open chunks, so that most writes are of 1 MiB. A chunk
 * is written when it is complete or when its place is needed for another.
 *
 * A background snapshot sends each page at most once, so a second time is
 * damage. Precopy sends pages again; then the old sum is taken off, for which
 * each page's sum is kept (2 MiB per GiB of RAM), and a page that has become
 * zero is written as zeros.
 */
#include "capture_stream_impl.h"

#include <string.h>
#include <sys/mman.h>

#include "memstate/zero.h"

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

int stream_on_block(void *user, unsigned index, const char *id, uint64_t size,
                    struct qstill_error *err)
{
    struct stream *s = user;

    (void)index;
    if (ramset_add_block(capture_writer(s->capture), id, size, 0, NULL, err) <
        0)
        return err->code;
    return add_pages(s, size, err);
}

void stream_pages_fini(struct stream *s)
{
    for (size_t i = 0; i < s->block_count; i++) {
        free(s->pages[i].seen);
        free(s->pages[i].written);
        if (s->pages[i].sums)
            munmap(s->pages[i].sums, s->pages[i].sums_len);
    }
    free(s->pages);
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
    if (s->open_count == STREAM_OPEN_MAX &&
        chunk_writer_put(s->writer, take_open(s, STREAM_OPEN_MAX - 1), err) < 0)
        return err->code;
    if (chunk_writer_get(s->writer, index, number, &c, err) < 0)
        return err->code;
    put_first(s, c);
    return 0;
}

int stream_flush(struct stream *s, struct qstill_error *err)
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

int stream_on_zero(void *user, unsigned index, uint64_t offset,
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

int stream_on_page(void *user, unsigned index, uint64_t offset,
                   const uint8_t *data, struct qstill_error *err)
{
    struct stream *s = user;
    uint64_t page = offset / RAMSET_PAGE;

    capture_figures(s->capture)->sent_bytes += RAMSET_PAGE;
    if (zero_is(data, RAMSET_PAGE))
        return stream_on_zero(user, index, offset, err);
    if (note_seen(s, index, page, err) < 0)
        return err->code;
    if (!test_and_set(s->pages[index].written, page))
        s->written_pages++;
    account(s, index, page, ramset_page_sum(data, page));
    return place(s, index, page, data, err);
}

bool stream_same_page(void *user, unsigned index, uint64_t page,
                      const uint8_t *data)
{
    struct stream *s = user;
    const struct page_state *p = &s->pages[index];
    bool zero = !data || zero_is(data, RAMSET_PAGE);

    if (zero || !test(p->written, page))
        return zero && !test(p->written, page);
    return p->sums[page] == ramset_page_sum(data, page);
}
