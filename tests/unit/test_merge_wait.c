/* SPDX-License-Identifier: MIT */
/* Whoever waits for what a merge or a flatten offers to wait for is woken,
 * whoever does not want to wait until one has read its tables need not, and
 * whoever wants the image meanwhile has to. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "../lib/mem_tmpdir.h"
#include "qcow2/create.h"
#include "qcow2/flatten.h"
#include "qcow2/lock.h"
#include "qcow2/merge.h"

#define SIZE (3u << 20)

/* Longer than any step takes; a lost event fails the test, not the clock. */
#define PATIENCE_MS 20000

static int dir;
static char dir_path[128];
static char top[160], base[160], out[160];

static int make_chain(void **state)
{
    struct qcow2_create_options o = QCOW2_CREATE_OPTIONS_INIT;
    static uint8_t bytes[SIZE];
    struct qstill_error err;
    int fd;

    (void)state;
    dir = mem_tmpdir_make(dir_path);
    snprintf(top, sizeof(top), "%s/top", dir_path);
    snprintf(base, sizeof(base), "%s/base", dir_path);
    snprintf(out, sizeof(out), "%s/out", dir_path);
    memset(bytes, 0x5a, sizeof(bytes));
    fd = openat(dir, "base", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, SIZE, 0), SIZE);
    close(fd);
    o.virtual_size = SIZE;
    o.backing = "base";
    o.backing_format = "raw";
    assert_int_equal(qcow2_create(io_real(), dir, "top", &o, &err), 0);
    return 0;
}

static int drop_chain(void **state)
{
    (void)state;
    mem_tmpdir_remove(dir_path, dir);
    return 0;
}

/* -1: work is left now. */
static void is_woken(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};

    if (fd >= 0)
        assert_int_equal(poll(&p, 1, PATIENCE_MS), 1);
}

static void a_merge_wakes_who_waits(void **state)
{
    struct merge_request q = MERGE_REQUEST_INIT;
    const char *drop[] = {base};
    struct qstill_error err;
    struct merge *m;
    bool done = false;

    (void)state;
    q.top = top;
    q.drop = drop;
    q.drop_count = 1;
    assert_int_equal(merge_open(&m, io_real(), &q, &err), 0);
    while (!done) {
        is_woken(merge_fd(m));
        assert_int_equal(merge_step(m, &done, &err), 0);
    }
    merge_close(m);
}

static void a_flatten_wakes_who_waits(void **state)
{
    struct flatten_request q = {.top = top,
                                .format = QCOW2_FORMAT_QCOW2,
                                .out = out,
                                .out_format = QCOW2_FORMAT_QCOW2};
    struct qstill_error err;
    struct flatten *f;
    bool done = false;

    (void)state;
    for (int compress = 0; compress < 2; compress++) {
        q.compress = compress;
        assert_int_equal(flatten_open(&f, io_real(), &q, &err), 0);
        for (done = false; !done;) {
            is_woken(flatten_fd(f));
            assert_int_equal(flatten_step(f, &done, &err), 0);
        }
        flatten_close(f);
        assert_int_equal(unlinkat(dir, "out", 0), 0);
    }
}

/* As QEMU asks before it writes to an image. */
static int ask_for_top(void)
{
    struct qstill_error ignored;
    int fd = open(top, O_RDWR | O_CLOEXEC), r;

    assert_true(fd >= 0);
    r = image_lock_look(fd, top, IMAGE_LOCK_WRITE, &ignored);
    close(fd);
    return r;
}

/* Whatever file has the top's name by then: what is given back to the
 * filesystem last would be what a VM has just written. */
static void nobody_gets_the_top_before_the_end(void **state)
{
    static const enum merge_direction ways[] = {MERGE_UP, MERGE_NEW};
    const char *drop[] = {base};
    struct qstill_error err;
    struct merge *m;

    for (size_t i = 0; i < 2; i++) {
        struct merge_request q = MERGE_REQUEST_INIT;
        size_t steps = 0;

        if (i > 0) {
            drop_chain(state);
            make_chain(state);
        }
        q.top = top;
        q.drop = drop;
        q.drop_count = 1;
        q.direction = ways[i];
        assert_int_equal(merge_open(&m, io_real(), &q, &err), 0);
        for (bool done = false; !done; steps++) {
            assert_int_equal(ask_for_top(), QSTILL_E_BUSY);
            assert_int_equal(merge_step(m, &done, &err), 0);
        }
        assert_true(steps > 5);
        merge_close(m);
        assert_int_equal(ask_for_top(), 0);
    }
}

static bool stop(void *user)
{
    ++*(int *)user;
    return true;
}

static void reading_tables_can_be_stopped(void **state)
{
    struct merge_request q = MERGE_REQUEST_INIT;
    struct flatten_request w = {.top = top,
                                .format = QCOW2_FORMAT_QCOW2,
                                .out = out,
                                .out_format = QCOW2_FORMAT_QCOW2};
    const char *drop[] = {base};
    struct qstill_error err;
    struct flatten *f;
    struct merge *m;
    int asked = 0;

    (void)state;
    q.top = top;
    q.drop = drop;
    q.drop_count = 1;
    w.stop = q.stop = (struct aio_stop){stop, &asked};
    assert_int_equal(merge_open(&m, io_real(), &q, &err), QSTILL_E_CANCELLED);
    assert_int_equal(asked, 1);
    assert_int_equal(flatten_open(&f, io_real(), &w, &err), QSTILL_E_CANCELLED);
    assert_int_equal(asked, 2);
    assert_int_equal(faccessat(dir, "out", F_OK, 0), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_merge_wakes_who_waits, make_chain,
                                        drop_chain),
        cmocka_unit_test_setup_teardown(a_flatten_wakes_who_waits, make_chain,
                                        drop_chain),
        cmocka_unit_test_setup_teardown(nobody_gets_the_top_before_the_end,
                                        make_chain, drop_chain),
        cmocka_unit_test_setup_teardown(reading_tables_can_be_stopped,
                                        make_chain, drop_chain),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
