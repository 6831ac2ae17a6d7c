/* SPDX-License-Identifier: MIT */
/* A file that nobody else has is emptied; one that somebody reads is not. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "../lib/mem_tmpdir.h"
#include "base/giveback.h"

#define SIZE (24 << 20)

struct fixture {
    char path[128];
    int dirfd;
    int watch; /* O_PATH: sees the file, is no open of it */
};

static void make(struct fixture *f, size_t size)
{
    char *data = malloc(SIZE);
    int fd = openat(f->dirfd, "file", O_WRONLY | O_CREAT | O_TRUNC, 0600);

    assert_non_null(data);
    memset(data, 7, SIZE);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, size), (ssize_t)size);
    free(data);
    close(fd);
    f->watch = openat(f->dirfd, "file", O_PATH);
    assert_true(f->watch >= 0);
}

static off_t size_now(const struct fixture *f)
{
    struct stat st;

    assert_int_equal(fstat(f->watch, &st), 0);
    return st.st_size;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    f->dirfd = mem_tmpdir_make(f->path);
    f->watch = -1;
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    if (f->watch >= 0)
        close(f->watch);
    mem_tmpdir_remove(f->path, f->dirfd);
    free(f);
    return 0;
}

static void remove_it(struct fixture *f)
{
    int fd = giveback_open(f->dirfd, "file");

    assert_true(fd >= 0);
    assert_int_equal(unlinkat(f->dirfd, "file", 0), 0);
    giveback_close(fd);
}

static void is_emptied(void **state)
{
    struct fixture *f = *state;

    make(f, SIZE);
    remove_it(f);
    assert_int_equal(size_now(f), 0);
}

static void stays_for_a_reader(void **state)
{
    struct fixture *f = *state;
    int reader;

    make(f, SIZE);
    reader = openat(f->dirfd, "file", O_RDONLY);
    assert_true(reader >= 0);
    remove_it(f);
    assert_int_equal(size_now(f), SIZE);
    close(reader);
}

static void stays_under_another_name(void **state)
{
    struct fixture *f = *state;

    make(f, SIZE);
    assert_int_equal(linkat(f->dirfd, "file", f->dirfd, "other", 0), 0);
    remove_it(f);
    assert_int_equal(size_now(f), SIZE);
    assert_int_equal(unlinkat(f->dirfd, "other", 0), 0);
}

static void is_left_to_close(void **state)
{
    struct fixture *f = *state;

    make(f, 4096);
    assert_int_equal(giveback_open(f->dirfd, "file"), -1);
    assert_int_equal(unlinkat(f->dirfd, "file", 0), 0);
    assert_int_equal(giveback_open(f->dirfd, "file"), -1);
    giveback_close(-1);
    assert_int_equal(symlinkat("/dev/null", f->dirfd, "link"), 0);
    assert_int_equal(giveback_open(f->dirfd, "link"), -1);
    assert_int_equal(unlinkat(f->dirfd, "link", 0), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(is_emptied, setup, teardown),
        cmocka_unit_test_setup_teardown(stays_for_a_reader, setup, teardown),
        cmocka_unit_test_setup_teardown(stays_under_another_name, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(is_left_to_close, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
