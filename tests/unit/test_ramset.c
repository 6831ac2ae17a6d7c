/* SPDX-License-Identifier: MIT */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "base/file.h"
#include "../lib/mem_tmpdir.h"
#include "memstate/ramset.h"
#include "memstate/ramset_layout.h"
#include "memstate/ramset_sums.h"

/* The smallest device state: one section of one byte with a footer. */
static const uint8_t device[] = {'Q', 'E', 'V', 'M', 0,    0, 0, 3, 4, 0,
                                 0,   0,   9,   1,   'x',  0, 0, 0, 0, 0,
                                 0,   0,   1,   7,   0x7e, 0, 0, 0, 9, 0};

struct fixture {
    char path[128];
    int dirfd;
    struct qstill_error err;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    f->dirfd = mem_tmpdir_make(f->path);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    mem_tmpdir_remove(f->path, f->dirfd);
    free(f);
    return 0;
}

static void fill(uint8_t *data, size_t len, unsigned seed)
{
    for (size_t i = 0; i < len; i++) {
        seed = seed * 1103515245u + 12345u;
        data[i] = (uint8_t)(seed >> 16);
    }
}

#define MAIN_SIZE (2 * RAMSET_CHUNK + 3 * RAMSET_PAGE)

/* Two blocks: main RAM with pages 0, 300 and the last; a ROM of one page. */
static void write_set(struct fixture *f, uint8_t *ram)
{
    CLEANUP(ramset_writer_freep) struct ramset_writer *w = NULL;
    struct ramset_map map;
    unsigned main_block, rom;

    memset(ram, 0, MAIN_SIZE);
    fill(ram, RAMSET_PAGE, 1);
    fill(ram + 300 * RAMSET_PAGE, RAMSET_PAGE, 2);
    fill(ram + MAIN_SIZE - RAMSET_PAGE, RAMSET_PAGE, 3);
    assert_int_equal(ramset_create(&w, NULL, f->dirfd, RAMSET_CACHED, &f->err),
                     0);
    assert_int_equal(
        ramset_add_block(w, "pc.ram", MAIN_SIZE, 4096, &main_block, &f->err),
        0);
    assert_int_equal(
        ramset_add_block(w, "/rom@etc/x", RAMSET_PAGE, 0, &rom, &f->err), 0);
    for (unsigned c = 0; c < 3; c++) {
        size_t pages = c < 2 ? RAMSET_CHUNK_PAGES : 3;
        const uint8_t *data = ram + c * RAMSET_CHUNK;

        ramset_sum_add(
            w, main_block, c,
            ramset_scan(data, (uint64_t)c * RAMSET_CHUNK_PAGES, pages, &map));
        assert_int_equal(file_write_full(ramset_writer_fd(w, main_block), data,
                                         pages * RAMSET_PAGE, c * RAMSET_CHUNK,
                                         &f->err),
                         0);
    }
    assert_int_equal(ramset_device_append(w, device, sizeof(device), &f->err),
                     0);
    assert_int_equal(ramset_commit(w, &f->err), 0);
}

static void ramset_names_escape_all_but_plain_bytes(void **state)
{
    static const char *const cases[][2] = {
        {"pc.ram", "pc.ram.ram"},
        {"/rom@etc/acpi/tables", "%2From%40etc%2Facpi%2Ftables.ram"},
        {"0000:00:01.0/vga.vram", "0000%3A00%3A01.0%2Fvga.vram.ram"},
        {"..", "...ram"},
        {"a_b-C 9\xc3", "a_b-C%209%C3.ram"},
    };
    struct fixture *f = *state;
    char name[RAMSET_NAME_SIZE];

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        assert_int_equal(ramset_file_name(cases[i][0], name, &f->err), 0);
        assert_string_equal(name, cases[i][1]);
    }
    assert_int_equal(ramset_file_name("", name, &f->err), QSTILL_E_USAGE);
    assert_string_equal(f->err.message,
                        "a RAM block's id has 1 to 255 bytes, not 0");
}

static void ramset_names_of_long_ids_fit_and_differ(void **state)
{
    struct fixture *f = *state;
    char a[RAMSET_NAME_SIZE], b[RAMSET_NAME_SIZE], id[257];

    for (size_t len = 80; len <= RAMSET_ID_MAX; len++) {
        memset(id, '/', len);
        id[len] = '\0';
        assert_int_equal(ramset_file_name(id, a, &f->err), 0);
        assert_true(strlen(a) <= 255);
        assert_string_equal(a + strlen(a) - 4, ".ram");
        id[len - 1] = ':';
        assert_int_equal(ramset_file_name(id, b, &f->err), 0);
        assert_string_not_equal(a, b);
    }
    memset(id, 'a', 256);
    id[256] = '\0';
    assert_int_equal(ramset_file_name(id, a, &f->err), QSTILL_E_USAGE);
}

static void ramset_comes_back_as_it_was_written(void **state)
{
    struct fixture *f = *state;
    CLEANUP(freep) uint8_t *ram = malloc(MAIN_SIZE);
    CLEANUP(ramset_closep) struct ramset *set = NULL;
    CLEANUP(buf_fini) struct buf b = BUF_INIT;
    const struct ramset_block *block;
    CLEANUP(closep) int fd = -1;
    unsigned index = 9;
    struct stat st;

    write_set(f, ram);
    assert_int_equal(mem_tmpdir_count(f->dirfd), 4);
    assert_int_equal(ramset_open(&set, f->dirfd, &f->err), 0);
    assert_int_equal(set->block_count, 2);
    assert_int_equal(set->memory_bytes, MAIN_SIZE + RAMSET_PAGE);
    block = ramset_find(set, "/rom@etc/x", &index);
    assert_non_null(block);
    assert_int_equal(index, 1);
    assert_int_equal(block->chunks, 1);
    assert_int_equal(block->sums[0], 0);
    assert_null(ramset_find(set, "nothing", NULL));
    block = &set->blocks[0];
    assert_string_equal(block->id, "pc.ram");
    assert_int_equal(block->page_size, 4096);
    assert_true(block->sums[0] == ramset_page_sum(ram, 0));
    assert_true(block->sums[1] ==
                ramset_page_sum(ram + 300 * RAMSET_PAGE, 300));
    assert_true(block->sums[2] ==
                ramset_page_sum(ram + MAIN_SIZE - RAMSET_PAGE, 514));
    assert_int_equal(ramset_device_read(set, &b, &f->err), 0);
    assert_int_equal(b.len, sizeof(device));
    assert_memory_equal(b.data, device, sizeof(device));
    assert_int_equal(ramset_block_open(set, 0, RAMSET_DIRECT, &fd, &f->err), 0);
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
}

static void ramset_sum_is_the_same_in_any_order(void **state)
{
    enum { PAGES = 40 };
    CLEANUP(freep) uint8_t *data = aligned_alloc(4096, PAGES * RAMSET_PAGE);
    struct ramset_map map;
    uint64_t sum, backwards = 0;

    (void)state;
    fill(data, PAGES * RAMSET_PAGE, 5);
    memset(data + 7 * RAMSET_PAGE, 0, RAMSET_PAGE);
    sum = ramset_scan(data, 1000, PAGES, &map);
    for (size_t i = PAGES; i-- > 0;) {
        assert_int_equal(ramset_map_has(&map, i), i != 7);
        if (i != 7)
            backwards += ramset_page_sum(data + i * RAMSET_PAGE, 1000 + i);
    }
    assert_true(sum == backwards);
    assert_false(ramset_map_has(&map, PAGES));
    /* the same pages one place further on are not the same chunk */
    assert_true(sum != ramset_scan(data, 1001, PAGES, &map));
}

static void ramset_runs_and_gaps_match_a_plain_model(void **state)
{
    unsigned seed = 1;

    (void)state;
    for (unsigned round = 0; round < 2000; round++) {
        size_t pages = 1 + (seed = seed * 69069u + 1) % RAMSET_CHUNK_PAGES;
        unsigned density = 1 + (seed = seed * 69069u + 1) / 65536 % 40;
        bool model[RAMSET_CHUNK_PAGES] = {false};
        struct ramset_map map = {{0}};
        size_t at = 0, first, n, seen = 0, last = SIZE_MAX;

        for (size_t i = 0; i < pages; i++) {
            seed = seed * 69069u + 1;
            model[i] = seed / 65536 % density == 0;
            if (model[i])
                ramset_map_set(&map, i);
        }
        while ((n = ramset_map_run(&map, pages, &at, &first)) > 0) {
            for (; seen < first; seen++)
                assert_false(model[seen]);
            for (; seen < first + n; seen++)
                assert_true(model[seen]);
        }
        for (; seen < pages; seen++)
            assert_false(model[seen]);
        for (size_t i = 0; i < pages; i++) {
            if (!model[i])
                continue;
            for (size_t k = last + 1;
                 last != SIZE_MAX && i - last - 1 <= RAMSET_GAP && k < i; k++)
                model[k] = true;
            last = i;
        }
        ramset_map_close_gaps(&map, pages);
        for (size_t i = 0; i < pages; i++)
            assert_int_equal(ramset_map_has(&map, i), model[i]);
    }
}

static void ramset_without_commit_leaves_no_file(void **state)
{
    struct fixture *f = *state;
    struct ramset_writer *w = NULL;

    assert_int_equal(ramset_create(&w, NULL, f->dirfd, RAMSET_DIRECT, &f->err),
                     0);
    assert_int_equal(
        ramset_add_block(w, "pc.ram", 4 * RAMSET_CHUNK, 0, NULL, &f->err), 0);
    assert_int_equal(ramset_device_append(w, device, sizeof(device), &f->err),
                     0);
    assert_int_equal(mem_tmpdir_count(f->dirfd), 2);
    ramset_writer_free(w);
    assert_int_equal(mem_tmpdir_count(f->dirfd), 0);
}

static void ramset_without_device_state_is_not_committed(void **state)
{
    struct fixture *f = *state;
    CLEANUP(ramset_writer_freep) struct ramset_writer *w = NULL;

    assert_int_equal(ramset_create(&w, NULL, f->dirfd, RAMSET_CACHED, &f->err),
                     0);
    assert_int_equal(ramset_commit(w, &f->err), QSTILL_E_FAILED);
    assert_string_equal(f->err.message, "there is no device state");
}

static void ramset_does_not_write_into_a_file_that_is_there(void **state)
{
    struct fixture *f = *state;
    CLEANUP(ramset_writer_freep) struct ramset_writer *w = NULL;

    assert_int_equal(symlinkat("/dev/null", f->dirfd, "pc.ram.ram"), 0);
    assert_int_equal(ramset_create(&w, NULL, f->dirfd, RAMSET_CACHED, &f->err),
                     0);
    assert_int_equal(
        ramset_add_block(w, "pc.ram", RAMSET_PAGE, 0, NULL, &f->err),
        QSTILL_E_BUSY);
    assert_non_null(strstr(f->err.message, "pc.ram.ram"));
}

static void ramset_add_block_keeps_its_limits(void **state)
{
    struct fixture *f = *state;
    CLEANUP(ramset_writer_freep) struct ramset_writer *w = NULL;

    assert_int_equal(ramset_create(&w, NULL, f->dirfd, RAMSET_CACHED, &f->err),
                     0);
    assert_int_equal(ramset_add_block(w, "a", 4097, 0, NULL, &f->err),
                     QSTILL_E_CORRUPT);
    assert_string_equal(
        f->err.message,
        "RAM block 'a' has 4097 bytes, which are no whole pages");
    assert_int_equal(ramset_add_block(w, "a", RAMSET_BYTES_MAX + RAMSET_PAGE, 0,
                                      NULL, &f->err),
                     QSTILL_E_CORRUPT);
    assert_non_null(strstr(f->err.message, "makes more than 17592186044416"));
    assert_int_equal(ramset_add_block(w, "a", 0, 0, NULL, &f->err), 0);
    assert_int_equal(ramset_add_block(w, "a", 0, 0, NULL, &f->err),
                     QSTILL_E_CORRUPT);
    assert_string_equal(f->err.message, "RAM block 'a' is named twice");
}

static void ramset_open_names_what_is_missing_or_short(void **state)
{
    struct fixture *f = *state;
    CLEANUP(freep) uint8_t *ram = malloc(MAIN_SIZE);
    struct ramset *set = NULL;
    CLEANUP(closep) int fd = -1;

    assert_int_equal(ramset_open(&set, f->dirfd, &f->err), QSTILL_E_CORRUPT);
    assert_string_equal(f->err.message, "memory files: sums is missing");
    write_set(f, ram);
    fd = openat(f->dirfd, "pc.ram.ram", O_RDWR | O_CLOEXEC);
    assert_int_equal(ftruncate(fd, MAIN_SIZE - 1), 0);
    assert_int_equal(ramset_open(&set, f->dirfd, &f->err), QSTILL_E_CORRUPT);
    assert_string_equal(f->err.message,
                        "memory files: pc.ram.ram is 2109439 bytes long, "
                        "2109440 are expected");
    assert_int_equal(ftruncate(fd, MAIN_SIZE), 0);
    assert_int_equal(unlinkat(f->dirfd, "%2From%40etc%2Fx.ram", 0), 0);
    assert_int_equal(ramset_open(&set, f->dirfd, &f->err), QSTILL_E_CORRUPT);
    assert_string_equal(f->err.message,
                        "memory files: %2From%40etc%2Fx.ram is missing");
    assert_int_equal(symlinkat("pc.ram.ram", f->dirfd, "%2From%40etc%2Fx.ram"),
                     0);
    assert_int_equal(ramset_open(&set, f->dirfd, &f->err),
                     QSTILL_E_PRECONDITION);
    assert_non_null(strstr(f->err.message, "symbolic link"));
}

static void ramset_device_read_finds_damage(void **state)
{
    struct fixture *f = *state;
    CLEANUP(freep) uint8_t *ram = malloc(MAIN_SIZE);
    CLEANUP(ramset_closep) struct ramset *set = NULL;
    CLEANUP(buf_fini) struct buf b = BUF_INIT;
    CLEANUP(closep) int fd = -1;

    write_set(f, ram);
    fd = openat(f->dirfd, "device.state", O_RDWR | O_CLOEXEC);
    assert_int_equal(pwrite(fd, "!", 1, 20), 1);
    assert_int_equal(ramset_open(&set, f->dirfd, &f->err), 0);
    assert_int_equal(ramset_device_read(set, &b, &f->err), QSTILL_E_CORRUPT);
    assert_string_equal(f->err.message,
                        "device.state does not match its checksum");
    assert_int_equal(b.len, 0);
}

/* ------------------------------------------------------- the bytes of sums */

static void emit_sample(struct buf *out)
{
    static uint64_t sums[] = {1, 2, 3};
    struct ramset_block blocks[] = {
        {(char *)"pc.ram", 3 * RAMSET_CHUNK, 4096, 3, sums},
        {(char *)"12345678", RAMSET_PAGE, 0, 1, sums},
    };
    struct ramset set = {-1, 2, blocks, 3 * RAMSET_CHUNK + RAMSET_PAGE, 99, 7};
    struct qstill_error err;

    assert_int_equal(sums_emit(&set, out, &err), 0);
}

static void sums_with_any_byte_changed_are_refused(void **state)
{
    struct fixture *f = *state;
    CLEANUP(buf_fini) struct buf b = BUF_INIT;
    struct ramset set;

    emit_sample(&b);
    for (size_t i = 0; i < b.len; i++) {
        b.data[i] ^= 0x40;
        assert_int_equal(sums_parse(&set, b.data, b.len, &f->err),
                         QSTILL_E_CORRUPT);
        b.data[i] ^= 0x40;
    }
    for (size_t len = 0; len < b.len; len++)
        assert_int_equal(sums_parse(&set, b.data, len, &f->err),
                         QSTILL_E_CORRUPT);
    assert_int_equal(sums_parse(&set, b.data, b.len, &f->err), 0);
    assert_int_equal(set.block_count, 2);
    assert_int_equal(set.device_len, 99);
    assert_string_equal(set.blocks[1].id, "12345678");
    assert_int_equal(set.blocks[0].sums[2], 3);
    sums_fini(&set);
}

/* Somebody who can compute the checksum writes what he likes. */
static void sums_forged_are_refused_by_their_content(void **state)
{
    static const struct {
        size_t off;
        uint64_t value;
        const char *message;
    } cases[] = {
        {SUMS_OFF_VERSION, 2, "version 2 of the checksums is not known here"},
        {SUMS_OFF_FLAGS, 1, "the checksums have flags that are not known here"},
        {SUMS_OFF_BLOCKS, 1025,
         "the checksums list 1025 RAM blocks, more than 1024"},
        {SUMS_OFF_BLOCKS, 3, "the checksums have a bad RAM block id"},
        {SUMS_OFF_BLOCKS, 1, "the checksums are followed by 40 bytes too many"},
        {SUMS_OFF_DEVICE, RAMSET_DEVICE_MAX + 1,
         "the checksums tell of a device state of 1073741825 bytes"},
        {SUMS_OFF_TOTAL, 4096,
         "the checksums' RAM blocks do not add up to their total"},
        {SUMS_HEADER, 4097,
         "RAM block 'pc.ram' has 4097 bytes, which are no whole pages"},
        {SUMS_HEADER, (uint64_t)1 << 60,
         "RAM block 'pc.ram' of 1152921504606846976 bytes makes more than "
         "17592186044416 bytes of RAM"},
        {SUMS_HEADER, (uint64_t)1 << 40,
         "the checksums end within RAM block 'pc.ram'"},
        {SUMS_HEADER + 8, (uint64_t)1 << 32,
         "the checksums have a bad RAM block"},
        {SUMS_HEADER + 16, 0, "the checksums have a bad RAM block id"},
        {SUMS_HEADER + 16, 256, "the checksums have a bad RAM block id"},
        {SUMS_HEADER + 16, 8, "the checksums have a bad RAM block id"},
    };
    struct fixture *f = *state;
    struct ramset set;

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        CLEANUP(buf_fini) struct buf b = BUF_INIT;

        emit_sample(&b);
        put_le64(b.data + cases[i].off, cases[i].value);
        put_le64(b.data + b.len - 8, sum_bytes(b.data, b.len - 8, 0));
        assert_int_equal(sums_parse(&set, b.data, b.len, &f->err),
                         QSTILL_E_CORRUPT);
        assert_string_equal(f->err.message, cases[i].message);
    }
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(ramset_names_escape_all_but_plain_bytes),
        T(ramset_names_of_long_ids_fit_and_differ),
        T(ramset_comes_back_as_it_was_written),
        T(ramset_sum_is_the_same_in_any_order),
        T(ramset_runs_and_gaps_match_a_plain_model),
        T(ramset_without_commit_leaves_no_file),
        T(ramset_without_device_state_is_not_committed),
        T(ramset_does_not_write_into_a_file_that_is_there),
        T(ramset_add_block_keeps_its_limits),
        T(ramset_open_names_what_is_missing_or_short),
        T(ramset_device_read_finds_damage),
        T(sums_with_any_byte_changed_are_refused),
        T(sums_forged_are_refused_by_their_content),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
