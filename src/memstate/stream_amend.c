/* SPDX-License-Identifier: MIT */
#include "memstate/stream_amend.h"

#include <string.h>

#include "base/buf.h"
#include "memstate/procmem.h"
#include "memstate/regions.h"
#include "memstate/vmread.h"

static bool find_block(struct ramset_writer *w, size_t blocks,
                       const struct capture_source *ram, unsigned *index)
{
    for (unsigned i = 0; i < blocks; i++) {
        const struct ramset_block *b = ramset_writer_block(w, i);

        if (b->size == ram->size && strcmp(b->id, ram->id) == 0) {
            *index = i;
            return true;
        }
    }
    return false;
}

static int amend_chunk(const struct stream_amend *a, unsigned index,
                       uint64_t off, const uint8_t *data, size_t len,
                       uint64_t *amended, struct qstill_error *err)
{
    for (size_t at = 0; at < len; at += RAMSET_PAGE) {
        const uint8_t *page = data ? data + at : NULL;

        if (a->same(a->user, index, (off + at) / RAMSET_PAGE, page))
            continue;
        if (a->take(a->user, index, off + at, page, err) < 0)
            return err->code;
        (*amended)++;
    }
    return 0;
}

static int amend_block(const struct stream_amend *a, unsigned index,
                       const struct vmread *v, uint64_t size, uint8_t *data,
                       uint64_t *amended, struct qstill_error *err)
{
    for (uint64_t off = 0; off < size; off += RAMSET_CHUNK) {
        size_t len = size - off < RAMSET_CHUNK ? (size_t)(size - off)
                                               : (size_t)RAMSET_CHUNK;
        bool zero;

        if (vmread_chunk(v, off, data, len, &zero, err) < 0 ||
            amend_chunk(a, index, off, zero ? NULL : data, len, amended, err) <
                0)
            return err->code;
    }
    return 0;
}

int stream_amend(const struct stream_amend *a, struct ramset_writer *w,
                 pid_t pid, const struct capture_source *ram, size_t count,
                 uint64_t *amended, struct qstill_error *err)
{
    CLEANUP(procmem_closep) struct procmem *mem = NULL;
    CLEANUP(buf_fini) struct buf maps = BUF_INIT;
    CLEANUP(freep) uint8_t *data = malloc(RAMSET_CHUNK);
    size_t blocks = ramset_writer_blocks(w);

    if (!data)
        return err_nomem(err);
    if (procmem_open(&mem, pid, err) < 0 || regions_read(pid, &maps, err) < 0)
        return err->code;
    for (size_t i = 0; i < count && err->code == 0; i++) {
        struct vmread v;
        unsigned index;

        if (!find_block(w, blocks, &ram[i], &index))
            continue;
        vmread_open(&v, mem, &maps, ram[i].hva, ram[i].size);
        amend_block(a, index, &v, ram[i].size, data, amended, err);
        vmread_close(&v);
    }
    return err->code < 0 ? err_wrap(err, "comparing with the VM's RAM") : 0;
}
