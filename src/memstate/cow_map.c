/* SPDX-License-Identifier: MIT */
#include "cow_map.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

#define WORDS (COW_UNIT_PAGES / 64)

static int compare_hva(const void *a, const void *b)
{
    const struct cow_block *x = a, *y = b;

    return (x->hva > y->hva) - (x->hva < y->hva);
}

static int lay_out(struct cow_map *m, struct qstill_error *err)
{
    uint64_t units = 0, end = 0;

    qsort(m->blocks, m->block_count, sizeof(*m->blocks), compare_hva);
    for (size_t i = 0; i < m->block_count; i++) {
        struct cow_block *b = &m->blocks[i];

        if (b->hva < end || add_u64(b->hva, b->size, &end))
            return err_set(err, QSTILL_E_FAILED,
                           "two RAM blocks overlap at 0x%llx",
                           (unsigned long long)b->hva);
        b->first_unit = (uint32_t)units;
        b->units = (uint32_t)div_up_u64(b->size, COW_UNIT);
        /* RAMSET_BYTES_MAX makes 2^23 units, and one more for each block. */
        units += b->units;
    }
    m->units = (uint32_t)units;
    return 0;
}

int cow_map_init(struct cow_map *m, struct cow_block *blocks, size_t count,
                 struct qstill_error *err)
{
    size_t n;

    *m = (struct cow_map){.blocks = blocks, .block_count = count};
    if (lay_out(m, err) < 0)
        return err->code;
    n = m->units ? m->units : 1;
    m->state = calloc(n, 1);
    m->marked = calloc(n, 1);
    m->queued = calloc(n, 1);
    m->copied = calloc(n, sizeof(*m->copied));
    m->marks = calloc(n, WORDS * sizeof(*m->marks));
    m->queue = calloc(n, sizeof(*m->queue));
    if (!m->state || !m->marked || !m->queued || !m->marks || !m->queue ||
        !m->copied)
        return err_nomem(err);
    return 0;
}

void cow_map_fini(struct cow_map *m)
{
    for (size_t i = 0; i < m->block_count; i++)
        closep(&m->blocks[i].fd);
    free(m->blocks);
    free(m->state);
    free(m->marked);
    free(m->queued);
    free(m->copied);
    free(m->marks);
    free(m->queue);
    *m = (struct cow_map){0};
}

uint32_t cow_map_find(const struct cow_map *m, uint64_t address, uint32_t *page)
{
    size_t low = 0, high = m->block_count;
    const struct cow_block *b;
    uint64_t offset;

    while (low < high) {
        size_t mid = low + (high - low) / 2;

        if (m->blocks[mid].hva <= address)
            low = mid + 1;
        else
            high = mid;
    }
    if (low == 0)
        return COW_NONE;
    b = &m->blocks[low - 1];
    offset = address - b->hva;
    if (offset >= b->size)
        return COW_NONE;
    *page = (uint32_t)(offset % COW_UNIT / RAMSET_PAGE);
    return b->first_unit + (uint32_t)(offset / COW_UNIT);
}

struct cow_unit cow_map_unit(const struct cow_map *m, uint32_t unit)
{
    size_t low = 0, high = m->block_count;
    struct cow_unit u;

    while (high - low > 1) {
        size_t mid = low + (high - low) / 2;

        if (m->blocks[mid].first_unit <= unit)
            low = mid;
        else
            high = mid;
    }
    u.block = &m->blocks[low];
    u.offset = (uint64_t)(unit - u.block->first_unit) * COW_UNIT;
    u.len = min_u64(COW_UNIT, u.block->size - u.offset);
    return u;
}

bool cow_map_move(struct cow_map *m, uint32_t unit, enum cow_state from,
                  enum cow_state to)
{
    uint8_t expected = (uint8_t)from;

    return __atomic_compare_exchange_n(&m->state[unit], &expected, (uint8_t)to,
                                       false, __ATOMIC_SEQ_CST,
                                       __ATOMIC_SEQ_CST);
}

/* Sequentially consistent on both sides: who has seen the old epoch has
 * copied before the new one was set. */
void cow_map_next_epoch(struct cow_map *m)
{
    __atomic_add_fetch(&m->epoch, 1, __ATOMIC_SEQ_CST);
}

void cow_map_set_copied(struct cow_map *m, uint32_t unit)
{
    uint32_t now = __atomic_load_n(&m->epoch, __ATOMIC_SEQ_CST);

    __atomic_store_n(&m->copied[unit], now, __ATOMIC_RELEASE);
}

bool cow_map_was_copied(const struct cow_map *m, uint32_t unit)
{
    uint32_t now = __atomic_load_n(&m->epoch, __ATOMIC_RELAXED);
    uint32_t then = __atomic_load_n(&m->copied[unit], __ATOMIC_ACQUIRE);

    return (int32_t)(now - then) > 0; /* it may wrap around */
}

enum cow_state cow_map_state(const struct cow_map *m, uint32_t unit)
{
    return __atomic_load_n(&m->state[unit], __ATOMIC_SEQ_CST);
}

uint32_t cow_map_mark(struct cow_map *m, uint32_t unit, uint32_t page,
                      uint32_t pages)
{
    uint64_t *marks = m->marks + (size_t)unit * WORDS;
    uint32_t fresh = 0;

    for (uint32_t p = page; p < page + pages && p < COW_UNIT_PAGES; p++) {
        uint64_t bit = (uint64_t)1 << (p % 64);

        fresh += !(marks[p / 64] & bit);
        marks[p / 64] |= bit;
    }
    m->marked[unit] = 1;
    return fresh;
}

bool cow_map_is_marked(const struct cow_map *m, uint32_t unit, uint32_t page)
{
    return m->marks[(size_t)unit * WORDS + page / 64] >> (page % 64) & 1;
}

/* The first marked page of the unit at or behind `page`. */
static uint32_t first_mark(const struct cow_map *m, uint32_t unit,
                           uint32_t page)
{
    const uint64_t *marks = m->marks + (size_t)unit * WORDS;

    for (uint32_t w = page / 64; w < WORDS; w++) {
        uint64_t bits = marks[w];

        if (w == page / 64)
            bits &= ~(uint64_t)0 << (page % 64);
        if (bits)
            return w * 64 + (uint32_t)__builtin_ctzll(bits);
    }
    return COW_UNIT_PAGES;
}

static bool next_mark(const struct cow_map *m, struct cow_place *at,
                      uint32_t limit)
{
    for (; at->unit < limit; at->unit++, at->page = 0) {
        if (!m->marked[at->unit])
            continue;
        at->page = first_mark(m, at->unit, at->page);
        if (at->page < COW_UNIT_PAGES)
            return true;
    }
    return false;
}

static uint64_t page_number(struct cow_place p)
{
    return (uint64_t)p.unit * COW_UNIT_PAGES + p.page;
}

static void unmark(struct cow_map *m, struct cow_place p)
{
    uint64_t *marks = m->marks + (size_t)p.unit * WORDS;
    uint64_t any = 0;

    marks[p.page / 64] &= ~((uint64_t)1 << (p.page % 64));
    for (size_t w = 0; w < WORDS; w++)
        any |= marks[w];
    m->marked[p.unit] = any != 0;
}

bool cow_map_take_run(struct cow_map *m, struct cow_place *at, uint32_t gap,
                      struct cow_run *out)
{
    struct cow_place p = *at;
    uint64_t first, last;
    struct cow_unit u;
    uint32_t limit;

    if (!next_mark(m, &p, m->units)) {
        *at = p;
        return false;
    }
    u = cow_map_unit(m, p.unit);
    limit = u.block->first_unit + u.block->units;
    out->block = u.block;
    out->hva = u.block->hva + u.offset + (uint64_t)p.page * RAMSET_PAGE;
    out->marked = 0;
    first = last = page_number(p);
    do {
        last = page_number(p);
        unmark(m, p);
        out->marked++;
        p.page++;
        *at = p;
    } while (next_mark(m, &p, limit) && page_number(p) - last <= gap + 1);
    out->len = (last - first + 1) * RAMSET_PAGE;
    return true;
}

void cow_map_hurry(struct cow_map *m, uint32_t unit, enum cow_hurry how)
{
    uint32_t put;

    if (how == COW_AT_ONCE) {
        put = m->urgent_put;
        /* No room: it is only a wish. */
        if (put - __atomic_load_n(&m->urgent_get, __ATOMIC_ACQUIRE) ==
            COW_URGENT)
            return;
        m->urgent[put % COW_URGENT] = unit;
        __atomic_store_n(&m->urgent_put, put + 1, __ATOMIC_RELEASE);
        return;
    }
    if (m->queued[unit])
        return;
    m->queued[unit] = 1;
    m->queue[m->queue_put] = unit;
    __atomic_store_n(&m->queue_put, m->queue_put + 1, __ATOMIC_RELEASE);
}

/* Next in the order of wishes, then of position. */
static bool next_wish(struct cow_map *m, uint32_t *unit)
{
    uint32_t get = m->urgent_get;

    if (get != __atomic_load_n(&m->urgent_put, __ATOMIC_ACQUIRE)) {
        *unit = m->urgent[get % COW_URGENT];
        __atomic_store_n(&m->urgent_get, get + 1, __ATOMIC_RELEASE);
        return true;
    }
    if (m->queue_get != __atomic_load_n(&m->queue_put, __ATOMIC_ACQUIRE)) {
        *unit = m->queue[m->queue_get++];
        return true;
    }
    if (m->cursor < m->units) {
        *unit = m->cursor++;
        return true;
    }
    return false;
}

uint32_t cow_map_next(struct cow_map *m)
{
    uint32_t unit;

    while (next_wish(m, &unit)) {
        /* The fault server holds it for microseconds only. */
        while (cow_map_state(m, unit) == COW_SERVING)
            sched_yield();
        if (cow_map_move(m, unit, COW_PROTECTED, COW_COPYING))
            return unit;
    }
    return COW_NONE;
}
