/* SPDX-License-Identifier: MIT */
#include "stream_write.h"

#include <string.h>

#include "base/bytes.h"

static int put_str8(struct buf *b, const char *s)
{
    size_t len = strlen(s);

    if (len > UINT8_MAX || buf_append_u8(b, (uint8_t)len) < 0)
        return -1;
    return buf_append(b, s, len);
}

int stream_put_head(struct buf *b, const char *machine)
{
    if (buf_append_be32(b, STREAM_MAGIC) < 0 ||
        buf_append_be32(b, STREAM_VERSION) < 0 ||
        buf_append_u8(b, STREAM_CONFIGURATION) < 0 ||
        buf_append_be32(b, (uint32_t)strlen(machine)) < 0)
        return -1;
    return buf_puts(b, machine);
}

int stream_begin_section(struct buf *b, enum stream_item part_or_end)
{
    if (buf_append_u8(b, (uint8_t)part_or_end) < 0)
        return -1;
    return buf_append_be32(b, STREAM_SECTION_ID);
}

int stream_begin_ram(struct buf *b, uint64_t total)
{
    if (stream_begin_section(b, STREAM_START) < 0 ||
        put_str8(b, STREAM_RAM_ID) < 0 || buf_append_be32(b, 0) < 0 ||
        buf_append_be32(b, STREAM_RAM_VERSION) < 0)
        return -1;
    return buf_append_be64(b, total | STREAM_RAM_MEM_SIZE);
}

int stream_put_block(struct buf *b, const char *id, uint64_t size)
{
    if (put_str8(b, id) < 0)
        return -1;
    return buf_append_be64(b, size);
}

int stream_end_section(struct buf *b, bool footers)
{
    if (buf_append_be64(b, STREAM_RAM_EOS) < 0)
        return -1;
    if (!footers)
        return 0;
    if (buf_append_u8(b, STREAM_FOOTER) < 0)
        return -1;
    return buf_append_be32(b, STREAM_SECTION_ID);
}

void stream_emit_record(uint8_t raw[STREAM_RECORD_HEAD], uint64_t offset,
                        enum stream_flag kind)
{
    put_be64(raw, offset | STREAM_RAM_CONTINUE | (uint64_t)kind);
}

int stream_put_record(struct buf *b, uint64_t offset, enum stream_flag kind,
                      const char *id)
{
    if (!id)
        return buf_append_be64(b,
                               offset | STREAM_RAM_CONTINUE | (uint64_t)kind);
    if (buf_append_be64(b, offset | (uint64_t)kind) < 0)
        return -1;
    return put_str8(b, id);
}

int stream_put_empty_vmdescription(struct buf *b)
{
    if (buf_append_u8(b, STREAM_VMDESCRIPTION) < 0 || buf_append_be32(b, 2) < 0)
        return -1;
    return buf_puts(b, "{}");
}
