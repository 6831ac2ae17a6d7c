/* SPDX-License-Identifier: MIT */
/* Pages written back and put back, with this process's own memory as the
 * guest's. */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "../lib/mem_set.h"
#include "../lib/mem_tmpdir.h"
#include "memstate/pageback.h"

#define MAIN_SIZE ((size_t)9 * RAMSET_CHUNK + 3 * RAMSET_PAGE)
#define ROM_SIZE  ((size_t)7 * RAMSET_PAGE)

struct fixture {
    char path[128];
    int dirfd;
    uint8_t *ram, *rom;        /* the guest's */
    uint8_t *was, *rom_was;    /* as they were captured */
    uint8_t *later, *rom_late; /* as they were before the way back */
    struct capture_source blocks[2];
    struct ramset *set;
    struct undolog undo;
    struct pageback_options options;
    struct pageback_result result;
    struct qstill_error err;
};

static uint8_t *map(size_t len, int flags)
{
    uint8_t *p =
        mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | flags, -1, 0);

    assert_ptr_not_equal(p, MAP_FAILED);
    /* or a write to one page would touch its neighbours */
    madvise(p, len, MADV_NOHUGEPAGE);
    return p;
}

/* Captured; the chunk in the middle was never touched. */
static int setup_of(void **state, int flags)
{
    struct fixture *f = calloc(1, sizeof(*f));

    f->dirfd = mem_tmpdir_make(f->path);
    f->ram = map(MAIN_SIZE, flags);
    f->rom = map(ROM_SIZE, flags);
    f->was = calloc(1, MAIN_SIZE);
    f->later = malloc(MAIN_SIZE);
    f->rom_was = malloc(ROM_SIZE);
    f->rom_late = malloc(ROM_SIZE);
    mem_set_fill(f->ram, 4 * RAMSET_CHUNK, 40, 1);
    mem_set_fill(f->ram + 5 * RAMSET_CHUNK, MAIN_SIZE - 5 * RAMSET_CHUNK, 40,
                 2);
    mem_set_fill(f->rom, ROM_SIZE, 0, 3);
    /* reading the untouched chunk would touch it */
    memcpy(f->was, f->ram, 4 * RAMSET_CHUNK);
    memcpy(f->was + 5 * RAMSET_CHUNK, f->ram + 5 * RAMSET_CHUNK,
           MAIN_SIZE - 5 * RAMSET_CHUNK);
    memcpy(f->rom_was, f->rom, ROM_SIZE);
    f->blocks[0] =
        (struct capture_source){"pc.ram", (uintptr_t)f->ram, MAIN_SIZE, 4096};
    f->blocks[1] =
        (struct capture_source){"pc.rom", (uintptr_t)f->rom, ROM_SIZE, 0};
    mem_set_capture(f->dirfd, f->blocks, 2);
    assert_int_equal(ramset_open(&f->set, f->dirfd, &f->err), 0);
    f->undo.fd = memfd_create("undo", MFD_CLOEXEC);
    f->options = (struct pageback_options){.set = f->set,
                                           .pid = getpid(),
                                           .blocks = f->blocks,
                                           .count = 2,
                                           .undo = &f->undo,
                                           .threads = 3};
    *state = f;
    return 0;
}

static int setup(void **state)
{
    return setup_of(state, MAP_PRIVATE);
}

static int setup_shared(void **state)
{
    return setup_of(state, MAP_SHARED);
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    ramset_close(f->set);
    close(f->undo.fd);
    mem_tmpdir_remove(f->path, f->dirfd);
    munmap(f->ram, MAIN_SIZE);
    munmap(f->rom, ROM_SIZE);
    free(f->was);
    free(f->later);
    free(f->rom_was);
    free(f->rom_late);
    free(f);
    return 0;
}

/* What a guest does: pages changed, zeroed, and used for the first time. */
static void run_on(struct fixture *f)
{
    f->ram[0] ^= 1;
    f->ram[RAMSET_CHUNK + 5 * RAMSET_PAGE + 4095] ^= 0x80;
    memset(f->ram + 2 * RAMSET_CHUNK, 0, 17 * RAMSET_PAGE);
    memset(f->ram + 4 * RAMSET_CHUNK + 9 * RAMSET_PAGE, 7, 2 * RAMSET_PAGE);
    f->ram[MAIN_SIZE - 1] ^= 1;
    f->rom[3 * RAMSET_PAGE] ^= 1;
    memcpy(f->later, f->ram, MAIN_SIZE);
    memcpy(f->rom_late, f->rom, ROM_SIZE);
}

static void assert_as_captured(const struct fixture *f)
{
    assert_memory_equal(f->ram, f->was, MAIN_SIZE);
    assert_memory_equal(f->rom, f->rom_was, ROM_SIZE);
}

static void put_back(struct fixture *f, uint64_t *pages)
{
    CLEANUP(procmem_closep) struct procmem *mem = NULL;

    assert_int_equal(procmem_open(&mem, getpid(), &f->err), 0);
    assert_int_equal(
        undolog_apply(f->undo.fd, mem, f->blocks, 2, pages, &f->err), 0);
}

static size_t pages_that_differ(const uint8_t *a, const uint8_t *b, size_t len)
{
    size_t n = 0;

    for (size_t i = 0; i < len; i += RAMSET_PAGE)
        n += memcmp(a + i, b + i, RAMSET_PAGE) != 0;
    return n;
}

static void only_pages_that_differ_are_written_and_come_back(void **state)
{
    struct fixture *f = *state;
    uint64_t pages;
    size_t differ;

    run_on(f);
    differ = pages_that_differ(f->was, f->later, MAIN_SIZE) +
             pages_that_differ(f->rom_was, f->rom_late, ROM_SIZE);
    assert_int_equal(pageback_run(&f->options, &f->result, &f->err), 0);
    assert_as_captured(f);
    assert_int_equal(f->result.written_pages, differ);
    assert_int_equal(f->result.compared_bytes, MAIN_SIZE + ROM_SIZE);
    put_back(f, &pages);
    assert_int_equal(pages, differ);
    assert_memory_equal(f->ram, f->later, MAIN_SIZE);
    assert_memory_equal(f->rom, f->rom_late, ROM_SIZE);
    put_back(f, &pages); /* once more is fine */
    assert_memory_equal(f->ram, f->later, MAIN_SIZE);
}

static void equal_memory_is_not_written(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(pageback_run(&f->options, &f->result, &f->err), 0);
    assert_int_equal(f->result.written_pages, 0);
    assert_int_equal(lseek(f->undo.fd, 0, SEEK_END), 0);
}

static void untouched_memory_stays_untouched(void **state)
{
    struct fixture *f = *state;
    unsigned char there[RAMSET_CHUNK_PAGES];

    assert_int_equal(pageback_run(&f->options, &f->result, &f->err), 0);
    assert_int_equal(mincore(f->ram + 4 * RAMSET_CHUNK, RAMSET_CHUNK, there),
                     0);
    for (size_t i = 0; i < RAMSET_CHUNK_PAGES; i++)
        assert_int_equal(there[i] & 1, 0);
}

static void large_blocks_can_be_left_out(void **state)
{
    struct fixture *f = *state;

    run_on(f);
    f->options.max_size = ROM_SIZE;
    f->options.undo = NULL;
    assert_int_equal(pageback_run(&f->options, &f->result, &f->err), 0);
    assert_int_equal(f->result.written_pages, 1);
    assert_memory_equal(f->rom, f->rom_was, ROM_SIZE);
    assert_memory_equal(f->ram, f->later, MAIN_SIZE);
}

static void damage(struct fixture *f, const char *name, off_t at)
{
    int fd = openat(f->dirfd, name, O_WRONLY | O_CLOEXEC);

    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, "damage", 6, at), 6);
    close(fd);
}

/* Also where the damage equals what the memory holds now. */
static void a_damaged_file_is_never_believed(void **state)
{
    struct fixture *f = *state;
    uint64_t pages;

    run_on(f);
    damage(f, "pc.ram.ram", 8 * RAMSET_CHUNK + 100);
    memcpy(f->ram + 8 * RAMSET_CHUNK + 100, "damage", 6);
    memcpy(f->later, f->ram, MAIN_SIZE);
    assert_int_equal(pageback_run(&f->options, &f->result, &f->err),
                     QSTILL_E_CORRUPT);
    assert_non_null(strstr(f->err.message, "pc.ram.ram"));
    assert_non_null(strstr(f->err.message, "does not match its checksum"));
    put_back(f, &pages);
    assert_memory_equal(f->ram, f->later, MAIN_SIZE);
}

/* A hole where data was is damage, even above memory that is zero. */
static void a_hole_where_data_was_is_damage(void **state)
{
    struct fixture *f = *state;
    int fd = openat(f->dirfd, "pc.rom.ram", O_WRONLY | O_CLOEXEC);

    assert_int_equal(ftruncate(fd, 0), 0);
    assert_int_equal(ftruncate(fd, ROM_SIZE), 0);
    close(fd);
    memset(f->rom, 0, ROM_SIZE);
    assert_int_equal(pageback_run(&f->options, &f->result, &f->err),
                     QSTILL_E_CORRUPT);
}

static void a_block_of_another_size_is_refused(void **state)
{
    struct fixture *f = *state;

    f->blocks[1].size -= RAMSET_PAGE;
    assert_int_equal(pageback_run(&f->options, &f->result, &f->err),
                     QSTILL_E_PRECONDITION);
    assert_non_null(strstr(f->err.message, "pc.rom"));
    f->blocks[1].size += RAMSET_PAGE;
}

/* What cannot be kept is not overwritten. */
static void a_full_log_stops_it(void **state)
{
    struct fixture *f = *state;
    struct undolog full = {.fd = open("/dev/full", O_WRONLY | O_CLOEXEC)};

    run_on(f);
    f->options.undo = &full;
    f->options.threads = 1;
    assert_int_equal(pageback_run(&f->options, &f->result, &f->err),
                     QSTILL_E_NO_SPACE);
    assert_memory_equal(f->ram, f->later, MAIN_SIZE);
    close(full.fd);
}

static void a_process_that_is_gone_is_told(void **state)
{
    struct fixture *f = *state;
    pid_t child = fork();

    if (child == 0)
        _exit(0);
    waitpid(child, NULL, 0);
    f->options.pid = child;
    assert_true(pageback_run(&f->options, &f->result, &f->err) < 0);
    assert_true(f->err.code == QSTILL_E_NOT_FOUND ||
                f->err.code == QSTILL_E_UNREACHABLE);
}

/* A slot that a killed process had not finished is passed over. */
static void torn_slots_are_passed_over(void **state)
{
    struct fixture *f = *state;
    struct ramset_map two = {{0x3}};
    uint64_t pages;
    off_t end;

    assert_int_equal(
        undolog_keep(&f->undo, "pc.rom", 0, f->rom, 2, &two, &f->err), 0);
    end = lseek(f->undo.fd, 0, SEEK_END);
    assert_int_equal(end, 2 * UNDOLOG_SLOT);
    /* the first one torn in its data; a third cut off in its middle */
    assert_int_equal(pwrite(f->undo.fd, "torn", 4, UNDOLOG_HEAD + 2000), 4);
    assert_int_equal(ftruncate(f->undo.fd, end + UNDOLOG_SLOT / 2), 0);
    memset(f->rom, 0x11, 2 * RAMSET_PAGE);
    put_back(f, &pages);
    assert_int_equal(pages, 1);
    assert_int_equal(f->rom[0], 0x11);
    assert_memory_equal(f->rom + RAMSET_PAGE, f->rom_was + RAMSET_PAGE,
                        RAMSET_PAGE);
}

static void a_slot_of_an_unknown_block_is_damage(void **state)
{
    CLEANUP(procmem_closep) struct procmem *mem = NULL;
    struct fixture *f = *state;
    struct ramset_map one = {{0x1}};
    uint64_t pages;

    assert_int_equal(
        undolog_keep(&f->undo, "nobody", 0, f->rom, 1, &one, &f->err), 0);
    assert_int_equal(procmem_open(&mem, getpid(), &f->err), 0);
    assert_int_equal(
        undolog_apply(f->undo.fd, mem, f->blocks, 2, &pages, &f->err),
        QSTILL_E_CORRUPT);
}

#define IN(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN(only_pages_that_differ_are_written_and_come_back),
        {"the_same_in_shared_memory",
         only_pages_that_differ_are_written_and_come_back, setup_shared,
         teardown, NULL},
        IN(equal_memory_is_not_written),
        IN(untouched_memory_stays_untouched),
        IN(large_blocks_can_be_left_out),
        IN(a_damaged_file_is_never_believed),
        IN(a_hole_where_data_was_is_damage),
        IN(a_block_of_another_size_is_refused),
        IN(a_full_log_stops_it),
        IN(a_process_that_is_gone_is_told),
        IN(torn_slots_are_passed_over),
        IN(a_slot_of_an_unknown_block_is_damage),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
