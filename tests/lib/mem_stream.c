/* SPDX-License-Identifier: MIT */
#include "mem_stream.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static unsigned digit(char c)
{
    return c <= '9' ? (unsigned)(c - '0') : (unsigned)(c - 'a' + 10);
}

void mem_stream_hex(struct buf *b, const char *hex)
{
    for (; *hex; hex++) {
        if (*hex == ' ')
            continue;
        buf_append_u8(b, (uint8_t)(digit(hex[0]) << 4 | digit(hex[1])));
        hex++;
    }
}

void mem_stream_start(struct buf *b, uint64_t pages)
{
    stream_put_head(b, "pc-q35-7.2");
    stream_begin_ram(b, (pages + 2) * 4096);
    stream_put_block(b, "pc.ram", pages * 4096);
    stream_put_block(b, "rom", 2 * 4096);
    stream_end_section(b, true);
}

void mem_stream_page(struct buf *b, uint64_t page, uint8_t fill, const char *id)
{
    uint8_t data[4096];

    stream_put_record(b, page * 4096, fill ? STREAM_RAM_PAGE : STREAM_RAM_ZERO,
                      id);
    memset(data, fill, sizeof(data));
    buf_append(b, data, fill ? sizeof(data) : 1);
}

void mem_stream_part(struct buf *b)
{
    stream_begin_section(b, STREAM_PART);
    mem_stream_page(b, 1, 0x11, "pc.ram");
    mem_stream_page(b, 2, 0, NULL);
    mem_stream_page(b, 0, 0x22, "rom");
    stream_end_section(b, true);
}

void mem_stream_end(struct buf *b)
{
    stream_begin_section(b, STREAM_END);
    stream_end_section(b, true);
}

void mem_stream_devices(struct buf *b)
{
    mem_stream_hex(b, "04 00000000 05 74696d6572 00000000 00000002 0123456789");
    mem_stream_hex(b, "7e 00000000");
    mem_stream_hex(b, "04 00000003 03 637075 00000000 0000000c ff00ff");
    mem_stream_hex(b, "7e 00000003 00");
    stream_put_empty_vmdescription(b);
}

/* ----------------------------------------------------------------- events */

static int log_block(void *user, unsigned index, const char *id, uint64_t size,
                     struct qstill_error *err)
{
    (void)err;
    return buf_printf(user, "block %u %s %llu\n", index, id,
                      (unsigned long long)size);
}

static int log_blocks_done(void *user, struct qstill_error *err)
{
    (void)err;
    return buf_puts(user, "blocks done\n");
}

static int log_part(void *user, struct qstill_error *err)
{
    (void)err;
    return buf_puts(user, "part\n");
}

static int log_page(void *user, unsigned index, uint64_t offset,
                    const uint8_t *data, struct qstill_error *err)
{
    (void)err;
    for (size_t i = 1; i < 4096; i++)
        if (data[i] != data[0])
            return buf_printf(user, "page %u %llu mixed\n", index,
                              (unsigned long long)offset);
    return buf_printf(user, "page %u %llu %02x\n", index,
                      (unsigned long long)offset, data[0]);
}

static int log_zero(void *user, unsigned index, uint64_t offset,
                    struct qstill_error *err)
{
    (void)err;
    return buf_printf(user, "zero %u %llu\n", index,
                      (unsigned long long)offset);
}

static int log_ram_done(void *user, struct qstill_error *err)
{
    (void)err;
    return buf_puts(user, "ram done\n");
}

/* One line for all of the tail, whatever the pieces. */
static int log_tail(void *user, const uint8_t *data, size_t len,
                    struct qstill_error *err)
{
    (void)err;
    for (size_t i = 0; i < len; i++)
        if (buf_printf(user, "%02x", data[i]) < 0)
            return -1;
    return 0;
}

const struct stream_events mem_stream_log_events = {
    .block = log_block,
    .blocks_done = log_blocks_done,
    .part = log_part,
    .page = log_page,
    .zero = log_zero,
    .ram_done = log_ram_done,
    .tail = log_tail,
};

int mem_stream_feed(struct stream_parser *p, const struct buf *data,
                    size_t piece, struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf pending = BUF_INIT;
    size_t used;

    for (size_t off = 0; off < data->len; off += piece) {
        size_t n = data->len - off < piece ? data->len - off : piece;

        buf_append(&pending, data->data + off, n);
        if (stream_parser_feed(p, pending.data, pending.len, &used, err) < 0)
            return err->code;
        buf_consume(&pending, used);
        assert_true(pending.len < STREAM_ELEMENT_MAX);
    }
    return stream_parser_end(p, pending.len, err);
}
