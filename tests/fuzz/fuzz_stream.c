/* SPDX-License-Identifier: MIT */
/*
 * The migration stream's parser: whatever comes in, the events keep their
 * promises, and pieces of any size tell the same as the whole. First byte:
 * flavour (bit 0) and size of the pieces.
 */
#include <stdlib.h>
#include <string.h>

#include "memstate/devstate.h"
#include "memstate/stream_parse.h"

#define CHECK(x)                                                               \
    do {                                                                       \
        if (!(x))                                                              \
            abort();                                                           \
    } while (0)

struct told {
    uint64_t sizes[1024];
    unsigned blocks;
    bool listed;
    bool done;
    uint64_t digest; /* of all events in order */
    struct buf tail;
};

static void note(struct told *t, uint64_t v)
{
    t->digest = (t->digest ^ v) * 0x9e3779b97f4a7c15u;
}

static int on_block(void *user, unsigned index, const char *id, uint64_t size,
                    struct qstill_error *err)
{
    struct told *t = user;

    (void)err;
    CHECK(index == t->blocks && index < 1024 && !t->listed);
    CHECK(id[0] && strlen(id) <= 255 && size % 4096 == 0);
    t->sizes[t->blocks++] = size;
    note(t, size);
    return 0;
}

static int on_blocks_done(void *user, struct qstill_error *err)
{
    struct told *t = user;

    (void)err;
    CHECK(!t->listed);
    t->listed = true;
    return 0;
}

static int on_part(void *user, struct qstill_error *err)
{
    struct told *t = user;

    (void)err;
    CHECK(t->listed && !t->done);
    note(t, 1);
    return 0;
}

static int on_page(void *user, unsigned index, uint64_t offset,
                   const uint8_t *data, struct qstill_error *err)
{
    struct told *t = user;

    (void)err;
    CHECK(t->listed && !t->done && index < t->blocks);
    CHECK(offset % 4096 == 0 && offset < t->sizes[index]);
    note(t, offset + index);
    for (size_t i = 0; i < 4096; i += 512)
        note(t, data[i] + data[i + 511]);
    return 0;
}

static int on_zero(void *user, unsigned index, uint64_t offset,
                   struct qstill_error *err)
{
    struct told *t = user;

    (void)err;
    CHECK(t->listed && !t->done && index < t->blocks);
    CHECK(offset % 4096 == 0 && offset < t->sizes[index]);
    note(t, ~(offset + index));
    return 0;
}

static int on_ram_done(void *user, struct qstill_error *err)
{
    struct told *t = user;

    (void)err;
    CHECK(t->listed && !t->done);
    t->done = true;
    return 0;
}

static int on_tail(void *user, const uint8_t *data, size_t len,
                   struct qstill_error *err)
{
    struct told *t = user;

    (void)err;
    CHECK(t->done && len > 0);
    return buf_append(&t->tail, data, len);
}

static const struct stream_events events = {
    on_block, on_blocks_done, on_part, on_page, on_zero, on_ram_done, on_tail,
};

static int run(const uint8_t *data, size_t len, size_t piece,
               enum stream_flavour flavour, struct told *t,
               struct qstill_error *err)
{
    CLEANUP(stream_parser_freep) struct stream_parser *p = NULL;
    CLEANUP(buf_fini) struct buf pending = BUF_INIT;
    size_t used = 0;

    memset(t, 0, sizeof(*t));
    CHECK(stream_parser_new(&p, flavour, &events, t, err) == 0);
    for (size_t off = 0; off < len; off += piece) {
        CHECK(buf_append(&pending, data + off,
                         len - off < piece ? len - off : piece) == 0);
        if (stream_parser_feed(p, pending.data, pending.len, &used, err) < 0)
            return err->code;
        CHECK(used <= pending.len);
        buf_consume(&pending, used);
        CHECK(pending.len < STREAM_ELEMENT_MAX);
    }
    CHECK(strlen(stream_parser_machine(p)) <= STREAM_NAME_MAX);
    CHECK(stream_parser_config(p)->len <= STREAM_CONFIG_MAX);
    return stream_parser_end(p, pending.len, err);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct told a, b;
    struct qstill_error err_a, err_b;
    struct devstate d;
    enum stream_flavour flavour;
    int rc_a, rc_b;

    if (size < 1)
        return 0;
    flavour = data[0] & 1 ? STREAM_PRECOPY : STREAM_BACKGROUND;
    rc_a = run(data + 1, size - 1, size, flavour, &a, &err_a);
    rc_b = run(data + 1, size - 1, 1 + data[0] / 2u, flavour, &b, &err_b);
    CHECK(rc_a == rc_b && a.digest == b.digest && a.blocks == b.blocks);
    CHECK(rc_a == 0 || strcmp(err_a.message, err_b.message) == 0);
    CHECK(a.tail.len == b.tail.len);
    CHECK(a.tail.len == 0 || memcmp(a.tail.data, b.tail.data, a.tail.len) == 0);
    if (devstate_parse(&d, data, size, &err_a) == 0)
        CHECK(d.sections_len <= size && data[d.sections_len - 1] == 0);
    buf_fini(&a.tail);
    buf_fini(&b.tail);
    return 0;
}
