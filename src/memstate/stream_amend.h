/* SPDX-License-Identifier: MIT */
/*
 * What a migration stream has missed. QEMU's TCG loses a write now and then: a
 * vCPU that has looked up a page stores into it after the dirty bits were
 * taken, and nobody sends the page again. The guest is dead after such a
 * restore, QEMU's own as well. So the RAM of the process, which stands still
 * at a migration's end, is compared with what came.
 */
#ifndef QSTILL_MEMSTATE_STREAM_AMEND_H
#define QSTILL_MEMSTATE_STREAM_AMEND_H

#include "memstate/capture.h"

struct ramset_writer;

struct stream_amend {
    /* Whether the capture has this page with this content; NULL: zeros. */
    bool (*same)(void *user, unsigned index, uint64_t page,
                 const uint8_t *data);
    /* Takes it, else. */
    int (*take)(void *user, unsigned index, uint64_t offset,
                const uint8_t *data, struct qstill_error *err);
    void *user;
};

/* `index` is the block's in the writer; a source that is none of its blocks
 * is left out. *amended: pages that were taken. */
int stream_amend(const struct stream_amend *a, struct ramset_writer *w,
                 pid_t pid, const struct capture_source *ram, size_t count,
                 uint64_t *amended, struct qstill_error *err);

#endif
