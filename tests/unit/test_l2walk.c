/* SPDX-License-Identifier: MIT */
/* L2 tables that lie mostly in holes of the file: what is data is read and
 * visited, once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../lib/mem_tmpdir.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "qcow2/l2walk.h"

enum { TABLES = 24, BLOCK = 4096 };

static int dir;
static char dir_path[128];
static struct io counting;
static struct io_ops ops;
static uint64_t bytes_read;
static struct image image;
static uint64_t l1[TABLES];
static struct aio *aio;
static uint8_t *seen[TABLES]; /* as visited; what is not is zeros */
static size_t visits, visited;

static ssize_t count_read(const struct io *io, int fd, void *data, size_t len,
                          uint64_t off)
{
    ssize_t n = io_real()->ops->pread(io, fd, data, len, off);

    bytes_read += n > 0 ? (uint64_t)n : 0;
    return n;
}

static int setup(void **state)
{
    struct qstill_error err;

    (void)state;
    dir = mem_tmpdir_make(dir_path);
    ops = *io_real()->ops;
    ops.pread = count_read;
    counting = (struct io){.ops = &ops};
    image = (struct image){.io = &counting, .path = dir_path};
    image.fd = openat(dir, "image", O_RDWR | O_CREAT | O_EXCL, 0600);
    assert_true(image.fd >= 0);
    assert_int_equal(aio_open(&aio, &counting, NULL, &err), 0);
    bytes_read = visits = visited = 0;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    for (size_t i = 0; i < TABLES; i++)
        free(take_ptr(&seen[i]));
    aio_close(aio);
    close(image.fd);
    mem_tmpdir_remove(dir_path, dir);
    return 0;
}

static void lay_out(uint64_t cluster_size, bool backwards)
{
    image.cluster_size = cluster_size;
    image.info.file_size = (TABLES + 1) * cluster_size;
    assert_int_equal(ftruncate(image.fd, (off_t)image.info.file_size), 0);
    for (size_t i = 0; i < TABLES; i++)
        l1[i] = (1 + (backwards ? TABLES - 1 - i : i)) * cluster_size;
}

static void put(size_t table, uint64_t at, uint64_t value)
{
    uint8_t entry[8];

    put_be64(entry, value);
    assert_int_equal(pwrite(image.fd, entry, 8, (off_t)(l1[table] + at)), 8);
}

static int visit(void *user, uint64_t i, size_t from, const uint8_t *entries,
                 size_t len, struct qstill_error *err)
{
    (void)user;
    (void)err;
    assert_true(i < TABLES && from % 16 == 0 && len > 0);
    assert_true(from + len <= image.cluster_size);
    if (!seen[i])
        seen[i] = calloc(1, image.cluster_size);
    for (size_t k = 0; k < len; k++)
        assert_int_equal(seen[i][from + k], 0); /* not twice */
    memcpy(seen[i] + from, entries, len);
    visits++;
    visited += len;
    return 0;
}

static void walk(bool whole)
{
    struct l2walk w = {.img = &image,
                       .aio = aio,
                       .l1 = l1,
                       .l1_size = TABLES,
                       .whole = whole,
                       .visit = visit};
    uint8_t *want = malloc(image.cluster_size);
    static const uint8_t zeros[BLOCK];
    struct qstill_error err;

    assert_int_equal(l2walk(&w, &err), 0);
    for (size_t i = 0; i < TABLES; i++) {
        ssize_t n = pread(image.fd, want, image.cluster_size, (off_t)l1[i]);

        assert_true(n >= 0);
        memset(want + n, 0, image.cluster_size - (size_t)n);
        for (size_t k = 0; !seen[i] && k < image.cluster_size; k += 512)
            assert_memory_equal(want + k, zeros, 512);
        if (seen[i])
            assert_memory_equal(seen[i], want, image.cluster_size);
    }
    free(want);
}

/* Here and there, at both ends, and none in some. */
static void fill_a_few(void)
{
    for (size_t i = 0; i < TABLES; i++) {
        if (i % 5 == 4)
            continue;
        put(i, 8 * (i + 1), 1);
        if (i % 2)
            put(i, image.cluster_size - 8, 2);
        if (i % 3 == 0)
            put(i, image.cluster_size / 2, 3);
    }
}

static void of_large_tables_the_data_is_read(void **state)
{
    (void)state;
    for (int backwards = 0; backwards < 2; backwards++) {
        lay_out(2 << 20, backwards);
        fill_a_few();
        walk(false);
        assert_true(bytes_read <= 64 * BLOCK);
        assert_int_equal(bytes_read, visited);
        teardown(NULL);
        setup(NULL);
    }
}

static void short_holes_are_read(void **state)
{
    (void)state;
    lay_out(2 << 20, false);
    for (uint64_t at = 0; at < image.cluster_size; at += 8 * BLOCK)
        put(7, at, at + 1);
    walk(false);
    assert_int_equal(visits, 1);
}

static void small_tables_are_read_whole(void **state)
{
    (void)state;
    lay_out(64 << 10, true);
    fill_a_few();
    walk(false);
    assert_int_equal(visited, visits * image.cluster_size);
}

static void who_wants_them_whole_gets_them(void **state)
{
    (void)state;
    lay_out(2 << 20, false);
    fill_a_few();
    walk(true);
    assert_int_equal(visited, visits * image.cluster_size);
}

static void the_end_of_the_file_may_cut_one(void **state)
{
    (void)state;
    for (int cut = 0; cut < 2; cut++) {
        lay_out(cut ? 2 << 20 : 64 << 10, false);
        put(TABLES - 1, 8 * 600, 5);
        assert_int_equal(
            ftruncate(image.fd, (off_t)l1[TABLES - 1] + 8 * 601 + 3), 0);
        walk(false);
        assert_int_equal(get_be64(seen[TABLES - 1] + 8 * 600), 5);
        teardown(NULL);
        setup(NULL);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(of_large_tables_the_data_is_read, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(short_holes_are_read, setup, teardown),
        cmocka_unit_test_setup_teardown(small_tables_are_read_whole, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(who_wants_them_whole_gets_them, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(the_end_of_the_file_may_cut_one, setup,
                                        teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
