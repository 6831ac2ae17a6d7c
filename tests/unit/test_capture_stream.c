/* SPDX-License-Identifier: MIT */
/* Captures from a migration stream that a thread of the test writes. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "../lib/fault_io.h"
#include "../lib/mem_set.h"
#include "../lib/mem_stream.h"
#include "../lib/mem_tmpdir.h"

#define MAIN_PAGES 700u /* two chunks and a part of a third */
#define ROM_PAGES  2u

struct fixture {
    char path[128];
    int dirfd;
    struct buf stream;
    uint8_t *ram; /* what the files must hold in the end */
    uint8_t *rom;
    struct capture_options options;
    struct capture_result result;
    struct qstill_error err;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    f->dirfd = mem_tmpdir_make(f->path);
    f->ram = calloc(MAIN_PAGES, 4096);
    f->rom = calloc(ROM_PAGES, 4096);
    f->options = (struct capture_options){.dirfd = f->dirfd};
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    mem_tmpdir_remove(f->path, f->dirfd);
    buf_fini(&f->stream);
    free(f->ram);
    free(f->rom);
    free(f);
    return 0;
}

/* ------------------------------------------------------------- the sender */

struct sender {
    int fd;
    const struct buf *stream;
};

static void *send_all(void *arg)
{
    struct sender *s = arg;
    sigset_t pipe_signal;
    size_t off = 0;

    sigemptyset(&pipe_signal);
    sigaddset(&pipe_signal, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe_signal, NULL);
    while (off < s->stream->len) {
        ssize_t n = write(s->fd, s->stream->data + off, s->stream->len - off);

        if (n <= 0)
            break;
        off += (size_t)n;
    }
    close(s->fd);
    return NULL;
}

/* Sends f->stream through a pipe into a capture; capture_finish's code. */
static int carry_out(struct fixture *f, enum capture_flavour flavour,
                     struct capture **out)
{
    struct sender s = {.stream = &f->stream};
    struct capture *c = NULL;
    pthread_t thread;
    int fds[2], rc;

    assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
    s.fd = fds[1];
    rc = capture_stream_open(&c, fds[0], flavour, &f->options, &f->err);
    assert_int_equal(pthread_create(&thread, NULL, send_all, &s), 0);
    if (rc == 0) {
        mem_set_wait(c, MEM_SET_COMPLETE);
        rc = capture_finish(c, &f->result, &f->err);
    }
    pthread_join(thread, NULL);
    *out = c;
    return rc;
}

/* A page of either block, in the stream and in what is expected. */
static void put(struct fixture *f, unsigned block, uint64_t page, uint8_t fill)
{
    mem_stream_page(&f->stream, page, fill, block ? "rom" : "pc.ram");
    memset((block ? f->rom : f->ram) + page * 4096, fill, 4096);
}

static void expect_files(struct fixture *f)
{
    mem_set_expect(f->dirfd, "pc.ram", f->ram, MAIN_PAGES * 4096);
    mem_set_expect(f->dirfd, "rom", f->rom, ROM_PAGES * 4096);
    if (mem_set_verify(f->dirfd, &f->err) < 0)
        fail_msg("%s", f->err.message);
}

/* Every page of the main block once, in an order that jumps about. */
static void put_background(struct fixture *f)
{
    mem_stream_start(&f->stream, MAIN_PAGES);
    stream_begin_section(&f->stream, STREAM_PART);
    for (unsigned i = 0; i < MAIN_PAGES; i++) {
        unsigned page = i * 349 % MAIN_PAGES; /* 349 and 700: no divisor */

        put(f, 0, page, page % 3 ? (uint8_t)page : 0);
        if (i % 50 == 49) {
            stream_end_section(&f->stream, true);
            stream_begin_section(&f->stream, STREAM_PART);
        }
    }
    put(f, 1, 0, 0x33);
    put(f, 1, 1, 0);
    stream_end_section(&f->stream, true);
    mem_stream_devices(&f->stream);
}

static void background_places_pages_that_come_in_any_order(void **state)
{
    struct fixture *f = *state;
    CLEANUP(capture_closep) struct capture *c = NULL;
    struct capture_status status;
    uint64_t data = 4096;

    put_background(f);
    for (unsigned i = 0; i < MAIN_PAGES; i++)
        data += f->ram[i * 4096] ? 4096 : 0;
    if (carry_out(f, CAPTURE_BACKGROUND, &c) < 0)
        fail_msg("%s", f->err.message);
    expect_files(f);
    capture_poll(c, &status);
    assert_true(status.ready && status.instant_taken && status.complete);
    assert_int_equal(status.bytes_total, (MAIN_PAGES + ROM_PAGES) * 4096);
    assert_int_equal(status.bytes_done, status.bytes_total);
    assert_string_equal(f->result.machine, "pc-q35-7.2");
    assert_int_equal(f->result.config_len, 0);
    assert_true(f->result.footers);
    assert_true(f->result.vmdescription);
    assert_int_equal(f->result.written_bytes, data);
    assert_int_equal(f->result.sent_bytes, data);
    assert_int_equal(f->result.zero_bytes, status.bytes_total - data);
}

static void background_tells_the_instant_at_the_first_part(void **state)
{
    struct fixture *f = *state;
    CLEANUP(capture_closep) struct capture *c = NULL;
    struct capture_status status;
    int fds[2];

    mem_stream_start(&f->stream, MAIN_PAGES);
    assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
    assert_int_equal(capture_stream_open(&c, fds[0], CAPTURE_BACKGROUND,
                                         &f->options, &f->err),
                     0);
    assert_int_equal(write(fds[1], f->stream.data, f->stream.len),
                     f->stream.len);
    do { /* until it has read the list */
        usleep(1000);
        capture_poll(c, &status);
    } while (!status.complete && status.bytes_total == 0);
    assert_true(status.ready);
    assert_false(status.instant_taken);
    assert_int_equal(status.bytes_total, (MAIN_PAGES + ROM_PAGES) * 4096);
    f->stream.len = 0;
    stream_begin_section(&f->stream, STREAM_PART);
    assert_int_equal(write(fds[1], f->stream.data, f->stream.len),
                     f->stream.len);
    status = mem_set_wait(c, MEM_SET_INSTANT);
    assert_true(status.instant_taken);
    assert_false(status.complete);
    close(fds[1]);
    mem_set_wait(c, MEM_SET_COMPLETE);
    assert_int_equal(capture_finish(c, &f->result, &f->err), QSTILL_E_CORRUPT);
    assert_string_equal(f->err.message, "the migration stream ends in the RAM");
}

static void background_with_a_page_twice_is_corrupt(void **state)
{
    struct fixture *f = *state;
    struct capture *c = NULL;

    mem_stream_start(&f->stream, MAIN_PAGES);
    stream_begin_section(&f->stream, STREAM_PART);
    put(f, 0, 600, 0);
    put(f, 0, 600, 1);
    stream_end_section(&f->stream, true);
    mem_stream_devices(&f->stream);
    assert_int_equal(carry_out(f, CAPTURE_BACKGROUND, &c), QSTILL_E_CORRUPT);
    assert_string_equal(f->err.message, "the background snapshot has page 600 "
                                        "of RAM block 'pc.ram' twice");
    capture_close(c);
    assert_int_equal(mem_tmpdir_count(f->dirfd), 0);
}

/* Pages come again, other or the same, zero or not: the last one counts. */
static void precopy_keeps_the_last_of_each_page(void **state)
{
    struct fixture *f = *state;

    for (unsigned seed = 1; seed <= 8; seed++) {
        struct capture *c = NULL;
        unsigned x = seed;

        f->stream.len = 0;
        memset(f->ram, 0, MAIN_PAGES * 4096);
        memset(f->rom, 0, ROM_PAGES * 4096);
        mem_stream_start(&f->stream, MAIN_PAGES);
        for (unsigned i = 0; i < 3000; i++) {
            unsigned block, page, fill;

            x = x * 1103515245u + 12345u;
            block = x >> 16 & 31 ? 0 : 1;
            page = (x >> 8) % (block ? ROM_PAGES : MAIN_PAGES);
            x = x * 1103515245u + 12345u;
            fill = x >> 16 & 3 ? x >> 18 & 0xff : 0;
            if (i % 100 == 0)
                stream_begin_section(&f->stream, STREAM_PART);
            put(f, block, page, (uint8_t)fill);
            if (i % 100 == 99)
                stream_end_section(&f->stream, true);
        }
        mem_stream_end(&f->stream);
        mem_stream_devices(&f->stream);
        if (carry_out(f, CAPTURE_PRECOPY, &c) < 0)
            fail_msg("%s", f->err.message);
        expect_files(f);
        assert_true(f->result.sent_bytes > f->result.written_bytes);
        capture_close(c);
        mem_tmpdir_empty(f->dirfd);
    }
}

/* The process is this one: its RAM is f->ram, and the stream has missed a
 * write, a page that became zero, and a page at all. */
static void precopy_takes_what_the_stream_missed_from_the_ram(void **state)
{
    struct fixture *f = *state;
    struct capture_source ram[] = {
        {.id = "pc.ram", .size = MAIN_PAGES * 4096},
        {.id = "unknown", .size = 4096},
    };
    struct capture *c = NULL;

    ram[0].hva = ram[1].hva = (uint64_t)(uintptr_t)f->ram;
    f->options.pid = getpid();
    f->options.ram = ram;
    f->options.ram_count = 2;
    mem_stream_start(&f->stream, MAIN_PAGES);
    stream_begin_section(&f->stream, STREAM_PART);
    for (unsigned i = 0; i < MAIN_PAGES - 1; i++)
        put(f, 0, i, (uint8_t)(i % 7));
    stream_end_section(&f->stream, true);
    mem_stream_end(&f->stream);
    mem_stream_devices(&f->stream);
    f->ram[5 * 4096 + 17] ^= 0xff;
    memset(f->ram + 300 * 4096, 0, 4096);
    memset(f->ram + (MAIN_PAGES - 1) * 4096, 0x5a, 4096);
    assert_int_equal(carry_out(f, CAPTURE_PRECOPY, &c), 0);
    assert_int_equal(f->result.amended_pages, 3);
    expect_files(f);
    capture_close(c);
}

static void precopy_never_tells_an_instant(void **state)
{
    struct fixture *f = *state;
    CLEANUP(capture_closep) struct capture *c = NULL;
    struct capture_status status;

    mem_stream_start(&f->stream, MAIN_PAGES);
    mem_stream_part(&f->stream);
    mem_stream_end(&f->stream);
    mem_stream_devices(&f->stream);
    assert_int_equal(carry_out(f, CAPTURE_PRECOPY, &c), 0);
    capture_poll(c, &status);
    assert_false(status.instant_taken);
}

static void stream_cut_short_in_the_devices_is_corrupt(void **state)
{
    struct fixture *f = *state;
    size_t full;

    mem_stream_start(&f->stream, MAIN_PAGES);
    mem_stream_part(&f->stream);
    mem_stream_end(&f->stream);
    mem_stream_devices(&f->stream);
    full = f->stream.len;
    /* 7: without the vmdescription it is whole again */
    for (size_t cut = 1; cut < 40; cut++) {
        struct capture *c = NULL;

        f->stream.len = full - cut;
        if (cut == 7)
            continue;
        assert_int_equal(carry_out(f, CAPTURE_PRECOPY, &c), QSTILL_E_CORRUPT);
        capture_close(c);
        assert_int_equal(mem_tmpdir_count(f->dirfd), 0);
    }
}

static void stream_that_never_begins_is_corrupt(void **state)
{
    struct fixture *f = *state;
    CLEANUP(capture_closep) struct capture *c = NULL;

    assert_int_equal(carry_out(f, CAPTURE_PRECOPY, &c), QSTILL_E_CORRUPT);
    assert_string_equal(f->err.message,
                        "the migration stream ends in its header");
}

static void stream_capture_cancelled_lets_go_of_the_pipe(void **state)
{
    struct fixture *f = *state;
    struct capture *c = NULL;
    int fds[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds),
                     0);
    assert_int_equal(
        capture_stream_open(&c, fds[0], CAPTURE_PRECOPY, &f->options, &f->err),
        0);
    capture_cancel(c);
    mem_set_wait(c, MEM_SET_COMPLETE);
    assert_int_equal(capture_finish(c, &f->result, &f->err),
                     QSTILL_E_CANCELLED);
    /* before it is closed: whoever writes must not wait for us */
    assert_int_equal(send(fds[1], "x", 1, MSG_NOSIGNAL), -1);
    assert_int_equal(errno, EPIPE);
    capture_close(c);
    close(fds[1]);
    assert_int_equal(mem_tmpdir_count(f->dirfd), 0);
}

/* QEMU 7.2 hangs when the pipe of a background snapshot breaks. */
static void background_capture_cancelled_reads_on_to_the_end(void **state)
{
    struct fixture *f = *state;
    struct capture *c = NULL;
    int fds[2], rc;

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds),
                     0);
    assert_int_equal(capture_stream_open(&c, fds[0], CAPTURE_BACKGROUND,
                                         &f->options, &f->err),
                     0);
    capture_cancel(c);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(send(fds[1], "0123456789", 10, MSG_NOSIGNAL), 10);
    close(fds[1]);
    mem_set_wait(c, MEM_SET_COMPLETE);
    /* what it reads is no stream, which may be seen before the cancel is */
    rc = capture_finish(c, &f->result, &f->err);
    assert_true(rc == QSTILL_E_CANCELLED || rc == QSTILL_E_CORRUPT);
    capture_close(c);
    assert_int_equal(mem_tmpdir_count(f->dirfd), 0);
}

static void stream_onto_a_full_disk_says_so_wherever_it_happens(void **state)
{
    struct fixture *f = *state;
    long calls = 0;

    put_background(f);
    for (long n = 1;; n += 1 + n / 40) {
        struct fault_io fault;
        struct capture *c = NULL;
        int rc;

        fault_io_init(&fault, NULL);
        fault.kinds = FAULT_OPEN | FAULT_WRITE | FAULT_SYNC | FAULT_TRUNCATE;
        fault.at = n;
        fault.error = ENOSPC;
        f->options.io = &fault.io;
        rc = carry_out(f, CAPTURE_BACKGROUND, &c);
        capture_close(c);
        if (fault.failed == 0) {
            assert_int_equal(rc, 0);
            break;
        }
        assert_int_equal(rc, QSTILL_E_NO_SPACE);
        assert_int_equal(mem_tmpdir_count(f->dirfd), 0);
        calls++;
    }
    assert_true(calls > 10);
}

static void stream_with_too_much_ram_is_refused(void **state)
{
    struct fixture *f = *state;
    CLEANUP(capture_closep) struct capture *c = NULL;

    mem_stream_start(&f->stream, RAMSET_BYTES_MAX / 4096 + 1);
    assert_int_equal(carry_out(f, CAPTURE_PRECOPY, &c), QSTILL_E_CORRUPT);
    assert_non_null(strstr(f->err.message, "makes more than 17592186044416"));
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(background_places_pages_that_come_in_any_order),
        T(background_tells_the_instant_at_the_first_part),
        T(background_with_a_page_twice_is_corrupt),
        T(precopy_keeps_the_last_of_each_page),
        T(precopy_takes_what_the_stream_missed_from_the_ram),
        T(precopy_never_tells_an_instant),
        T(stream_cut_short_in_the_devices_is_corrupt),
        T(stream_that_never_begins_is_corrupt),
        T(stream_capture_cancelled_lets_go_of_the_pipe),
        T(background_capture_cancelled_reads_on_to_the_end),
        T(stream_onto_a_full_disk_says_so_wherever_it_happens),
        T(stream_with_too_much_ram_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
