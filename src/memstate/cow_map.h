/* SPDX-License-Identifier: MIT */
/*
 * The books of a cow capture: which page of which block, in units of up to
 * 2 MiB that are copied as one. No I/O.
 *
 * State of a unit:
 *
 *     PROTECTED --(a copier)--> COPYING --> DONE
 *         ^  |
 *         |  v  (the fault server, for as long as it saves a page)
 *        SERVING
 *
 * Whoever moves a unit out of PROTECTED owns it until it moves it on. The
 * marks of a unit's pages are written by the fault server alone: before the
 * instant they mean "was written", afterwards "is in the pool".
 */
#ifndef QSTILL_MEMSTATE_COW_MAP_H
#define QSTILL_MEMSTATE_COW_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "memstate/ramset.h"

/* A transparent huge page: protecting and unprotecting it as a whole keeps it
 * whole. Also the largest page of hugetlbfs that is taken. */
#define COW_UNIT       ((uint64_t)2 << 20)
#define COW_UNIT_PAGES (COW_UNIT / RAMSET_PAGE)
#define COW_NONE       UINT32_MAX
#define COW_URGENT     256u /* a power of two */

enum cow_state {
    COW_PROTECTED,
    COW_SERVING,
    COW_COPYING,
    COW_DONE,
};

struct cow_block {
    uint64_t hva;
    uint64_t size;
    uint32_t page;       /* what can be protected alone: 4096 or 2 MiB */
    unsigned index;      /* in the file set */
    bool anonymous;      /* private, no file behind it: zero when untouched */
    bool shared;         /* another mapping would show the same bytes */
    int fd;              /* of the memory itself, or -1 */
    uint64_t fd_off;     /* of the block in it */
    uint32_t first_unit; /* of its own; filled by cow_map_init */
    uint32_t units;
};

struct cow_unit {
    const struct cow_block *block;
    uint64_t offset; /* in the block */
    uint64_t len;    /* COW_UNIT but for a block's last one */
};

struct cow_map {
    struct cow_block *blocks; /* sorted by hva */
    size_t block_count;
    uint32_t units;
    uint8_t *state;  /* by atomics */
    uint8_t *marked; /* a page of the unit is marked */
    /* Read and removed: the target may give pages back as soon as the fault
     * server has read that it wants to. `epoch` is counted up before each such
     * read, and a unit keeps the one that was true when its bytes had all been
     * copied: a smaller one than that of the read means "before". */
    uint32_t epoch;   /* by atomics */
    uint32_t *copied; /* by atomics; of each unit that is DONE */
    uint64_t *marks;  /* COW_UNIT_PAGES bits for each unit */
    /* Units that are to be copied first: written by the fault server, read by
     * whoever calls cow_map_next(). */
    uint32_t *queue; /* each unit at most once */
    uint8_t *queued; /* the fault server's */
    uint32_t queue_put, queue_get;
    uint32_t urgent[COW_URGENT]; /* in front of these */
    uint32_t urgent_put, urgent_get;
    uint32_t cursor;
};

/* Takes the array over, on failure too. FAILED when blocks overlap. */
int cow_map_init(struct cow_map *m, struct cow_block *blocks, size_t count,
                 struct qstill_error *err);
void cow_map_fini(struct cow_map *m);

/* The unit that holds an address, and its page there; COW_NONE for none. */
uint32_t cow_map_find(const struct cow_map *m, uint64_t address,
                      uint32_t *page);
struct cow_unit cow_map_unit(const struct cow_map *m, uint32_t unit);

/* Moves the unit from one state to another if it is in the first. */
bool cow_map_move(struct cow_map *m, uint32_t unit, enum cow_state from,
                  enum cow_state to);
/* The fault server, before it reads events. */
void cow_map_next_epoch(struct cow_map *m);
/* The unit's owner, when its bytes have been copied. */
void cow_map_set_copied(struct cow_map *m, uint32_t unit);
/* The fault server: had the unit, which is DONE, been copied before the last
 * cow_map_next_epoch()? */
bool cow_map_was_copied(const struct cow_map *m, uint32_t unit);
enum cow_state cow_map_state(const struct cow_map *m, uint32_t unit);

/* Marks `pages` pages; how many were not marked yet. */
uint32_t cow_map_mark(struct cow_map *m, uint32_t unit, uint32_t page,
                      uint32_t pages);
bool cow_map_is_marked(const struct cow_map *m, uint32_t unit, uint32_t page);

/*
 * Takes the next run of marked pages at or behind *at, within one block, gaps
 * of up to `gap` pages included, and clears their marks: its block, address and
 * length; false at the end.
 */
struct cow_place {
    uint32_t unit;
    uint32_t page;
};
struct cow_run {
    const struct cow_block *block;
    uint64_t hva;
    uint64_t len;
    uint32_t marked; /* pages in it that were marked */
};
bool cow_map_take_run(struct cow_map *m, struct cow_place *at, uint32_t gap,
                      struct cow_run *out);

/* Puts a unit in front of those that were not asked for yet, or in front of
 * all when somebody waits for it. For the fault server alone; takes no lock. */
enum cow_hurry { COW_SOON, COW_AT_ONCE };
void cow_map_hurry(struct cow_map *m, uint32_t unit, enum cow_hurry how);
/* The next unit to be copied, now in state COPYING and the caller's; COW_NONE
 * when all are taken. One caller at a time. */
uint32_t cow_map_next(struct cow_map *m);

#endif
