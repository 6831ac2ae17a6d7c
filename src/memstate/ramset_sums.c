/* SPDX-License-Identifier: MIT */
/*
 * The bytes of `sums`, to and fro. The reader believes nothing: each length is
 * checked against what is left before it is used, and the checksum of the
 * whole comes first, so that chance damage is named as such.
 */
#include "ramset_sums.h"

#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "memstate/ramset_layout.h"

static int append_le64(struct buf *b, uint64_t v)
{
    uint8_t raw[8];

    put_le64(raw, v);
    return buf_append(b, raw, sizeof(raw));
}

static int emit_block(const struct ramset_block *block, struct buf *b)
{
    static const uint8_t zeros[8];
    size_t idlen = strlen(block->id);
    size_t pad = (size_t)round_up_u64(idlen, 8) - idlen;

    if (append_le64(b, block->size) < 0 ||
        append_le64(b, block->page_size) < 0 || append_le64(b, idlen) < 0 ||
        buf_append(b, block->id, idlen) < 0 || buf_append(b, zeros, pad) < 0)
        return -1;
    return 0;
}

static int emit_sums(const struct ramset_block *block, struct buf *b)
{
    if (buf_reserve(b, block->chunks * 8) < 0)
        return -1;
    for (size_t i = 0; i < block->chunks; i++)
        if (append_le64(b, block->sums[i]) < 0)
            return -1;
    return 0;
}

static int emit_all(const struct ramset *set, struct buf *b)
{
    if (buf_puts(b, SUMS_MAGIC) < 0 || append_le64(b, SUMS_VERSION) < 0 ||
        append_le64(b, 0) < 0 || append_le64(b, set->block_count) < 0 ||
        append_le64(b, set->device_len) < 0 ||
        append_le64(b, set->device_sum) < 0 ||
        append_le64(b, set->memory_bytes) < 0 || append_le64(b, 0) < 0)
        return -1;
    for (size_t i = 0; i < set->block_count; i++)
        if (emit_block(&set->blocks[i], b) < 0)
            return -1;
    for (size_t i = 0; i < set->block_count; i++)
        if (emit_sums(&set->blocks[i], b) < 0)
            return -1;
    put_le64(b->data + SUMS_OFF_LENGTH, b->len + SUMS_SELF);
    return append_le64(b, sum_bytes(b->data, b->len, 0));
}

int sums_emit(const struct ramset *set, struct buf *out,
              struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf b = BUF_INIT;

    if (emit_all(set, &b) < 0 || buf_append(out, b.data, b.len) < 0)
        return err_nomem(err);
    return 0;
}

/* ------------------------------------------------------------------ parse */

struct cursor {
    const uint8_t *data;
    size_t left;
};

static int take_le64(struct cursor *c, uint64_t *out)
{
    if (c->left < 8)
        return -1;
    *out = get_le64(c->data);
    c->data += 8;
    c->left -= 8;
    return 0;
}

static int check_frame(const uint8_t *data, size_t len,
                       struct qstill_error *err)
{
    if (len < SUMS_HEADER + SUMS_SELF || memcmp(data, SUMS_MAGIC, 8) != 0)
        return err_set(err, QSTILL_E_CORRUPT,
                       "this is no file of checksums (%zu bytes)", len);
    if (get_le64(data + SUMS_OFF_VERSION) != SUMS_VERSION)
        return err_set(err, QSTILL_E_CORRUPT,
                       "version %llu of the checksums is not known here",
                       (unsigned long long)get_le64(data + SUMS_OFF_VERSION));
    if (get_le64(data + SUMS_OFF_LENGTH) != len)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the checksums are %zu bytes long, but say %llu", len,
                       (unsigned long long)get_le64(data + SUMS_OFF_LENGTH));
    if (get_le64(data + len - SUMS_SELF) != sum_bytes(data, len - SUMS_SELF, 0))
        return err_set(err, QSTILL_E_CORRUPT,
                       "the checksums do not match their own checksum");
    if (get_le64(data + SUMS_OFF_FLAGS) != 0)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the checksums have flags that are not known here");
    return 0;
}

int sums_check_block(const struct ramset *set, const char *id, uint64_t size,
                     struct qstill_error *err)
{
    uint64_t total;

    if (set->block_count >= RAMSET_BLOCKS_MAX)
        return err_set(err, QSTILL_E_CORRUPT, "more than %u RAM blocks",
                       RAMSET_BLOCKS_MAX);
    if (size % RAMSET_PAGE != 0)
        return err_set(err, QSTILL_E_CORRUPT,
                       "RAM block '%s' has %llu bytes, which are no whole "
                       "pages",
                       id, (unsigned long long)size);
    if (add_u64(set->memory_bytes, size, &total) || total > RAMSET_BYTES_MAX)
        return err_set(err, QSTILL_E_CORRUPT,
                       "RAM block '%s' of %llu bytes makes more than %llu "
                       "bytes of RAM",
                       id, (unsigned long long)size,
                       (unsigned long long)RAMSET_BYTES_MAX);
    if (ramset_find(set, id, NULL))
        return err_set(err, QSTILL_E_CORRUPT, "RAM block '%s' is named twice",
                       id);
    return 0;
}

/* Text without NUL, then zeros up to a multiple of 8. */
static bool is_id(const struct cursor *c, uint64_t len)
{
    size_t padded = (size_t)round_up_u64(len, 8);

    if (c->left < padded || memchr(c->data, 0, (size_t)len))
        return false;
    for (size_t i = (size_t)len; i < padded; i++)
        if (c->data[i] != 0)
            return false;
    return true;
}

static int parse_id(struct cursor *c, char **out, struct qstill_error *err)
{
    uint64_t len;

    if (take_le64(c, &len) < 0 || len == 0 || len > RAMSET_ID_MAX ||
        !is_id(c, len))
        return err_set(err, QSTILL_E_CORRUPT,
                       "the checksums have a bad RAM block id");
    *out = strndup((const char *)c->data, (size_t)len);
    if (!*out)
        return err_nomem(err);
    c->data += round_up_u64(len, 8);
    c->left -= (size_t)round_up_u64(len, 8);
    return 0;
}

static int parse_block(struct ramset *set, struct cursor *c,
                       struct qstill_error *err)
{
    CLEANUP(freep) char *id = NULL;
    struct ramset_block *block = &set->blocks[set->block_count];
    uint64_t size, page;

    if (take_le64(c, &size) < 0 || take_le64(c, &page) < 0 || page > UINT32_MAX)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the checksums have a bad RAM block");
    if (parse_id(c, &id, err) < 0 || sums_check_block(set, id, size, err) < 0)
        return err->code;
    *block = (struct ramset_block){
        .id = take_ptr(&id),
        .size = size,
        .page_size = (uint32_t)page,
        .chunks = (size_t)div_up_u64(size, RAMSET_CHUNK),
    };
    set->block_count++;
    set->memory_bytes += size;
    return 0;
}

static int parse_sums(struct ramset_block *block, struct cursor *c,
                      struct qstill_error *err)
{
    if (c->left / 8 < block->chunks)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the checksums end within RAM block '%s'", block->id);
    block->sums = calloc(block->chunks ? block->chunks : 1, 8);
    if (!block->sums)
        return err_nomem(err);
    for (size_t i = 0; i < block->chunks; i++)
        if (take_le64(c, &block->sums[i]) < 0)
            return err_set(err, QSTILL_E_CORRUPT, "the checksums end early");
    return 0;
}

static int parse_blocks(struct ramset *set, const uint8_t *data, size_t len,
                        struct qstill_error *err)
{
    struct cursor c = {data + SUMS_HEADER, len - SUMS_HEADER - SUMS_SELF};
    uint64_t count = get_le64(data + SUMS_OFF_BLOCKS);

    if (count > RAMSET_BLOCKS_MAX)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the checksums list %llu RAM blocks, more than %u",
                       (unsigned long long)count, RAMSET_BLOCKS_MAX);
    set->blocks = calloc(count ? count : 1, sizeof(*set->blocks));
    if (!set->blocks)
        return err_nomem(err);
    while (set->block_count < count)
        if (parse_block(set, &c, err) < 0)
            return err->code;
    for (size_t i = 0; i < set->block_count; i++)
        if (parse_sums(&set->blocks[i], &c, err) < 0)
            return err->code;
    if (c.left != 0)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the checksums are followed by %zu bytes too many",
                       c.left);
    return 0;
}

int sums_parse(struct ramset *set, const uint8_t *data, size_t len,
               struct qstill_error *err)
{
    struct ramset s = {.dirfd = -1};

    if (check_frame(data, len, err) < 0)
        return err->code;
    s.device_len = get_le64(data + SUMS_OFF_DEVICE);
    s.device_sum = get_le64(data + SUMS_OFF_DEVSUM);
    if (s.device_len > RAMSET_DEVICE_MAX) {
        err_set(err, QSTILL_E_CORRUPT,
                "the checksums tell of a device state of %llu bytes",
                (unsigned long long)s.device_len);
    } else if (parse_blocks(&s, data, len, err) == 0) {
        if (s.memory_bytes == get_le64(data + SUMS_OFF_TOTAL)) {
            *set = s;
            return 0;
        }
        err_set(err, QSTILL_E_CORRUPT,
                "the checksums' RAM blocks do not add up to their total");
    }
    sums_fini(&s);
    return err->code;
}

void sums_fini(struct ramset *set)
{
    for (size_t i = 0; i < set->block_count; i++) {
        free(set->blocks[i].id);
        free(set->blocks[i].sums);
    }
    free(set->blocks);
    set->blocks = NULL;
    set->block_count = 0;
}
