/* SPDX-License-Identifier: MIT */
/*
 * The file set of a captured memory, in a directory of its own:
 *
 *   NAME.ram       one per RAM block: raw, sparse, page i at i * 4096, as long
 *                  as the block. NAME is the block's id, see ramset_file_name
 *   device.state   QEVM magic and version, FULL sections, EOF, and perhaps a
 *                  vmdescription: see devstate.h (a VMM of one's own: any
 *                  bytes)
 *   sums           the list of blocks and the checksums: see ramset_layout.h
 *
 * The writer makes all files 0600 and O_EXCL and follows no symbolic link;
 * ramset_commit() makes them durable and writes `sums` last, so a directory
 * with a good `sums` is whole. The reader trusts nothing that it reads.
 *
 * Sum of a chunk (1 MiB of a block, the last one may be shorter) = the sum
 * modulo 2^64, over its pages that are not zero, of
 * XXH3_64(page, seed = page index in the block + 1). It does not depend on
 * the order in which pages come, a zero page counts as a hole does, and a
 * page at a wrong place is found.
 */
#ifndef QSTILL_MEMSTATE_RAMSET_H
#define QSTILL_MEMSTATE_RAMSET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"
#include "base/io.h"
#include "base/sum.h"

#define RAMSET_PAGE        4096u
#define RAMSET_CHUNK       (1u << 20)
#define RAMSET_CHUNK_PAGES (RAMSET_CHUNK / RAMSET_PAGE) /* 256 */

#define RAMSET_SUMS_NAME   "sums"
#define RAMSET_DEVICE_NAME "device.state"

/* Limits on what others tell us. A PC has about 20 blocks; 1024 leaves room
 * for 255 hot-plugged DIMMs and an option ROM per PCI function. */
#define RAMSET_BLOCKS_MAX 1024u
/* An id is a str8 in the migration stream. */
#define RAMSET_ID_MAX 255u
/* 16 TiB of RAM: 2^24 chunks, so `sums` is at most 128 MiB and its blocks. */
#define RAMSET_BYTES_MAX ((uint64_t)1 << 44)
/* virtio-gpu alone may keep 256 MiB of pixels in its state; 1 GiB is plenty. */
#define RAMSET_DEVICE_MAX ((uint64_t)1 << 30)
/* NAME_MAX and a NUL. */
#define RAMSET_NAME_SIZE 256u

struct ramset_block {
    char *id;
    uint64_t size;      /* bytes, a multiple of RAMSET_PAGE */
    uint32_t page_size; /* of the memory behind it: 4096, 2 MiB, ...; 0 when
                           the capture could not know */
    size_t chunks;      /* div_up(size, RAMSET_CHUNK) */
    uint64_t *sums;     /* one per chunk */
};

/*
 * The file of block `id`: bytes outside [A-Za-z0-9._-] as %XX, then ".ram"
 * ("/rom@etc/acpi/tables" -> "%2From%40etc%2Facpi%2Ftables.ram"). An id whose
 * form would be too long for a file name keeps its beginning, followed by "~"
 * and its checksum. USAGE for an id that is empty or too long.
 */
int ramset_file_name(const char *id, char out[RAMSET_NAME_SIZE],
                     struct qstill_error *err);
/* Whether it may be the name of a file of some file set. */
bool ramset_is_file_name(const char *name);

/* ------------------------------------------------------- pages and chunks */

/* Which pages of a chunk: bit i of word i / 64. */
struct ramset_map {
    uint64_t bits[RAMSET_CHUNK_PAGES / 64];
};

static inline void ramset_map_set(struct ramset_map *m, size_t page)
{
    m->bits[page / 64] |= (uint64_t)1 << (page % 64);
}

static inline void ramset_map_clear(struct ramset_map *m, size_t page)
{
    m->bits[page / 64] &= ~((uint64_t)1 << (page % 64));
}

static inline bool ramset_map_has(const struct ramset_map *m, size_t page)
{
    return m->bits[page / 64] >> (page % 64) & 1;
}

static inline size_t ramset_map_count(const struct ramset_map *m)
{
    size_t n = 0;

    for (size_t i = 0; i < sizeof(m->bits) / sizeof(m->bits[0]); i++)
        n += (size_t)__builtin_popcountll(m->bits[i]);
    return n;
}

static inline uint64_t ramset_page_sum(const void *page, uint64_t index)
{
    return sum_bytes(page, RAMSET_PAGE, index + 1);
}

/*
 * Looks at up to RAMSET_CHUNK_PAGES pages that lie at `data` (page aligned)
 * and are the pages first_page... of a block: sets *nonzero to those that are
 * not zero (bit 0 = the first one given) and returns the sum of these.
 */
uint64_t ramset_scan(const void *data, uint64_t first_page, size_t pages,
                     struct ramset_map *nonzero);

/*
 * The next run of set bits at or behind *at and below `pages`: its first page
 * in *first, its length as result, *at behind it; 0 when there is none.
 */
size_t ramset_map_run(const struct ramset_map *m, size_t pages, size_t *at,
                      size_t *first);

/*
 * Sets the bits of short gaps (RAMSET_GAP pages and less) between set bits:
 * one larger write is cheaper than a hole of a few pages. Only for buffers
 * whose gaps hold zeros.
 */
#define RAMSET_GAP 4u
void ramset_map_close_gaps(struct ramset_map *m, size_t pages);

/* ------------------------------------------------------------------ write */

struct ramset_writer;

enum ramset_cache {
    RAMSET_DIRECT, /* O_DIRECT where the filesystem takes it */
    RAMSET_CACHED  /* through the page cache */
};

/* `dirfd` is duplicated; `io` NULL is the kernel. The directory must hold none
 * of the set's files. */
int ramset_create(struct ramset_writer **out, const struct io *io, int dirfd,
                  enum ramset_cache cache, struct qstill_error *err);

/* Adds a block and makes its file, as a hole. All blocks are added before the
 * first page is written; USAGE or CORRUPT when a limit is passed or the id is
 * there already. The index is the order of adding. */
int ramset_add_block(struct ramset_writer *w, const char *id, uint64_t size,
                     uint32_t page_size, unsigned *index,
                     struct qstill_error *err);

size_t ramset_writer_blocks(const struct ramset_writer *w);
/* Belongs to the writer; the pointer stays good until it is freed. */
const struct ramset_block *ramset_writer_block(const struct ramset_writer *w,
                                               unsigned index);
/* Where the block's pages are to be written by the caller, aligned to
 * RAMSET_PAGE in memory, offset and length (O_DIRECT). */
int ramset_writer_fd(const struct ramset_writer *w, unsigned index);

/* Adds to a chunk's sum; any thread. A page that is replaced: add
 * new_sum - old_sum. */
void ramset_sum_add(struct ramset_writer *w, unsigned index, uint64_t chunk,
                    uint64_t sum);

/* Writes device.state: `len` bytes in pieces, in order, no other calls for
 * it between. CORRUPT past RAMSET_DEVICE_MAX. */
int ramset_device_append(struct ramset_writer *w, const void *data, size_t len,
                         struct qstill_error *err);

/* Makes all files durable, writes `sums`, syncs the directory. To be called
 * once, when every write has returned. */
int ramset_commit(struct ramset_writer *w, struct qstill_error *err);

/* Disk blocks used by the files so far, in bytes. */
uint64_t ramset_writer_used(const struct ramset_writer *w);
/* Length of device.state. */
uint64_t ramset_writer_device(const struct ramset_writer *w);
/* Takes a commit back: the files will be removed by ramset_writer_free(). */
void ramset_discard(struct ramset_writer *w);

/* Without a commit the files that were made are removed. NULL is fine. */
void ramset_writer_free(struct ramset_writer *w);
void ramset_writer_freep(struct ramset_writer **w);

/* ------------------------------------------------------------------- read */

struct ramset {
    int dirfd;
    size_t block_count;
    struct ramset_block *blocks; /* with their sums, from `sums` */
    uint64_t memory_bytes;       /* sum of the sizes */
    uint64_t device_len;
    uint64_t device_sum;
};

/*
 * Reads and checks `sums`, and that each file is there with its length; no
 * content is read. `dirfd` is duplicated. CORRUPT names what is damaged or
 * missing.
 */
int ramset_open(struct ramset **out, int dirfd, struct qstill_error *err);
void ramset_close(struct ramset *set); /* NULL is fine */
void ramset_closep(struct ramset **set);

/* NULL when there is no such block. */
const struct ramset_block *ramset_find(const struct ramset *set, const char *id,
                                       unsigned *index);
/* Opens the block's file for reading, checks its length again. */
int ramset_block_open(const struct ramset *set, unsigned index,
                      enum ramset_cache cache, int *fd,
                      struct qstill_error *err);
/* device.state into b (appended), its checksum checked; what it must look
 * like only its reader knows. */
int ramset_device_read(const struct ramset *set, struct buf *b,
                       struct qstill_error *err);

#endif
