/* SPDX-License-Identifier: MIT */
/*
 * The file `sums`: what is accepted is inside all limits and comes out of the
 * writer again, byte for byte. The file's own checksum is put right first, or
 * nothing would ever get past it.
 */
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "memstate/ramset_sums.h"

#define CHECK(x)                                                               \
    do {                                                                       \
        if (!(x))                                                              \
            abort();                                                           \
    } while (0)

static void check_set(const struct ramset *set)
{
    char name[RAMSET_NAME_SIZE];
    struct qstill_error err;
    uint64_t total = 0;

    CHECK(set->block_count <= RAMSET_BLOCKS_MAX);
    for (size_t i = 0; i < set->block_count; i++) {
        const struct ramset_block *b = &set->blocks[i];
        unsigned index;

        CHECK(b->size % RAMSET_PAGE == 0 && b->size <= RAMSET_BYTES_MAX);
        CHECK(ramset_file_name(b->id, name, &err) == 0);
        CHECK(strchr(name, '/') == NULL && strlen(name) < RAMSET_NAME_SIZE);
        CHECK(ramset_find(set, b->id, &index) == b && index == i);
        total += b->size;
    }
    CHECK(total == set->memory_bytes && total <= RAMSET_BYTES_MAX);
    CHECK(set->device_len <= RAMSET_DEVICE_MAX);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CLEANUP(buf_fini) struct buf in = BUF_INIT;
    CLEANUP(buf_fini) struct buf out = BUF_INIT;
    struct qstill_error err;
    struct ramset set;

    CHECK(buf_append(&in, data, size) == 0);
    if (size >= 8)
        put_le64(in.data + size - 8, sum_bytes(in.data, size - 8, 0));
    if (sums_parse(&set, in.data, in.len, &err) < 0)
        return 0;
    check_set(&set);
    CHECK(sums_emit(&set, &out, &err) == 0);
    CHECK(out.len == in.len && memcmp(out.data, in.data, in.len) == 0);
    sums_fini(&set);
    return 0;
}
