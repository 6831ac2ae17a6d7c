/* SPDX-License-Identifier: MIT */
/* Bulk I/O: the same tests over io_uring and over the sync twin. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/aio.h"
#include "base/cleanup.h"

static int memory_file(void)
{
    int fd = memfd_create("aio-test", MFD_CLOEXEC);

    assert_true(fd >= 0);
    return fd;
}

static struct aio *open_or_skip(enum aio_backend backend, unsigned depth,
                                size_t max_bytes, bool one_thread)
{
    struct aio_options o = {
        .depth = depth,
        .max_bytes = max_bytes,
        .one_thread = one_thread,
        .backend = backend,
    };
    struct qstill_error err;
    struct aio *a = NULL;

    if (aio_open(&a, io_real(), &o, &err) < 0) {
        print_message("skipped: %s\n", err.message);
        skip();
    }
    return a;
}

static enum aio_backend backend_of(void **state)
{
    return *(enum aio_backend *)*state;
}

enum { OPS = 300, PIECE = 5000 };

static void fill(uint8_t *p, size_t len, unsigned seed)
{
    for (size_t i = 0; i < len; i++)
        p[i] = (uint8_t)(seed * 31 + i * 7);
}

static void all_ops_arrive_however_small_the_bounds_are(void **state)
{
    static uint8_t out[OPS][PIECE], in[OPS][PIECE];
    static struct aio_op ops[OPS];
    CLEANUP(aio_closep)
    struct aio *a = open_or_skip(backend_of(state), 3, 2 * PIECE, true);
    CLEANUP(closep) int fd = memory_file();
    struct qstill_error err;

    memset(in, 0, sizeof(in));
    for (unsigned i = 0; i < OPS; i++) {
        fill(out[i], PIECE, i);
        ops[i] = (struct aio_op){.type = AIO_WRITE,
                                 .fd = fd,
                                 .off = (uint64_t)i * PIECE,
                                 .data = out[i],
                                 .len = PIECE};
        aio_submit(a, &ops[i]);
    }
    assert_int_equal(aio_pending(a), OPS);
    assert_int_equal(aio_drain(a, &err), 0);
    for (unsigned i = 0; i < OPS; i++) {
        assert_false(ops[i].pending);
        assert_int_equal(ops[i].error, 0);
        assert_int_equal(ops[i].moved, PIECE);
        ops[i].type = AIO_READ;
        ops[i].data = in[i];
        aio_submit(a, &ops[i]);
    }
    assert_int_equal(aio_drain(a, &err), 0);
    assert_memory_equal(in, out, sizeof(in));
}

static void a_read_across_the_end_moves_what_there_is(void **state)
{
    CLEANUP(aio_closep)
    struct aio *a = open_or_skip(backend_of(state), 0, 0, false);
    CLEANUP(closep) int fd = memory_file();
    struct qstill_error err;
    char data[100];
    struct aio_op op = {
        .type = AIO_READ, .fd = fd, .off = 90, .data = data, .len = 100};

    assert_int_equal(ftruncate(fd, 120), 0);
    aio_submit(a, &op);
    assert_int_equal(aio_drain(a, &err), 0);
    assert_int_equal(op.error, 0);
    assert_int_equal(op.moved, 30);
}

static void a_failing_op_tells_its_errno_and_others_go_on(void **state)
{
    CLEANUP(aio_closep)
    struct aio *a = open_or_skip(backend_of(state), 0, 0, false);
    CLEANUP(closep) int fd = memory_file();
    struct qstill_error err;
    char data[8] = "1234567";
    struct aio_op bad = {.type = AIO_WRITE, .fd = -1, .data = data, .len = 8};
    struct aio_op good = {.type = AIO_WRITE, .fd = fd, .data = data, .len = 8};

    aio_submit(a, &bad);
    aio_submit(a, &good);
    assert_int_equal(aio_drain(a, &err), 0);
    assert_int_equal(bad.error, EBADF);
    assert_int_equal(good.error, 0);
    assert_int_equal(good.moved, 8);
}

static void vectors_are_gathered_and_scattered(void **state)
{
    CLEANUP(aio_closep)
    struct aio *a = open_or_skip(backend_of(state), 0, 0, false);
    CLEANUP(closep) int fd = memory_file();
    struct qstill_error err;
    char one[] = "abc", two[] = "defgh", back[9] = "", c[2], d[6];
    struct iovec w[] = {{one, 3}, {two, 5}};
    struct iovec r[] = {{c, 2}, {d, 6}};
    struct aio_op op = {.type = AIO_WRITE, .fd = fd, .iov = w, .iov_count = 2};

    aio_submit(a, &op);
    assert_int_equal(aio_drain(a, &err), 0);
    assert_int_equal(op.error, 0);
    assert_int_equal(op.moved, 8);
    assert_int_equal(pread(fd, back, 8, 0), 8);
    assert_string_equal(back, "abcdefgh");
    op = (struct aio_op){.type = AIO_READ, .fd = fd, .iov = r, .iov_count = 2};
    aio_submit(a, &op);
    assert_int_equal(aio_drain(a, &err), 0);
    assert_memory_equal(c, "ab", 2);
    assert_memory_equal(d, "cdefgh", 6);
}

struct ring_user {
    struct aio *a;
    unsigned rounds;
};

static void submit_again(struct aio_op *op)
{
    struct ring_user *u = op->user;

    assert_int_equal(op->error, 0);
    if (--u->rounds > 0)
        aio_submit(u->a, op);
}

static void a_callback_may_submit_the_same_op_again(void **state)
{
    CLEANUP(aio_closep)
    struct aio *a = open_or_skip(backend_of(state), 0, 0, true);
    CLEANUP(closep) int fd = memory_file();
    struct qstill_error err;
    struct ring_user user = {a, 50};
    char c = 'x';
    struct aio_op op = {.type = AIO_WRITE,
                        .fd = fd,
                        .data = &c,
                        .len = 1,
                        .done = submit_again,
                        .user = &user};

    aio_submit(a, &op);
    assert_int_equal(aio_drain(a, &err), 0);
    assert_int_equal(user.rounds, 0);
}

static void datasync_is_an_op_like_others(void **state)
{
    CLEANUP(aio_closep)
    struct aio *a = open_or_skip(backend_of(state), 0, 0, false);
    CLEANUP(closep) int fd = memory_file();
    struct qstill_error err;
    struct aio_op op = {.type = AIO_DATASYNC, .fd = fd};

    aio_submit(a, &op);
    assert_int_equal(aio_wait(a, 1, -1, &err), 0);
    assert_false(op.pending);
    assert_int_equal(op.error, 0);
}

static void the_eventfd_is_readable_until_all_is_done(void **state)
{
    CLEANUP(aio_closep)
    struct aio *a = open_or_skip(backend_of(state), 2, 0, true);
    CLEANUP(closep) int fd = memory_file();
    struct qstill_error err;
    char c[16] = "";
    struct aio_op ops[16];
    struct pollfd p = {aio_eventfd(a, &err), POLLIN, 0};

    assert_true(p.fd >= 0);
    assert_int_equal(poll(&p, 1, 0), 0);
    for (unsigned i = 0; i < 16; i++) {
        ops[i] = (struct aio_op){
            .type = AIO_WRITE, .fd = fd, .data = &c[i], .len = 1, .off = i};
        aio_submit(a, &ops[i]);
    }
    while (aio_pending(a) > 0) {
        assert_int_equal(poll(&p, 1, 5000), 1);
        assert_int_equal(aio_poll(a, &err), 0);
    }
    assert_int_equal(aio_poll(a, &err), 0);
    assert_int_equal(poll(&p, 1, 0), 0);
}

static void waiting_gives_up_after_the_timeout(void **state)
{
    CLEANUP(aio_closep)
    struct aio *a = open_or_skip(AIO_URING, 0, 0, false);
    struct qstill_error err;
    int ends[2];
    char c;
    struct aio_op op;

    (void)state;
    assert_int_equal(pipe(ends), 0);
    op = (struct aio_op){.type = AIO_READ,
                         .fd = ends[0],
                         .off = (uint64_t)-1,
                         .data = &c,
                         .len = 1};
    aio_submit(a, &op);
    assert_int_equal(aio_wait(a, 1, 20, &err), 0);
    assert_true(op.pending);
    assert_int_equal(write(ends[1], "x", 1), 1);
    assert_int_equal(aio_wait(a, 1, 5000, &err), 0);
    assert_false(op.pending);
    assert_int_equal(op.moved, 1);
    close(ends[0]);
    close(ends[1]);
}

static void closing_cancels_what_has_not_started(void **state)
{
    struct aio *a = open_or_skip(backend_of(state), 1, 0, false);
    CLEANUP(closep) int fd = memory_file();
    char c = 'x';
    struct aio_op op = {.type = AIO_WRITE, .fd = fd, .data = &c, .len = 1};

    aio_submit(a, &op);
    aio_close(a);
    assert_false(op.pending);
    assert_int_equal(op.error, ECANCELED);
    assert_int_equal(lseek(fd, 0, SEEK_END), 0);
}

struct late {
    struct aio_op op; /* first */
    char *memory;     /* NULL: there is none */
    unsigned begun;
};

static bool begin_late(struct aio_op *op)
{
    struct late *l = (struct late *)op;

    l->begun++;
    op->data = l->memory;
    return op->data;
}

static void data_may_be_found_when_an_op_starts(void **state)
{
    CLEANUP(aio_closep)
    struct aio *a = open_or_skip(backend_of(state), 1, 0, false);
    CLEANUP(closep) int fd = memory_file();
    char text[2] = "";
    struct late l[3] = {
        {.memory = text}, {.memory = NULL}, {.memory = text + 1}};
    struct qstill_error err;

    assert_int_equal(pwrite(fd, "xyz", 3, 0), 3);
    for (unsigned i = 0; i < 3; i++) {
        l[i].op = (struct aio_op){.type = AIO_READ,
                                  .fd = fd,
                                  .off = i,
                                  .len = 1,
                                  .begin = begin_late};
        aio_submit(a, &l[i].op);
        assert_int_equal(l[i].begun, 0);
    }
    assert_int_equal(aio_drain(a, &err), 0);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(l[i].begun, 1);
        assert_int_equal(l[i].op.error, l[i].memory ? 0 : ENOMEM);
    }
    assert_memory_equal(text, "xz", 2);
}

static void pool_buffers_are_apart_aligned_and_run_out(void **state)
{
    struct aio *a = open_or_skip(backend_of(state), 0, 0, false);
    CLEANUP(aio_pool_freep) struct aio_pool *pool = NULL;
    CLEANUP(closep) int fd = memory_file();
    struct qstill_error err;
    struct aio_op ops[3];
    char back[4] = "";

    assert_int_equal(aio_pool_open(&pool, a, 8192, 3, &err), 0);
    assert_int_equal(aio_pool_buffer_size(pool), 8192);
    for (unsigned i = 0; i < 3; i++) {
        uint8_t *p = aio_pool_get(pool);

        assert_non_null(p);
        assert_int_equal((uintptr_t)p % 4096, 0);
        memset(p, 'a' + (int)i, 8192);
        ops[i] = (struct aio_op){.type = AIO_WRITE,
                                 .fd = fd,
                                 .data = p,
                                 .len = 8192,
                                 .off = i * 8192};
        aio_submit(a, &ops[i]);
    }
    assert_null(aio_pool_get(pool));
    assert_int_equal(aio_drain(a, &err), 0);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(ops[i].moved, 8192);
        assert_int_equal(pread(fd, &back[i], 1, i * 8192 + 8191), 1);
    }
    assert_string_equal(back, "abc");
    aio_pool_put(pool, ops[1].data);
    assert_ptr_equal(aio_pool_get(pool), ops[1].data);
    aio_close(a);
}

/* ----------------------------------------------------- over another table */

struct tearing {
    unsigned calls;
    unsigned fail_at;
};

static ssize_t torn_pwrite(const struct io *io, int fd, const void *data,
                           size_t len, uint64_t off)
{
    struct tearing *t = io->user;

    if (++t->calls == t->fail_at)
        return -EIO;
    return io_real_ops.pwrite(io, fd, data, len > 3 ? 3 : len, off);
}

static ssize_t null_pwrite(const struct io *io, int fd, const void *data,
                           size_t len, uint64_t off)
{
    (void)io;
    (void)fd;
    (void)data;
    (void)len;
    (void)off;
    return 0;
}

static void short_writes_are_continued_and_go_through_the_table(void **state)
{
    struct io_ops table = io_real_ops;
    struct tearing t = {0, 0};
    struct io io = {&table, &t};
    CLEANUP(closep) int fd = memory_file();
    CLEANUP(aio_closep) struct aio *a = NULL;
    struct qstill_error err;
    char text[] = "0123456789", back[11] = "", head[] = "ab", tail[] = "cdefg";
    struct iovec iov[] = {{head, 2}, {tail, 5}};
    struct aio_op op = {.type = AIO_WRITE, .fd = fd, .data = text, .len = 10};

    (void)state;
    table.pwrite = torn_pwrite;
    assert_int_equal(aio_open(&a, &io, NULL, &err), 0);
    assert_string_equal(aio_backend_name(a), "sync");
    aio_submit(a, &op);
    assert_int_equal(aio_drain(a, &err), 0);
    assert_int_equal(op.error, 0);
    assert_int_equal(t.calls, 4);
    assert_int_equal(pread(fd, back, 10, 0), 10);
    assert_string_equal(back, text);

    op = (struct aio_op){
        .type = AIO_WRITE, .fd = fd, .off = 1, .iov = iov, .iov_count = 2};
    aio_submit(a, &op);
    assert_int_equal(aio_drain(a, &err), 0);
    assert_int_equal(op.moved, 7);
    assert_int_equal(pread(fd, back, 10, 0), 10);
    assert_string_equal(back, "0abcdefg89");

    t = (struct tearing){0, 2};
    op = (struct aio_op){.type = AIO_WRITE, .fd = fd, .data = text, .len = 10};
    aio_submit(a, &op);
    assert_int_equal(aio_drain(a, &err), 0);
    assert_int_equal(op.error, EIO);
    assert_int_equal(op.moved, 3);
}

static void a_write_that_moves_nothing_is_an_error(void **state)
{
    struct io_ops table = io_real_ops;
    struct io io = {&table, NULL};
    CLEANUP(aio_closep) struct aio *a = NULL;
    struct qstill_error err;
    char c = 'x';
    struct aio_op op = {.type = AIO_WRITE, .fd = 0, .data = &c, .len = 1};

    (void)state;
    table.pwrite = null_pwrite;
    assert_int_equal(aio_open(&a, &io, NULL, &err), 0);
    aio_submit(a, &op);
    assert_int_equal(aio_drain(a, &err), 0);
    assert_int_equal(op.error, EIO);
    assert_int_equal(io_write_full(&io, 0, "x", 1, 7, &err), QSTILL_E_FAILED);
    assert_string_equal(err.message,
                        "write at offset 7 failed: Input/output error");
}

/* A regular file that O_DIRECT may or may not be had on: what is promised is
 * that the answer works. */
static void a_direct_twin_reads_the_same_bytes(void **state)
{
    static _Alignas(4096) uint8_t block[4096];
    char path[] = "/tmp/qstill-aio-XXXXXX";
    CLEANUP(closep) int fd = mkstemp(path);
    CLEANUP(closep) int direct = -1;
    struct io_align align;
    struct qstill_error err;

    (void)state;
    assert_true(fd >= 0);
    unlink(path);
    fill(block, sizeof(block), 9);
    assert_int_equal(pwrite(fd, block, sizeof(block), 0), sizeof(block));
    assert_int_equal(fsync(fd), 0);
    assert_int_equal(io_open_direct(fd, 4096, &direct, &align, &err), 0);
    if (direct < 0) {
        print_message("skipped: no direct I/O in /tmp\n");
        skip();
    }
    memset(block, 0, sizeof(block));
    assert_int_equal(pread(direct, block, sizeof(block), 0), sizeof(block));
    assert_int_equal(block[0], (uint8_t)(9 * 31));
}

static enum aio_backend uring = AIO_URING, twin = AIO_SYNC;

#define BOTH(test)                                                             \
    {#test "/io_uring", test, NULL, NULL, &uring},                             \
    {                                                                          \
#test "/sync", test, NULL, NULL, &twin                                 \
    }

int main(void)
{
    const struct CMUnitTest tests[] = {
        BOTH(all_ops_arrive_however_small_the_bounds_are),
        BOTH(a_read_across_the_end_moves_what_there_is),
        BOTH(a_failing_op_tells_its_errno_and_others_go_on),
        BOTH(vectors_are_gathered_and_scattered),
        BOTH(a_callback_may_submit_the_same_op_again),
        BOTH(datasync_is_an_op_like_others),
        BOTH(the_eventfd_is_readable_until_all_is_done),
        BOTH(closing_cancels_what_has_not_started),
        BOTH(data_may_be_found_when_an_op_starts),
        BOTH(pool_buffers_are_apart_aligned_and_run_out),
        cmocka_unit_test(waiting_gives_up_after_the_timeout),
        cmocka_unit_test(short_writes_are_continued_and_go_through_the_table),
        cmocka_unit_test(a_write_that_moves_nothing_is_an_error),
        cmocka_unit_test(a_direct_twin_reads_the_same_bytes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
