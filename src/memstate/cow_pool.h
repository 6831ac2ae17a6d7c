/* SPDX-License-Identifier: MIT */
/*
 * Saved pages on their way to the file: a bounded number of slots of 4 KiB.
 * The fault server takes slots and links them to their unit; the copier that
 * owns the unit empties its list. Neither takes a lock.
 */
#ifndef QSTILL_MEMSTATE_COW_POOL_H
#define QSTILL_MEMSTATE_COW_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/error.h"

struct cow_pool {
    uint8_t *data;
    uint32_t slots;
    uint32_t *next;  /* of each slot, in whatever list it stands */
    uint16_t *page;  /* of each slot in use: which one of its unit */
    uint32_t *heads; /* of each unit */
    uint32_t local;  /* free slots, the fault server's */
    uint32_t given;  /* free slots, given back by copiers; by atomics */
    uint32_t used;   /* by atomics */
    uint32_t peak;
};

/* FAILED when there is no memory. */
int cow_pool_init(struct cow_pool *p, size_t bytes, uint32_t units,
                  struct qstill_error *err);
void cow_pool_fini(struct cow_pool *p);

/* The fault server: takes `count` slots, their ids and their memory; false
 * when there are not so many. Then links them, in order, to the pages from
 * `page` on, or gives them back. */
bool cow_pool_take(struct cow_pool *p, uint32_t count, uint32_t *slots,
                   struct iovec *memory);
void cow_pool_link(struct cow_pool *p, uint32_t unit, uint32_t page,
                   const uint32_t *slots, uint32_t count);
void cow_pool_untake(struct cow_pool *p, const uint32_t *slots, uint32_t count);

/* The copier that owns the unit: calls `use` for each page of it that is
 * here, then frees them. How many there were. */
uint32_t cow_pool_empty(struct cow_pool *p, uint32_t unit,
                        void (*use)(void *user, uint32_t page,
                                    const uint8_t *data),
                        void *user);

#endif
