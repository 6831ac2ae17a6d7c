/* SPDX-License-Identifier: MIT */
/* A chain as one image: content by a second reader, every failing call, every
 * state a crash can leave, and the threads that compress. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../lib/fault_io.h"
#include "../lib/mem_tmpdir.h"
#include "../lib/naive_image.h"
#include "../lib/record_io.h"
#include "base/taskpool.h"
#include "qcow2/create.h"
#include "qcow2/flatten.h"

#define SIZE (96u << 10)
#define LEFT ".out.0123456789abcdef.flatten"

static int dir;
static char dir_path[128];
static char top[160], out[160];

/* A raw base below an overlay: bytes that can be compressed and that cannot,
 * zeros written out, a hole, an end that is no whole cluster. */
static int make_chain(void **state)
{
    struct qcow2_create_options o = QCOW2_CREATE_OPTIONS_INIT;
    uint8_t *bytes = calloc(1, SIZE + 512);
    struct qstill_error err;
    uint32_t x = 1;
    int fd;

    (void)state;
    dir = mem_tmpdir_make(dir_path);
    snprintf(top, sizeof(top), "%s/top", dir_path);
    snprintf(out, sizeof(out), "%s/out", dir_path);
    for (size_t i = 0; i < SIZE + 512; i++) {
        x = x * 1103515245u + 12345u;
        if (i < 24576)
            bytes[i] = (uint8_t)(x >> 24);
        else if (i < 49152)
            bytes[i] = (uint8_t)(i / 100);
        else if (i >= SIZE - 700)
            bytes[i] = 7;
    }
    fd = openat(dir, "base", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, 65536, 0), 65536);
    assert_int_equal(pwrite(fd, bytes + SIZE - 700, 1212, SIZE - 700), 1212);
    close(fd);
    free(bytes);
    o.virtual_size = SIZE + 512;
    o.backing = "base";
    o.backing_format = "raw";
    o.cluster_bits = 12;
    assert_int_equal(qcow2_create(io_real(), dir, "top", &o, &err), 0);
    return 0;
}

static int drop_chain(void **state)
{
    (void)state;
    mem_tmpdir_remove(dir_path, dir);
    return 0;
}

struct variant {
    enum qcow2_format format;
    bool compress;
};
static const struct variant variants[] = {
    {QCOW2_FORMAT_QCOW2, false},
    {QCOW2_FORMAT_QCOW2, true},
    {QCOW2_FORMAT_RAW, false},
};

static int flatten(const struct io *io, const struct variant *v,
                   struct qstill_error *err)
{
    struct flatten_request q = {.top = top,
                                .format = QCOW2_FORMAT_QCOW2,
                                .out = out,
                                .out_format = v->format,
                                .compress = v->compress};
    CLEANUP(flatten_closep) struct flatten *f = NULL;
    bool done = false;
    int r = flatten_open(&f, io, &q, err);

    while (r == 0 && !done)
        r = flatten_step(f, &done, err);
    return r;
}

static uint64_t hash_of(const char *name, enum qcow2_format format)
{
    return naive_hash_file(dir_path, name, format == QCOW2_FORMAT_QCOW2);
}

static int references_of(const char *name)
{
    struct naive_chain *c = naive_open(dir_path, name, true);
    int r;

    assert_non_null(c);
    r = naive_check(c);
    naive_close(c);
    return r;
}

static void flatten_reads_as_the_chain_did(void **state)
{
    uint64_t want = hash_of("top", QCOW2_FORMAT_QCOW2);

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(variants); i++) {
        const struct variant *v = &variants[i];
        struct qstill_error err;
        struct stat st;

        assert_int_equal(flatten(io_real(), v, &err), 0);
        assert_true(hash_of("out", v->format) == want);
        if (v->format == QCOW2_FORMAT_QCOW2)
            assert_int_equal(references_of("out"), 0);
        /* 48 KiB and a bit of its 96 are bytes */
        assert_int_equal(fstatat(dir, "out", &st, 0), 0);
        assert_in_range(st.st_blocks * 512, 28 << 10,
                        v->format == QCOW2_FORMAT_RAW ? 60 << 10 : 84 << 10);
        assert_int_equal(mem_tmpdir_count(dir), 3);
        assert_int_equal(unlinkat(dir, "out", 0), 0);
    }
}

static void flatten_compressed_is_smaller_and_the_same_each_time(void **state)
{
    struct qstill_error err;
    struct stat plain, packed;
    uint64_t hash[2];

    (void)state;
    assert_int_equal(flatten(io_real(), &variants[0], &err), 0);
    assert_int_equal(fstatat(dir, "out", &plain, 0), 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(unlinkat(dir, "out", 0), 0);
        assert_int_equal(flatten(io_real(), &variants[1], &err), 0);
        assert_int_equal(fstatat(dir, "out", &packed, 0), 0);
        hash[i] = hash_of("out", QCOW2_FORMAT_RAW); /* of the file itself */
    }
    assert_true(hash[0] != 0 && hash[0] == hash[1]);
    assert_true(packed.st_blocks < plain.st_blocks);
}

static void flatten_never_replaces_a_file(void **state)
{
    struct qstill_error err;

    (void)state;
    close(openat(dir, "out", O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    assert_int_equal(flatten(io_real(), &variants[0], &err), QSTILL_E_BUSY);
    assert_non_null(strstr(err.message, "exists"));
    assert_int_equal(mem_tmpdir_count(dir), 3);
}

static void flatten_removes_what_a_dead_one_has_left(void **state)
{
    struct qstill_error err;

    (void)state;
    close(openat(dir, LEFT, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    assert_int_equal(flatten(io_real(), &variants[0], &err), 0);
    assert_int_equal(mem_tmpdir_count(dir), 3);
}

static void flatten_leaves_a_living_one_alone(void **state)
{
    int fd = openat(dir, LEFT, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    struct qstill_error err;

    (void)state;
    assert_int_equal(image_lock(fd, "it", IMAGE_LOCK_WRITE, &err), 0);
    assert_int_equal(flatten(io_real(), &variants[0], &err), QSTILL_E_BUSY);
    assert_int_equal(faccessat(dir, LEFT, F_OK, 0), 0);
    assert_int_equal(faccessat(dir, "out", F_OK, 0), -1);
    close(fd);
}

static void flatten_of_an_image_that_is_written_is_busy(void **state)
{
    int fd = openat(dir, "top", O_RDWR | O_CLOEXEC);
    struct qstill_error err;

    (void)state;
    assert_int_equal(image_lock(fd, "it", IMAGE_LOCK_WRITE, &err), 0);
    assert_int_equal(flatten(io_real(), &variants[0], &err), QSTILL_E_BUSY);
    close(fd);
}

static void flatten_raw_is_not_compressed(void **state)
{
    static const struct variant v = {QCOW2_FORMAT_RAW, true};
    struct qstill_error err;

    (void)state;
    assert_int_equal(flatten(io_real(), &v, &err), QSTILL_E_USAGE);
}

static void flatten_that_fails_anywhere_leaves_no_file(void **state)
{
    uint64_t want = hash_of("top", QCOW2_FORMAT_QCOW2);

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(variants); i++) {
        long n = 0, fails = 0;

        for (;;) {
            struct fault_io f;
            struct qstill_error err;
            int r;

            fault_io_init(&f, NULL);
            f.kinds = FAULT_WRITE | FAULT_SYNC | FAULT_TRUNCATE | FAULT_ATTR |
                      FAULT_OPEN | FAULT_READ;
            f.at = ++n;
            f.error = 28; /* ENOSPC */
            r = flatten(&f.io, &variants[i], &err);
            if (f.failed == 0)
                break;
            if (r < 0) {
                fails++;
                /* the last sync is of the directory: the name is there */
                assert_true(faccessat(dir, "out", F_OK, 0) < 0 ||
                            strstr(err.message, "is complete"));
                assert_int_equal(mem_tmpdir_count(dir),
                                 2 + (faccessat(dir, "out", F_OK, 0) == 0));
            }
            unlinkat(dir, "out", 0);
            assert_true(hash_of("top", QCOW2_FORMAT_QCOW2) == want);
        }
        assert_true(fails > 10);
        unlinkat(dir, "out", 0);
    }
}

static void flatten_cut_anywhere_is_there_whole_or_not_at_all(void **state)
{
    uint64_t want = hash_of("top", QCOW2_FORMAT_QCOW2);

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(variants); i++) {
        struct record *rec = record_new(dir_path);
        struct qstill_error err;
        size_t there = 0;

        assert_int_equal(flatten(record_io(rec), &variants[i], &err), 0);
        assert_null(record_bypassed(rec));
        for (size_t n = 0; n <= record_count(rec); n++)
            for (int loss = 0; loss < RECORD_LOSS_KINDS; loss++) {
                record_replay(rec, n, loss, n + 1);
                assert_true(hash_of("top", QCOW2_FORMAT_QCOW2) == want);
                if (faccessat(dir, "out", F_OK, 0) < 0)
                    continue;
                there++;
                assert_true(hash_of("out", variants[i].format) == want);
            }
        assert_true(there > 0);
        record_replay(rec, record_count(rec), RECORD_LOSE_ALL, 1);
        assert_true(hash_of("out", variants[i].format) == want);
        record_free(rec);
        unlinkat(dir, "out", 0);
    }
}

static void flatten_closed_early_leaves_no_file(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(variants); i++) {
        struct flatten_request q = {.top = top,
                                    .format = QCOW2_FORMAT_QCOW2,
                                    .out = out,
                                    .out_format = variants[i].format,
                                    .compress = variants[i].compress};
        struct flatten *f;
        struct qstill_error err;
        bool done;

        assert_int_equal(flatten_open(&f, io_real(), &q, &err), 0);
        assert_int_equal(flatten_step(f, &done, &err), 0);
        assert_int_equal(flatten_step(f, &done, &err), 0);
        assert_false(done);
        flatten_close(f);
        assert_int_equal(mem_tmpdir_count(dir), 2);
    }
}

/* ------------------------------------------------------------------ threads */

struct sum {
    struct task task;
    unsigned in, out;
};

static void square(struct task *t)
{
    struct sum *s = (struct sum *)t;

    s->out = s->in * s->in;
}

static void taskpool_gives_every_task_back_done(void **state)
{
    static struct sum sums[1000];
    int fd = eventfd(0, EFD_CLOEXEC);
    struct taskpool *p;
    struct qstill_error err;
    unsigned got = 0;

    (void)state;
    assert_int_equal(taskpool_open(&p, 4, fd, &err), 0);
    assert_in_range(taskpool_threads(p), 1, 4);
    for (unsigned i = 0; i < ARRAY_LEN(sums); i++) {
        sums[i] = (struct sum){.task.run = square, .in = i};
        taskpool_submit(p, &sums[i].task);
    }
    while (got < ARRAY_LEN(sums)) {
        eventfd_t n;
        struct task *t;

        assert_int_equal(eventfd_read(fd, &n), 0); /* sleeps */
        while ((t = taskpool_take(p))) {
            struct sum *s = (struct sum *)t;

            assert_int_equal(s->out, s->in * s->in);
            got++;
        }
    }
    assert_null(taskpool_take(p));
    taskpool_close(p);
    close(fd);
}

static void taskpool_closes_with_tasks_that_never_ran(void **state)
{
    static struct sum sums[1000];
    int fd = eventfd(0, EFD_CLOEXEC);
    struct taskpool *p;
    struct qstill_error err;

    (void)state;
    assert_int_equal(taskpool_open(&p, 1, fd, &err), 0);
    for (unsigned i = 0; i < ARRAY_LEN(sums); i++) {
        sums[i] = (struct sum){.task.run = square, .in = i};
        taskpool_submit(p, &sums[i].task);
    }
    taskpool_close(p);
    taskpool_close(NULL);
    close(fd);
}

#define WITH_CHAIN(f) cmocka_unit_test_setup_teardown(f, make_chain, drop_chain)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_CHAIN(flatten_reads_as_the_chain_did),
        WITH_CHAIN(flatten_compressed_is_smaller_and_the_same_each_time),
        WITH_CHAIN(flatten_never_replaces_a_file),
        WITH_CHAIN(flatten_removes_what_a_dead_one_has_left),
        WITH_CHAIN(flatten_leaves_a_living_one_alone),
        WITH_CHAIN(flatten_of_an_image_that_is_written_is_busy),
        WITH_CHAIN(flatten_raw_is_not_compressed),
        WITH_CHAIN(flatten_that_fails_anywhere_leaves_no_file),
        WITH_CHAIN(flatten_cut_anywhere_is_there_whole_or_not_at_all),
        WITH_CHAIN(flatten_closed_early_leaves_no_file),
        cmocka_unit_test(taskpool_gives_every_task_back_done),
        cmocka_unit_test(taskpool_closes_with_tasks_that_never_ran),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
