/* SPDX-License-Identifier: MIT */
/* Finding RAM blocks among mappings, with blocks laid out here as QEMU does. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cmocka.h>

#include "memstate/procmem.h"

/* Lengths that nothing else in this process has. */
#define SIZE_A ((uint64_t)37 * 4096)
#define SIZE_B ((uint64_t)41 * 4096)

struct fixture {
    struct procmem *mem;
    struct qstill_error err;
    void *made[8];
    size_t lens[8];
    unsigned count;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    assert_int_equal(procmem_open(&f->mem, getpid(), &f->err), 0);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    for (unsigned i = 0; i < f->count; i++)
        munmap(f->made[i], f->lens[i]);
    procmem_close(f->mem);
    free(f);
    return 0;
}

/* A hole in front, `len` bytes of `fill`, `guard` bytes without access, and a
 * hole behind. Not for children, as QEMU has it: so no neighbour's mapping
 * melts into it. */
static uint8_t *make_block(struct fixture *f, uint64_t len, uint64_t guard,
                           uint8_t fill)
{
    size_t all = len + guard + 2 * 65536;
    uint8_t *p = mmap(NULL, all, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    assert_true(p != MAP_FAILED);
    munmap(p, 65536);
    munmap(p + 65536 + len + guard, 65536);
    p += 65536;
    assert_int_equal(mprotect(p, len, PROT_READ | PROT_WRITE), 0);
    assert_int_equal(madvise(p, len, MADV_DONTFORK), 0);
    memset(p, fill, len);
    f->made[f->count] = p;
    f->lens[f->count++] = len + guard;
    return p;
}

static struct procmem_block unknown(const char *id, uint64_t len)
{
    return (struct procmem_block){.id = id, .used = len, .max = len};
}

static void find(struct fixture *f, struct procmem_block *blocks, size_t count)
{
    if (procmem_find(f->mem, blocks, count, &f->err) < 0)
        fail_msg("%s", f->err.message);
}

static void find_takes_the_one_mapping_that_fits(void **state)
{
    struct fixture *f = *state;
    uint8_t *a = make_block(f, SIZE_A, 4096, 1);
    uint8_t *b = make_block(f, SIZE_B, 4096, 2);
    struct procmem_block blocks[] = {unknown("b", SIZE_B),
                                     unknown("a", SIZE_A)};

    find(f, blocks, 2);
    assert_int_equal(blocks[0].how, PROCMEM_UNIQUE);
    assert_int_equal(blocks[0].hva, (uintptr_t)b);
    assert_int_equal(blocks[1].how, PROCMEM_UNIQUE);
    assert_int_equal(blocks[1].hva, (uintptr_t)a);
    assert_int_equal(blocks[1].candidates, 1);
}

static void find_sees_through_a_mapping_in_pieces(void **state)
{
    struct fixture *f = *state;
    uint8_t *a = make_block(f, SIZE_A, 4096, 1);
    struct procmem_block block = unknown("a", SIZE_A);

    assert_int_equal(madvise(a + 5 * 4096, 4096, MADV_DONTDUMP), 0);
    find(f, &block, 1);
    assert_int_equal(block.how, PROCMEM_UNIQUE);
    assert_int_equal(block.hva, (uintptr_t)a);
}

static void find_takes_any_of_those_that_are_the_same(void **state)
{
    struct fixture *f = *state;
    uint8_t *a = make_block(f, SIZE_A, 4096, 1);
    uint8_t *b = make_block(f, SIZE_A, 4096, 1);
    struct procmem_block block = unknown("a", SIZE_A);

    /* only the used length counts */
    block.used = SIZE_A - 4096;
    b[SIZE_A - 1] = 9;
    find(f, &block, 1);
    assert_int_equal(block.how, PROCMEM_SAME);
    assert_int_equal(block.candidates, 2);
    assert_true(block.hva == (uintptr_t)a || block.hva == (uintptr_t)b);
}

static void find_does_not_choose_between_those_that_differ(void **state)
{
    struct fixture *f = *state;
    struct procmem_block blocks[] = {unknown("a", SIZE_A),
                                     unknown("b", SIZE_A)};

    make_block(f, SIZE_A, 4096, 1)[SIZE_A - 1] = 9;
    make_block(f, SIZE_A, 4096, 1);
    find(f, blocks, 2);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(blocks[i].how, PROCMEM_AMBIGUOUS);
        assert_int_equal(blocks[i].candidates, 2);
        assert_int_equal(blocks[i].hva, 0);
    }
}

static void find_leaves_known_blocks_to_their_owners(void **state)
{
    struct fixture *f = *state;
    uint8_t *a = make_block(f, SIZE_A, 4096, 1);
    uint8_t *b = make_block(f, SIZE_A, 4096, 2);
    struct procmem_block blocks[] = {unknown("a", SIZE_A),
                                     unknown("b", SIZE_A)};

    blocks[1].hva = (uintptr_t)b;
    blocks[1].how = PROCMEM_KNOWN;
    find(f, blocks, 2);
    assert_int_equal(blocks[0].how, PROCMEM_UNIQUE);
    assert_int_equal(blocks[0].hva, (uintptr_t)a);
    assert_int_equal(blocks[1].how, PROCMEM_KNOWN);
}

static void find_gives_one_place_to_one_block_only(void **state)
{
    struct fixture *f = *state;
    struct procmem_block blocks[] = {unknown("a", SIZE_A),
                                     unknown("b", SIZE_A)};

    make_block(f, SIZE_A, 4096, 1);
    find(f, blocks, 2);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(blocks[i].how, PROCMEM_AMBIGUOUS);
        assert_int_equal(blocks[i].hva, 0);
    }
}

static void find_prefers_a_guard_of_one_page(void **state)
{
    struct fixture *f = *state;
    uint8_t *arena = make_block(f, SIZE_A, 9 * 4096, 1);
    struct procmem_block block = unknown("a", SIZE_A);
    uint8_t *proper;

    find(f, &block, 1);
    assert_int_equal(block.hva, (uintptr_t)arena);
    proper = make_block(f, SIZE_A, 4096, 2);
    block = unknown("a", SIZE_A);
    find(f, &block, 1);
    assert_int_equal(block.how, PROCMEM_UNIQUE);
    assert_int_equal(block.hva, (uintptr_t)proper);
}

static void find_tells_when_nothing_fits(void **state)
{
    struct fixture *f = *state;
    struct procmem_block block = unknown("a", SIZE_A);

    make_block(f, SIZE_A + 4096, 4096, 1);
    find(f, &block, 1);
    assert_int_equal(block.how, PROCMEM_UNKNOWN);
    assert_int_equal(block.candidates, 0);
    assert_int_equal(block.hva, 0);
}

static void a_known_block_may_be_read_only(void **state)
{
    struct fixture *f = *state;
    uint8_t *a = make_block(f, SIZE_A, 4096, 1);
    struct procmem_block blocks[] = {unknown("a", SIZE_A),
                                     unknown("b", SIZE_A)};

    assert_int_equal(mprotect(a, SIZE_A, PROT_READ), 0);
    blocks[0].hva = (uintptr_t)a;
    blocks[0].how = PROCMEM_KNOWN;
    find(f, blocks, 2);
    assert_int_equal(blocks[0].how, PROCMEM_KNOWN);
    assert_int_equal(blocks[1].how, PROCMEM_UNKNOWN);
}

static void find_refuses_a_known_block_that_is_not_mapped(void **state)
{
    struct fixture *f = *state;
    uint8_t *a = make_block(f, SIZE_A, 4096, 1);
    struct procmem_block block = unknown("a", SIZE_A + 4096);
    char want[128];

    block.hva = (uintptr_t)a;
    block.how = PROCMEM_KNOWN;
    assert_int_equal(procmem_find(f->mem, &block, 1, &f->err), QSTILL_E_FAILED);
    snprintf(want, sizeof(want), "RAM block 'a' is not mapped at %p",
             (void *)a);
    assert_string_equal(f->err.message, want);
}

static void read_crosses_mappings_and_names_where_it_stops(void **state)
{
    struct fixture *f = *state;
    uint8_t *a = make_block(f, SIZE_A, 4096, 3);
    CLEANUP(freep) uint8_t *data = malloc(SIZE_A + 4096);
    char want[128];

    madvise(a + 4096, 4096, MADV_DONTDUMP);
    a[SIZE_A - 1] = 4;
    assert_int_equal(procmem_read(f->mem, (uintptr_t)a, data, SIZE_A, &f->err),
                     0);
    assert_memory_equal(data, a, SIZE_A);
    assert_int_equal(
        procmem_read(f->mem, (uintptr_t)a, data, SIZE_A + 4096, &f->err),
        QSTILL_E_FAILED);
    snprintf(want, sizeof(want), "process %d cannot be read at address %p",
             (int)getpid(), (void *)(a + SIZE_A));
    assert_string_equal(f->err.message, want);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(find_takes_the_one_mapping_that_fits),
        T(find_sees_through_a_mapping_in_pieces),
        T(find_takes_any_of_those_that_are_the_same),
        T(find_does_not_choose_between_those_that_differ),
        T(find_leaves_known_blocks_to_their_owners),
        T(find_gives_one_place_to_one_block_only),
        T(find_prefers_a_guard_of_one_page),
        T(find_tells_when_nothing_fits),
        T(a_known_block_may_be_read_only),
        T(find_refuses_a_known_block_that_is_not_mapped),
        T(read_crosses_mappings_and_names_where_it_stops),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
