/* SPDX-License-Identifier: MIT */
#include "cow_pool.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "memstate/cow_map.h"

#define PAGE ((size_t)RAMSET_PAGE)

int cow_pool_init(struct cow_pool *p, size_t bytes, uint32_t units,
                  struct qstill_error *err)
{
    void *data;

    *p = (struct cow_pool){
        .slots = (uint32_t)(bytes / PAGE),
        .local = COW_NONE,
        .given = COW_NONE,
    };
    p->next = calloc(p->slots, sizeof(*p->next));
    p->page = calloc(p->slots, sizeof(*p->page));
    p->heads = malloc(((size_t)units + 1) * sizeof(*p->heads));
    if (!p->next || !p->page || !p->heads)
        return err_nomem(err);
    memset(p->heads, 0xff, ((size_t)units + 1) * sizeof(*p->heads));
    data = mmap(NULL, p->slots * PAGE, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED)
        return err_errno(err, errno, "no memory for a pool of %zu bytes",
                         p->slots * PAGE);
    p->data = data;
    /* The first slots first: what was never used costs nothing. */
    for (uint32_t i = p->slots; i-- > 0;) {
        p->next[i] = p->local;
        p->local = i;
    }
    return 0;
}

void cow_pool_fini(struct cow_pool *p)
{
    if (p->data)
        munmap(p->data, p->slots * PAGE);
    free(p->next);
    free(p->page);
    free(p->heads);
    *p = (struct cow_pool){0};
}

bool cow_pool_take(struct cow_pool *p, uint32_t count, uint32_t *slots,
                   struct iovec *memory)
{
    uint32_t used = __atomic_load_n(&p->used, __ATOMIC_ACQUIRE);

    if (count > p->slots - used)
        return false;
    for (uint32_t i = 0; i < count; i++) {
        /* `used` counts down behind the list that was given back, so there
         * is something in it. */
        if (p->local == COW_NONE)
            p->local =
                __atomic_exchange_n(&p->given, COW_NONE, __ATOMIC_ACQUIRE);
        slots[i] = p->local;
        memory[i] = (struct iovec){p->data + p->local * PAGE, PAGE};
        p->local = p->next[p->local];
    }
    used = __atomic_add_fetch(&p->used, count, __ATOMIC_RELAXED);
    if (used > p->peak)
        p->peak = used;
    return true;
}

void cow_pool_link(struct cow_pool *p, uint32_t unit, uint32_t page,
                   const uint32_t *slots, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        p->page[slots[i]] = (uint16_t)(page + i);
        p->next[slots[i]] = p->heads[unit];
        p->heads[unit] = slots[i];
    }
}

void cow_pool_untake(struct cow_pool *p, const uint32_t *slots, uint32_t count)
{
    for (uint32_t i = count; i-- > 0;) {
        p->next[slots[i]] = p->local;
        p->local = slots[i];
    }
    __atomic_sub_fetch(&p->used, count, __ATOMIC_RELAXED);
}

uint32_t cow_pool_empty(struct cow_pool *p, uint32_t unit,
                        void (*use)(void *user, uint32_t page,
                                    const uint8_t *data),
                        void *user)
{
    uint32_t first = p->heads[unit], last = COW_NONE, count = 0;
    uint32_t head;

    for (uint32_t s = first; s != COW_NONE; s = p->next[s]) {
        use(user, p->page[s], p->data + s * PAGE);
        last = s;
        count++;
    }
    if (count == 0)
        return 0;
    p->heads[unit] = COW_NONE;
    head = __atomic_load_n(&p->given, __ATOMIC_RELAXED);
    do
        p->next[last] = head;
    while (!__atomic_compare_exchange_n(&p->given, &head, first, true,
                                        __ATOMIC_RELEASE, __ATOMIC_RELAXED));
    __atomic_sub_fetch(&p->used, count, __ATOMIC_RELEASE);
    return count;
}
