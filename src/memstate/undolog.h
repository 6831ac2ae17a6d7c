/* SPDX-License-Identifier: MIT */
/*
 * What a restore in place overwrites: pages of a process that stands still,
 * kept in a file so that this process or the next one can put them back.
 *
 *   slot i, at i * UNDOLOG_SLOT:
 *   le64 magic | le64 sum of the block's id | le64 page | le64 sum of the data
 *   4096 bytes: the page as it was
 *
 * A slot is written before its page is overwritten. Whoever is killed while
 * writing one leaves a slot without magic or with a wrong sum: its page was
 * not touched yet. A page may have several slots, all with the same bytes.
 */
#ifndef QSTILL_MEMSTATE_UNDOLOG_H
#define QSTILL_MEMSTATE_UNDOLOG_H

#include "memstate/capture.h"
#include "memstate/procmem.h"
#include "memstate/ramset.h"

#define UNDOLOG_HEAD 32u
#define UNDOLOG_SLOT (UNDOLOG_HEAD + RAMSET_PAGE)

struct undolog {
    int fd;        /* of an empty file, open for writing */
    uint64_t next; /* slot; by atomics only */
};

/* Keeps those of up to RAMSET_CHUNK_PAGES pages at `data` that are in `which`:
 * pages first_page... of block `id`. Any thread. */
int undolog_keep(struct undolog *log, const char *id, uint64_t first_page,
                 const uint8_t *data, size_t pages,
                 const struct ramset_map *which, struct qstill_error *err);

/* Calls `put` with each whole slot: the page as it was of the block whose id
 * has this sum (undolog_id_sum). */
typedef int undolog_put_fn(void *user, uint64_t id, uint64_t page,
                           const uint8_t *data, struct qstill_error *err);
int undolog_each(int fd, undolog_put_fn *put, void *user,
                 struct qstill_error *err);
uint64_t undolog_id_sum(const char *id);

/* Puts all pages of the file back. A slot of a block that is not among
 * `blocks`, or beyond its size, is CORRUPT. Right to run again. */
int undolog_apply(int fd, struct procmem *mem,
                  const struct capture_source *blocks, size_t count,
                  uint64_t *pages, struct qstill_error *err);

#endif
