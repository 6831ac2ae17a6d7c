/* SPDX-License-Identifier: MIT */
/*
 * Finds QEMU's RAM blocks among the mappings of its process.
 *
 * Candidates for a block are the places where mappings to read and write, one
 * behind the other, are as long as the block's maximum and are followed by a
 * mapping without access. A guard of one page is what QEMU makes; malloc's
 * arenas end in longer ones, so those count only when there is nothing better.
 * What overlaps a block that is known is none.
 */
#include <string.h>

#include "base/checked.h"
#include "memstate/procmem_impl.h"
#include "memstate/regions.h"

#define PAGE 4096u
/* Candidates of a block that are looked at; a machine has some few. */
#define CANDIDATES_MAX 64u
#define COMPARE_SIZE   ((size_t)256 << 10)

struct maps {
    struct region *map;
    size_t count;
};

static int read_maps(const struct procmem *p, struct buf *out,
                     struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf text = BUF_INIT;
    uint64_t behind = 0;
    struct region r;
    size_t pos = 0;

    if (regions_read(p->pid, &text, err) < 0)
        return err->code;
    while (regions_next(&text, &pos, &r)) {
        if (r.start < behind)
            break;     /* not the kernel's form, either */
        r.path = NULL; /* does not outlive the text */
        if (buf_append(out, &r, sizeof(r)) < 0)
            return err_nomem(err);
        behind = r.end;
    }
    if (pos != text.len)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the mappings of process %d are not understood",
                       (int)p->pid);
    return 0;
}

/* ------------------------------------------------------------- candidates */

/* Index of the mapping that holds `at`, or of the next one. */
static size_t find_map(const struct maps *m, uint64_t at)
{
    size_t low = 0, high = m->count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (m->map[middle].end <= at)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Is all of [from, from + len) mapped as RAM is? (Of a file that is opened
 * read-only it may not be written.) */
static bool is_mapped(const struct maps *m, uint64_t from, uint64_t len,
                      bool writable)
{
    uint64_t to;

    if (add_u64(from, len, &to))
        return false;
    for (size_t i = find_map(m, from); from < to; i++) {
        if (i == m->count || m->map[i].start > from || !m->map[i].readable ||
            (writable && !m->map[i].writable))
            return false;
        from = m->map[i].end;
    }
    return true;
}

static bool no_access(const struct region *m)
{
    return !m->readable && !m->writable;
}

/* Do mappings that begin exactly at `start` reach up to `end`? */
static bool begins_at(const struct maps *m, uint64_t start, uint64_t end)
{
    size_t i = find_map(m, start);

    return i < m->count && m->map[i].start == start &&
           is_mapped(m, start, end - start, true);
}

static bool overlaps_known(const struct procmem_block *blocks, size_t count,
                           uint64_t start, uint64_t end)
{
    for (size_t i = 0; i < count; i++)
        if (blocks[i].hva != 0 && blocks[i].hva < end &&
            start < blocks[i].hva + blocks[i].max)
            return true;
    return false;
}

struct candidates {
    uint64_t at[CANDIDATES_MAX];
    unsigned count;
    bool guarded; /* those listed have a guard of one page */
};

/* Takes `start` up; the first one with a proper guard drops all others. */
static void add_candidate(struct candidates *c, uint64_t start, bool guarded)
{
    if (c->guarded && !guarded)
        return;
    if (guarded && !c->guarded) {
        c->guarded = true;
        c->count = 0;
    }
    if (c->count < CANDIDATES_MAX)
        c->at[c->count] = start;
    c->count++;
}

static void find_candidates(const struct maps *m,
                            const struct procmem_block *blocks, size_t count,
                            uint64_t len, struct candidates *out)
{
    *out = (struct candidates){.count = 0};
    for (size_t i = 1; i < m->count; i++) {
        const struct region *guard = &m->map[i];
        uint64_t end = m->map[i - 1].end;

        if (!no_access(guard) || guard->start != end || end < len)
            continue;
        if (begins_at(m, end - len, end) &&
            !overlaps_known(blocks, count, end - len, end))
            add_candidate(out, end - len, guard->end - guard->start == PAGE);
    }
}

/* ---------------------------------------------------------------- compare */

static int same_bytes(struct procmem *p, uint64_t a, uint64_t b, uint64_t len,
                      bool *same, struct qstill_error *err)
{
    CLEANUP(freep) uint8_t *data = malloc(2 * COMPARE_SIZE);
    uint64_t off = 0;

    if (!data)
        return err_nomem(err);
    *same = true;
    while (off < len && *same) {
        size_t n = (size_t)min_u64(COMPARE_SIZE, len - off);

        if (procmem_read(p, a + off, data, n, err) < 0 ||
            procmem_read(p, b + off, data + COMPARE_SIZE, n, err) < 0)
            return err->code;
        *same = memcmp(data, data + COMPARE_SIZE, n) == 0;
        off += n;
    }
    return 0;
}

/* Drops candidates whose content cannot be that of the block. */
static int rule_out(struct procmem *p, struct candidates *c,
                    const struct procmem_block *block, struct qstill_error *err)
{
    size_t len = (size_t)min_u64(PROCMEM_HEAD, block->used);
    uint8_t head[PROCMEM_HEAD];
    unsigned kept = 0;

    if (c->count > CANDIDATES_MAX)
        return 0;
    for (unsigned i = 0; i < c->count; i++) {
        if (procmem_read(p, c->at[i], head, len, err) < 0) {
            if (err->code != QSTILL_E_FAILED)
                return err->code;
            err_clear(err);
            continue; /* a thread's stack that has gone meanwhile */
        }
        if (procmem_content_fits(block, head, len))
            c->at[kept++] = c->at[i];
    }
    c->count = kept;
    return 0;
}

static int choose(struct procmem *p, const struct candidates *c,
                  struct procmem_block *block, struct qstill_error *err)
{
    bool same = c->count <= CANDIDATES_MAX;

    block->candidates = c->count;
    if (c->count == 0)
        return 0;
    for (unsigned i = 1; same && i < c->count; i++)
        if (same_bytes(p, c->at[0], c->at[i], block->used, &same, err) < 0)
            return err_wrap(err, "looking for RAM block '%.100s'", block->id);
    block->how = PROCMEM_AMBIGUOUS;
    if (!same)
        return 0;
    block->how = c->count == 1 ? PROCMEM_UNIQUE : PROCMEM_SAME;
    block->hva = c->at[0];
    return 0;
}

static int check_known(const struct maps *m, const struct procmem_block *blocks,
                       size_t count, struct qstill_error *err)
{
    for (size_t i = 0; i < count; i++) {
        if (blocks[i].used > blocks[i].max)
            return err_set(err, QSTILL_E_CORRUPT,
                           "RAM block '%.100s' is longer than its maximum",
                           blocks[i].id);
        if (blocks[i].how == PROCMEM_KNOWN &&
            !is_mapped(m, blocks[i].hva, blocks[i].max, false))
            return err_set(err, QSTILL_E_FAILED,
                           "RAM block '%.100s' is not mapped at %#llx",
                           blocks[i].id, (unsigned long long)blocks[i].hva);
    }
    return 0;
}

/* Two blocks at one place: at most one of them can be right. */
static void doubt_shared_places(struct procmem_block *blocks, size_t count)
{
    for (size_t i = 0; i < count; i++)
        for (size_t k = 0; k < count; k++)
            if (i != k && blocks[i].how == PROCMEM_UNIQUE &&
                blocks[i].hva == blocks[k].hva) {
                blocks[i].how = PROCMEM_AMBIGUOUS;
                blocks[k].how = blocks[k].how == PROCMEM_UNIQUE
                                    ? PROCMEM_AMBIGUOUS
                                    : blocks[k].how;
            }
    for (size_t i = 0; i < count; i++)
        if (blocks[i].how == PROCMEM_AMBIGUOUS)
            blocks[i].hva = 0;
}

/* Two blocks of one length share their candidates, and finding the first must
 * not take the place of the second: places are given when all are judged. */
int procmem_find(struct procmem *p, struct procmem_block *blocks, size_t count,
                 struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf raw = BUF_INIT;
    CLEANUP(freep) struct procmem_block *found = NULL;
    struct candidates c;
    struct maps m;

    found = calloc(count ? count : 1, sizeof(*found));
    if (!found)
        return err_nomem(err);
    if (read_maps(p, &raw, err) < 0)
        return err->code;
    m = (struct maps){(struct region *)raw.data,
                      raw.len / sizeof(struct region)};
    if (check_known(&m, blocks, count, err) < 0)
        return err->code;
    memcpy(found, blocks, count * sizeof(*found));
    for (size_t i = 0; i < count; i++) {
        if (blocks[i].how != PROCMEM_UNKNOWN)
            continue;
        find_candidates(&m, blocks, count, blocks[i].max, &c);
        if (rule_out(p, &c, &blocks[i], err) < 0 ||
            choose(p, &c, &found[i], err) < 0)
            return err->code;
    }
    doubt_shared_places(found, count);
    memcpy(blocks, found, count * sizeof(*found));
    return 0;
}
