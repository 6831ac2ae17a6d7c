/* SPDX-License-Identifier: MIT */
/* The recorder and the failing table prove the engine: so they are proved. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "../lib/fault_io.h"
#include "../lib/memio_dir.h"
#include "../lib/record_io.h"

struct world {
    char *dir;
    int dirfd;
    struct record *r;
    const struct io *io;
};

static int setup(void **state)
{
    struct world *w = calloc(1, sizeof(*w));

    w->dir = memio_dir_new();
    memio_put(memio_path(w->dir, "old"), "AAAA", 4);
    w->dirfd = open(w->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    w->r = record_new(w->dir);
    w->io = record_io(w->r);
    *state = w;
    return 0;
}

static int teardown(void **state)
{
    struct world *w = *state;

    record_free(w->r);
    close(w->dirfd);
    memio_dir_remove(w->dir);
    free(w);
    return 0;
}

static int open_it(struct world *w, const char *name, int flags)
{
    struct qstill_error err;
    int fd = -1;

    assert_int_equal(io_openat(w->io, w->dirfd, name, flags, 0600, &fd, &err),
                     0);
    return fd;
}

/* The file's content after a cut, as a string; "-" when it is not there. */
static char *after(struct world *w, size_t count, enum record_loss loss,
                   uint64_t seed, const char *name)
{
    uint8_t *data;
    size_t len;

    record_replay(w->r, count, loss, seed);
    data = memio_get(memio_path(w->dir, name), &len);
    if (!data)
        return strdup("-");
    data[len] = '\0';
    return (char *)data;
}

#define assert_after(w, count, loss, name, want)                               \
    do {                                                                       \
        char *got_ = after(w, count, loss, 1, name);                           \
        assert_string_equal(got_, want);                                       \
        free(got_);                                                            \
    } while (0)

static void every_prefix_of_writes_is_replayed(void **state)
{
    struct world *w = *state;
    CLEANUP(closep) int fd = open_it(w, "old", O_RDWR);
    struct qstill_error err;

    assert_int_equal(io_write_full(w->io, fd, "BB", 2, 0, &err), 0);
    assert_int_equal(io_write_full(w->io, fd, "CC", 2, 6, &err), 0);
    assert_int_equal(io_truncate(w->io, fd, 3, "old", &err), 0);
    assert_int_equal(record_count(w->r), 3);
    assert_null(record_bypassed(w->r));
    assert_after(w, 0, RECORD_KEEP_ALL, "old", "AAAA");
    assert_after(w, 1, RECORD_KEEP_ALL, "old", "BBAA");
    assert_after(w, 3, RECORD_KEEP_ALL, "old", "BBA");
    assert_string_equal(record_describe(w->r, 1), "write old 6+2");
}

static void unsynced_writes_are_lost_and_synced_ones_kept(void **state)
{
    struct world *w = *state;
    CLEANUP(closep) int fd = open_it(w, "old", O_RDWR);
    struct qstill_error err;

    assert_int_equal(io_write_full(w->io, fd, "B", 1, 0, &err), 0);
    assert_int_equal(io_datasync(w->io, fd, "old", &err), 0);
    assert_int_equal(io_write_full(w->io, fd, "C", 1, 1, &err), 0);
    assert_after(w, 1, RECORD_LOSE_ALL, "old", "AAAA");
    assert_after(w, 2, RECORD_LOSE_ALL, "old", "BAAA");
    assert_after(w, 3, RECORD_LOSE_ALL, "old", "BAAA");
    assert_after(w, 3, RECORD_ONE_KEPT, "old", "BCAA");
    assert_after(w, 3, RECORD_ONE_LOST, "old", "BAAA");
    assert_true(record_is_sync(w->r, 1));
}

static void subsets_reach_every_combination(void **state)
{
    struct world *w = *state;
    CLEANUP(closep) int fd = open_it(w, "old", O_RDWR);
    struct qstill_error err;
    unsigned seen = 0;

    assert_int_equal(io_write_full(w->io, fd, "B", 1, 0, &err), 0);
    assert_int_equal(io_write_full(w->io, fd, "C", 1, 1, &err), 0);
    for (uint64_t seed = 1; seed < 100; seed++) {
        char *got = after(w, 2, RECORD_SUBSET, seed, "old");

        assert_true((got[0] == 'A' || got[0] == 'B') &&
                    (got[1] == 'A' || got[1] == 'C'));
        seen |= 1u << ((got[0] == 'B') | (got[1] == 'C') << 1);
        free(got);
    }
    assert_int_equal(seen, 15);
}

static void torn_writes_tear_at_sectors_only(void **state)
{
    struct world *w = *state;
    CLEANUP(closep) int fd = open_it(w, "old", O_RDWR);
    struct qstill_error err;
    char block[1024];
    unsigned seen = 0;

    memset(block, 'D', sizeof(block));
    assert_int_equal(io_write_full(w->io, fd, block, 1024, 0, &err), 0);
    for (uint64_t seed = 1; seed < 100; seed++) {
        uint8_t *got = (uint8_t *)after(w, 1, RECORD_TORN, seed, "old");
        struct stat st;
        bool first = got[0] == 'D', second;

        stat(memio_path(w->dir, "old"), &st);
        second = st.st_size == 1024;
        assert_true(second || st.st_size == (first ? 512 : 4));
        if (second)
            assert_int_equal(got[512], 'D');
        if (first)
            assert_int_equal(got[511], 'D');
        seen |= 1u << (first | second << 1);
        free(got);
    }
    assert_int_equal(seen, 15);
}

static void names_survive_in_order_and_by_directory_sync(void **state)
{
    struct world *w = *state;
    CLEANUP(closep) int fd = open_it(w, "new", O_RDWR | O_CREAT | O_EXCL);
    struct qstill_error err;

    assert_int_equal(io_write_full(w->io, fd, "N", 1, 0, &err), 0);
    assert_int_equal(io_datasync(w->io, fd, "new", &err), 0);
    assert_int_equal(
        io_rename(w->io, w->dirfd, "new", w->dirfd, "old", 0, &err), 0);
    assert_int_equal(io_unlink(w->io, w->dirfd, "old", &err), 0);
    assert_null(record_bypassed(w->r));
    /* 0 create, 1 write, 2 sync, 3 rename, 4 sync dir, 5 unlink, 6 sync dir */
    assert_int_equal(record_count(w->r), 7);
    assert_after(w, 3, RECORD_LOSE_ALL, "new", "-");
    assert_after(w, 4, RECORD_LOSE_ALL, "old", "AAAA");
    assert_after(w, 4, RECORD_KEEP_ALL, "old", "N");
    assert_after(w, 5, RECORD_LOSE_ALL, "old", "N");
    assert_after(w, 5, RECORD_LOSE_ALL, "new", "-");
    assert_after(w, 6, RECORD_LOSE_ALL, "old", "N");
    assert_after(w, 7, RECORD_LOSE_ALL, "old", "-");
}

static void a_replay_keeps_inodes_and_times(void **state)
{
    struct world *w = *state;
    CLEANUP(closep) int fd = open_it(w, "old", O_RDWR);
    struct qstill_error err;
    struct stat before, then, after;

    stat(memio_path(w->dir, "old"), &before);
    assert_int_equal(io_write_full(w->io, fd, "B", 1, 0, &err), 0);
    stat(memio_path(w->dir, "old"), &then);
    record_replay(w->r, 0, RECORD_KEEP_ALL, 0);
    stat(memio_path(w->dir, "old"), &after);
    assert_int_equal(after.st_ino, before.st_ino);
    assert_memory_equal(&after.st_mtim, &before.st_mtim, sizeof(after.st_mtim));
    record_replay(w->r, 1, RECORD_KEEP_ALL, 0);
    stat(memio_path(w->dir, "old"), &after);
    assert_int_equal(after.st_ino, before.st_ino);
    assert_memory_equal(&after.st_mtim, &then.st_mtim, sizeof(after.st_mtim));
}

static nlink_t names_of(struct world *w, const char *name)
{
    struct stat st;

    assert_int_equal(stat(memio_path(w->dir, name), &st), 0);
    return st.st_nlink;
}

static void a_file_has_no_second_name(void **state)
{
    struct world *w = *state;
    CLEANUP(closep) int fd = open_it(w, "new", O_RDWR | O_CREAT | O_EXCL);
    struct qstill_error err;

    assert_int_equal(names_of(w, "old"), 1);
    assert_int_equal(names_of(w, "new"), 1);
    assert_int_equal(
        io_rename(w->io, w->dirfd, "new", w->dirfd, "old", 0, &err), 0);
    assert_int_equal(names_of(w, "old"), 1);
    assert_after(w, 1, RECORD_KEEP_ALL, "old", "AAAA");
    assert_int_equal(names_of(w, "old"), 1);
    assert_int_equal(names_of(w, "new"), 1);
}

static ino_t inode_of(struct world *w, const char *name)
{
    struct stat st;

    assert_int_equal(stat(memio_path(w->dir, name), &st), 0);
    return st.st_ino;
}

static void what_was_removed_without_a_record_comes_back(void **state)
{
    struct world *w = *state;
    const struct io *io = record_keeping_io(w->r);
    ino_t inode = inode_of(w, "old");
    struct qstill_error err;

    memio_put(memio_path(w->dir, "another"), "B", 1);
    assert_int_equal(io_unlink(io, w->dirfd, "old", &err), 0);
    assert_after(w, 0, RECORD_KEEP_ALL, "old", "AAAA");
    assert_int_equal(inode_of(w, "old"), inode);
    memio_put(memio_path(w->dir, "another"), "B", 1);
    assert_int_equal(
        io_rename(io, w->dirfd, "another", w->dirfd, "old", 0, &err), 0);
    assert_int_not_equal(inode_of(w, "old"), inode);
    assert_after(w, 0, RECORD_KEEP_ALL, "old", "AAAA");
    assert_int_equal(inode_of(w, "old"), inode);
    assert_int_equal(names_of(w, "old"), 1);
    assert_int_equal(record_count(w->r), 0);
}

static void a_nested_record_leaves_the_outer_one_its_files(void **state)
{
    struct world *w = *state;
    CLEANUP(closep) int fd = open_it(w, "new", O_RDWR | O_CREAT | O_EXCL);
    ino_t old = inode_of(w, "old"), new = inode_of(w, "new");
    struct qstill_error err;
    struct record *inner;

    record_replay(w->r, 1, RECORD_KEEP_ALL, 0);
    inner = record_nested(w->r);
    for (int i = 0; i < 2; i++) {
        const struct io *io = i ? record_keeping_io(inner) : record_io(inner);
        CLEANUP(closep) int own = -1;

        assert_int_equal(
            io_openat(io, w->dirfd, "own", O_RDWR | O_CREAT, 0600, &own, &err),
            0);
        assert_int_equal(io_unlink(io, w->dirfd, "own", &err), 0);
        assert_int_equal(io_unlink(io, w->dirfd, "old", &err), 0);
        assert_int_equal(
            io_rename(io, w->dirfd, "new", w->dirfd, "old", 0, &err), 0);
        record_replay(inner, 0, RECORD_KEEP_ALL, 0);
        assert_int_equal(inode_of(w, "old"), old);
        assert_int_equal(inode_of(w, "new"), new);
    }
    record_free(inner);
    assert_after(w, 0, RECORD_KEEP_ALL, "old", "AAAA");
    assert_after(w, 1, RECORD_KEEP_ALL, "new", "");
    assert_int_equal(inode_of(w, "old"), old);
    assert_int_equal(inode_of(w, "new"), new);
}

static void a_name_made_again_is_another_file(void **state)
{
    struct world *w = *state;
    struct qstill_error err;

    for (int i = 0; i < 20; i++) {
        CLEANUP(closep) int fd = open_it(w, "t", O_RDWR | O_CREAT | O_EXCL);

        assert_int_equal(io_write_full(w->io, fd, "XYZ", i % 3 + 1u, 0, &err),
                         0);
        assert_int_equal(io_unlink(w->io, w->dirfd, "t", &err), 0);
    }
    assert_null(record_bypassed(w->r));
    assert_after(w, 2, RECORD_KEEP_ALL, "t", "X");
    assert_after(w, 6, RECORD_KEEP_ALL, "t", "XY");
}

static void what_goes_past_the_table_is_told(void **state)
{
    struct world *w = *state;

    memio_put(memio_path(w->dir, "sneaky"), "x", 1);
    assert_string_equal(record_bypassed(w->r),
                        "sneaky was made past the table");
    unlink(memio_path(w->dir, "sneaky"));
    memio_put(memio_path(w->dir, "old"), "AABA", 4);
    assert_string_equal(record_bypassed(w->r),
                        "old was written past the table");
    unlink(memio_path(w->dir, "old"));
    assert_string_equal(record_bypassed(w->r),
                        "0 files there, 1 were recorded");
}

static void the_nth_call_fails_with_its_errno(void **state)
{
    struct world *w = *state;
    CLEANUP(closep) int fd = -1;
    struct qstill_error err;
    struct fault_io f;

    fault_io_init(&f, w->io);
    f.kinds = FAULT_WRITE | FAULT_SYNC;
    f.at = 2;
    f.error = ENOSPC;
    assert_int_equal(io_openat(&f.io, w->dirfd, "old", O_RDWR, 0, &fd, &err),
                     0);
    assert_int_equal(io_write_full(&f.io, fd, "B", 1, 0, &err), 0);
    assert_int_equal(io_datasync(&f.io, fd, "old", &err), QSTILL_E_NO_SPACE);
    assert_string_equal(err.message,
                        "cannot make old durable: No space left on device");
    assert_int_equal(io_datasync(&f.io, fd, "old", &err), 0);
    assert_int_equal(f.seen, 3);
    assert_int_equal(f.failed, 1);
    f.onwards = true;
    f.at = 4;
    f.error = EIO;
    assert_int_equal(io_datasync(&f.io, fd, "old", &err), QSTILL_E_FAILED);
    assert_int_equal(io_datasync(&f.io, fd, "old", &err), QSTILL_E_FAILED);
    assert_int_equal(record_count(w->r), 2); /* a write, a sync */
}

static void a_short_write_is_continued(void **state)
{
    struct world *w = *state;
    CLEANUP(closep) int fd = open_it(w, "old", O_RDWR);
    struct qstill_error err;
    struct fault_io f;

    fault_io_init(&f, w->io);
    f.kinds = FAULT_WRITE;
    f.at = 1;
    assert_int_equal(io_write_full(&f.io, fd, "BCD", 3, 0, &err), 0);
    assert_int_equal(record_count(w->r), 2);
    assert_after(w, 1, RECORD_KEEP_ALL, "old", "BAAA");
    assert_after(w, 2, RECORD_KEEP_ALL, "old", "BCDA");
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(every_prefix_of_writes_is_replayed),
        T(unsynced_writes_are_lost_and_synced_ones_kept),
        T(subsets_reach_every_combination),
        T(torn_writes_tear_at_sectors_only),
        T(names_survive_in_order_and_by_directory_sync),
        T(a_replay_keeps_inodes_and_times),
        T(a_file_has_no_second_name),
        T(what_was_removed_without_a_record_comes_back),
        T(a_nested_record_leaves_the_outer_one_its_files),
        T(a_name_made_again_is_another_file),
        T(what_goes_past_the_table_is_told),
        T(the_nth_call_fails_with_its_errno),
        T(a_short_write_is_continued),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
