/* SPDX-License-Identifier: MIT */
/*
 * A restore: a thread that writes a migration stream for `-incoming` from a
 * file set (ramset.h): header, configuration, the list of RAM blocks, pages,
 * device sections, EOF, vmdescription. Chunks are checked against their sums
 * on the way: a wrong one ends the stream in front of the device state, so
 * that QEMU refuses it, and restore_finish() names the place.
 */
#ifndef QSTILL_MEMSTATE_RESTORE_H
#define QSTILL_MEMSTATE_RESTORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"
#include "memstate/ramset.h"

/* Pages of a block that travel whatever the flavour: an in-place restore
 * sends what the machine reset writes into RAM. */
struct restore_range {
    const char *id;
    uint64_t offset; /* multiples of 4096, inside the block */
    uint64_t length;
};

/*
 * Which pages travel. Small blocks (ROMs, vram, firmware tables: at most
 * RESTORE_SMALL_MAX bytes) are sent with their zero pages, since QEMU fills
 * some of them when it starts.
 */
enum restore_pages {
    RESTORE_ALL,      /* eager: every block */
    RESTORE_UNMAPPED, /* mapped: all but the blocks named in `mapped` */
    RESTORE_LISTED    /* in place: only `ranges` */
};
#define RESTORE_SMALL_MAX ((uint64_t)64 << 20)

enum restore_zeros {
    RESTORE_SKIP_ZEROS, /* the target's RAM is fresh, so zero already */
    RESTORE_SEND_ZEROS  /* it may not be: file or shared memory */
};

struct restore_options {
    const struct ramset *set; /* stays open until restore_close */
    const char *machine;      /* versioned machine type, "pc-q35-7.2" */
    enum restore_pages pages;
    enum restore_zeros zeros;
    const char *const *mapped; /* ids; for RESTORE_UNMAPPED */
    size_t mapped_count;
    const struct restore_range *ranges;
    size_t range_count;
    uint64_t bwlimit;        /* bytes per second; 0: none */
    enum ramset_cache cache; /* RAMSET_DIRECT by default */
};

struct restore;

/*
 * Starts to write into `fd` (a pipe or socket whose other end QEMU has got;
 * taken over, on failure too; closed when the stream is complete or has
 * failed). Options are copied, but for the set.
 */
int restore_open(struct restore **out, int fd,
                 const struct restore_options *options,
                 struct qstill_error *err);

struct restore_status {
    bool complete; /* done or failed: call restore_finish() */
    uint64_t bytes_done;
    uint64_t bytes_total; /* of guest RAM that is looked at */
};

/* Readable when complete has become true. */
int restore_fd(const struct restore *r);
void restore_poll(struct restore *r, struct restore_status *status);

struct restore_result {
    uint64_t read_bytes;   /* from the RAM files */
    uint64_t sent_bytes;   /* page data sent */
    uint64_t stream_bytes; /* the whole stream */
};

/* Valid once complete: the result or the error. UNREACHABLE when QEMU closed
 * its end early (its own error says why). */
int restore_finish(struct restore *r, struct restore_result *out,
                   struct qstill_error *err);
void restore_cancel(struct restore *r); /* any thread */
void restore_close(struct restore *r);  /* cancels and joins; NULL is fine */
void restore_closep(struct restore **r);

/* The whole stream as bytes, for the VM state of a small image (in place):
 * RESTORE_LISTED only. CORRUPT past RESTORE_BUILD_MAX. */
#define RESTORE_BUILD_MAX ((size_t)2 << 30)
int restore_build(struct buf *out, const struct restore_options *options,
                  struct qstill_error *err);

/* Whether a restore would find its files good: reads and checks all that would
 * travel, and sends it nowhere. */
int restore_check(const struct restore_options *options,
                  struct qstill_error *err);

#endif
