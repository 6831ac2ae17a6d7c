/* SPDX-License-Identifier: MIT */
/* Restore and verify: what a capture wrote comes out of the stream again. */
#include <fcntl.h>
#include <pthread.h>
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

#include "../lib/mem_set.h"
#include "../lib/mem_stream.h"
#include "../lib/mem_tmpdir.h"

/* More than RESTORE_SMALL_MAX, but nearly all of it holes. */
#define MAIN_SIZE (RESTORE_SMALL_MAX + 3 * RAMSET_PAGE)
#define USED_SIZE ((size_t)5 * RAMSET_CHUNK)
#define ROM_SIZE  ((size_t)4 * RAMSET_PAGE)

struct fixture {
    char path[128];
    int dirfd;
    uint8_t *ram;
    uint8_t *rom;
    struct ramset *set;
    struct restore_options options;
    struct restore_result result;
    struct qstill_error err;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct capture_source blocks[2];

    f->dirfd = mem_tmpdir_make(f->path);
    f->ram = aligned_alloc(4096, MAIN_SIZE);
    memset(f->ram, 0, MAIN_SIZE);
    mem_set_fill(f->ram, USED_SIZE, 40, 3);
    memset(f->ram + MAIN_SIZE - 4096, 7, 4096);
    f->rom = aligned_alloc(4096, ROM_SIZE);
    mem_set_fill(f->rom, ROM_SIZE, 0, 4);
    memset(f->rom + 4096, 0, 4096);
    blocks[0] =
        (struct capture_source){"pc.ram", (uintptr_t)f->ram, MAIN_SIZE, 4096};
    blocks[1] =
        (struct capture_source){"rom", (uintptr_t)f->rom, ROM_SIZE, 4096};
    mem_set_capture(f->dirfd, blocks, 2);
    assert_int_equal(ramset_open(&f->set, f->dirfd, &f->err), 0);
    f->options =
        (struct restore_options){.set = f->set, .machine = "pc-q35-7.2"};
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    ramset_close(f->set);
    mem_tmpdir_remove(f->path, f->dirfd);
    free(f->ram);
    free(f->rom);
    free(f);
    return 0;
}

/* Restores into a capture; the restore's code. */
static int through_capture(struct fixture *f, int dirfd, struct capture **out)
{
    CLEANUP(restore_closep) struct restore *r = NULL;
    struct capture_options o = {.dirfd = dirfd};
    int fds[2], rc;

    assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
    assert_int_equal(
        capture_stream_open(out, fds[0], CAPTURE_PRECOPY, &o, &f->err), 0);
    if (restore_open(&r, fds[1], &f->options, &f->err) < 0)
        fail_msg("%s", f->err.message);
    rc = mem_set_wait_restore(r, &f->result, &f->err);
    mem_set_wait(*out, MEM_SET_COMPLETE);
    return rc;
}

/* The lines of the parser's log for a stream that is built as bytes. */
static void build_log(struct fixture *f, struct buf *log)
{
    CLEANUP(stream_parser_freep) struct stream_parser *p = NULL;
    CLEANUP(buf_fini) struct buf b = BUF_INIT;

    if (restore_build(&b, &f->options, &f->err) < 0)
        fail_msg("%s", f->err.message);
    assert_int_equal(stream_parser_new(&p, STREAM_PRECOPY,
                                       &mem_stream_log_events, log, &f->err),
                     0);
    assert_int_equal(mem_stream_feed(p, &b, 1 << 20, &f->err), 0);
    assert_string_equal(stream_parser_machine(p), "pc-q35-7.2");
    assert_true(stream_parser_footers(p));
}

static void restore_of_all_makes_the_same_files_again(void **state)
{
    struct fixture *f = *state;
    CLEANUP(capture_closep) struct capture *c = NULL;
    struct capture_result got;
    char path[128];
    int dirfd = mem_tmpdir_make(path);

    if (through_capture(f, dirfd, &c) < 0)
        fail_msg("%s", f->err.message);
    assert_int_equal(capture_finish(c, &got, &f->err), 0);
    mem_set_expect(dirfd, "pc.ram", f->ram, MAIN_SIZE);
    mem_set_expect(dirfd, "rom", f->rom, ROM_SIZE);
    assert_int_equal(mem_set_verify(dirfd, &f->err), 0);
    /* the empty vmdescription that was added */
    assert_true(got.vmdescription);
    assert_int_equal(got.device_bytes, mem_set_device_len + 7);
    assert_int_equal(f->result.sent_bytes, got.written_bytes);
    assert_true(f->result.read_bytes < MAIN_SIZE / 2);
    mem_tmpdir_remove(path, dirfd);
}

static void restore_sends_zero_pages_of_small_blocks_only(void **state)
{
    struct fixture *f = *state;
    CLEANUP(buf_fini) struct buf log = BUF_INIT;

    build_log(f, &log);
    assert_non_null(strstr((char *)log.data, "zero 1 4096\n"));
    assert_null(strstr((char *)log.data, "zero 0 "));
}

static void restore_sends_all_zero_pages_when_asked(void **state)
{
    struct fixture *f = *state;
    CLEANUP(buf_fini) struct buf log = BUF_INIT;
    size_t lines = 0;

    f->options.zeros = RESTORE_SEND_ZEROS;
    build_log(f, &log);
    for (const char *p = (char *)log.data; (p = strchr(p, '\n')); p++)
        lines += strncmp(p + 1, "page 0 ", 7) == 0 ||
                 strncmp(p + 1, "zero 0 ", 7) == 0;
    assert_int_equal(lines, MAIN_SIZE / 4096);
}

static void restore_leaves_mapped_blocks_out(void **state)
{
    static const char *const mapped[] = {"pc.ram"};
    struct fixture *f = *state;
    CLEANUP(buf_fini) struct buf log = BUF_INIT;

    f->options.pages = RESTORE_UNMAPPED;
    f->options.mapped = mapped;
    f->options.mapped_count = 1;
    build_log(f, &log);
    assert_non_null(strstr((char *)log.data, "block 0 pc.ram 67121152\n"));
    assert_null(strstr((char *)log.data, "page 0 "));
    assert_non_null(strstr((char *)log.data, "page 1 12288 mixed\n"));
}

static void restore_of_listed_ranges_sends_just_these_pages(void **state)
{
    static const struct restore_range ranges[] = {
        {"pc.ram", RAMSET_CHUNK - 2 * 4096, 4 * 4096},
        {"rom", 4096, 4096},
        {"pc.ram", MAIN_SIZE - 2 * 4096, 2 * 4096},
    };
    struct fixture *f = *state;
    CLEANUP(buf_fini) struct buf log = BUF_INIT;
    size_t pages = 0;

    f->options.pages = RESTORE_LISTED;
    f->options.ranges = ranges;
    f->options.range_count = 3;
    build_log(f, &log);
    for (const char *p = (char *)log.data; (p = strchr(p, '\n')); p++)
        pages +=
            strncmp(p + 1, "page ", 5) == 0 || strncmp(p + 1, "zero ", 5) == 0;
    /* the pages where two spans meet in one chunk come once per span */
    assert_in_range(pages, 7, 9);
    assert_non_null(strstr((char *)log.data, " 0 1040384"));
    assert_non_null(strstr((char *)log.data, " 0 1052672"));
    assert_non_null(strstr((char *)log.data, "zero 0 67112960\n"));
    assert_non_null(strstr((char *)log.data, "page 0 67117056 07\n"));
    assert_non_null(strstr((char *)log.data, "zero 1 4096\n"));
}

static void restore_refuses_ranges_and_names_that_are_not_there(void **state)
{
    static const char *const mapped[] = {"nothing"};
    static const struct restore_range outside = {"rom", 4096, 4 * 4096};
    static const struct restore_range odd = {"rom", 1, 4096};
    struct fixture *f = *state;
    CLEANUP(buf_fini) struct buf b = BUF_INIT;

    f->options.pages = RESTORE_UNMAPPED;
    f->options.mapped = mapped;
    f->options.mapped_count = 1;
    assert_int_equal(restore_build(&b, &f->options, &f->err),
                     QSTILL_E_NOT_FOUND);
    assert_string_equal(f->err.message, "there is no RAM block 'nothing'");
    f->options.mapped_count = 0;
    f->options.ranges = &outside;
    f->options.range_count = 1;
    assert_int_equal(restore_build(&b, &f->options, &f->err), QSTILL_E_FAILED);
    assert_string_equal(f->err.message,
                        "range 4096+16384 is not in RAM block 'rom'");
    f->options.ranges = &odd;
    assert_int_equal(restore_build(&b, &f->options, &f->err), QSTILL_E_FAILED);
    f->options.range_count = 0;
    f->options.machine = "";
    assert_int_equal(restore_build(&b, &f->options, &f->err), QSTILL_E_FAILED);
}

static void damage(struct fixture *f, const char *name, off_t at)
{
    int fd = openat(f->dirfd, name, O_RDWR | O_CLOEXEC);
    uint8_t byte;

    assert_int_equal(pread(fd, &byte, 1, at), 1);
    byte ^= 1;
    assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    close(fd);
}

static void restore_of_damaged_memory_never_reaches_the_devices(void **state)
{
    struct fixture *f = *state;
    CLEANUP(capture_closep) struct capture *c = NULL;
    struct capture_result got;
    char path[128];
    int dirfd = mem_tmpdir_make(path);

    damage(f, "pc.ram.ram", MAIN_SIZE - 1);
    assert_int_equal(through_capture(f, dirfd, &c), QSTILL_E_CORRUPT);
    assert_string_equal(f->err.message,
                        "pc.ram.ram, 12288 bytes at offset 67108864: does not "
                        "match its checksum");
    assert_int_equal(capture_finish(c, &got, &f->err), QSTILL_E_CORRUPT);
    assert_string_equal(f->err.message,
                        "the migration stream ends before the device state");
    capture_close(take_ptr(&c));
    mem_tmpdir_remove(path, dirfd);
}

/* What would travel is read; what would not is not asked about. */
static void check_finds_damage_in_what_would_travel(void **state)
{
    static const char *const mapped[] = {"pc.ram"};
    struct fixture *f = *state;

    f->options.pages = RESTORE_UNMAPPED;
    f->options.mapped = mapped;
    f->options.mapped_count = 1;
    damage(f, "pc.ram.ram", MAIN_SIZE - 1);
    assert_int_equal(restore_check(&f->options, &f->err), 0);
    f->options.mapped_count = 0;
    assert_int_equal(restore_check(&f->options, &f->err), QSTILL_E_CORRUPT);
    damage(f, "pc.ram.ram", MAIN_SIZE - 1);
    assert_int_equal(restore_check(&f->options, &f->err), 0);
    f->options.mapped_count = 1;
    damage(f, "rom.ram", 3);
    assert_int_equal(restore_check(&f->options, &f->err), QSTILL_E_CORRUPT);
    assert_string_equal(
        f->err.message,
        "rom.ram, 16384 bytes at offset 0: does not match its checksum");
    damage(f, "rom.ram", 3);
    damage(f, "device.state", 25);
    assert_int_equal(restore_check(&f->options, &f->err), QSTILL_E_CORRUPT);
    assert_string_equal(f->err.message,
                        "device.state does not match its checksum");
}

static void restore_to_one_who_hangs_up_is_unreachable(void **state)
{
    struct fixture *f = *state;
    CLEANUP(restore_closep) struct restore *r = NULL;
    int fds[2];

    assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
    close(fds[0]);
    assert_int_equal(restore_open(&r, fds[1], &f->options, &f->err), 0);
    assert_int_equal(mem_set_wait_restore(r, &f->result, &f->err),
                     QSTILL_E_UNREACHABLE);
    assert_string_equal(f->err.message,
                        "QEMU closed the stream before its end");
}

static void restore_cancelled_stops_while_nobody_reads(void **state)
{
    struct fixture *f = *state;
    CLEANUP(restore_closep) struct restore *r = NULL;
    int fds[2];

    assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
    assert_int_equal(restore_open(&r, fds[1], &f->options, &f->err), 0);
    usleep(20000);
    restore_cancel(r);
    assert_int_equal(mem_set_wait_restore(r, &f->result, &f->err),
                     QSTILL_E_CANCELLED);
    close(fds[0]);
}

/* ----------------------------------------------------------------- verify */

static void verify_finds_each_kind_of_damage(void **state)
{
    static const struct {
        const char *name;
        off_t at;
        const char *message;
    } cases[] = {
        {"pc.ram.ram", 2 * RAMSET_CHUNK + 77,
         "pc.ram.ram, 1048576 bytes at offset 2097152: does not match its "
         "checksum"},
        /* in a hole: a page that was zero */
        {"pc.ram.ram", 40 * (off_t)RAMSET_CHUNK,
         "pc.ram.ram, 1048576 bytes at offset 41943040: does not match its "
         "checksum"},
        {"rom.ram", 0,
         "rom.ram, 16384 bytes at offset 0: does not match its checksum"},
        {"device.state", 25, "device.state does not match its checksum"},
        {"sums", 80,
         "memory files: sums: the checksums do not match their own checksum"},
    };
    struct fixture *f = *state;

    assert_int_equal(mem_set_verify(f->dirfd, &f->err), 0);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        damage(f, cases[i].name, cases[i].at);
        assert_int_equal(mem_set_verify(f->dirfd, &f->err), QSTILL_E_CORRUPT);
        assert_string_equal(f->err.message, cases[i].message);
        damage(f, cases[i].name, cases[i].at);
    }
    assert_int_equal(mem_set_verify(f->dirfd, &f->err), 0);
}

static void verify_finds_pages_that_changed_places(void **state)
{
    struct fixture *f = *state;
    uint8_t a[4096], b[4096];
    int fd = openat(f->dirfd, "rom.ram", O_RDWR | O_CLOEXEC);

    assert_int_equal(pread(fd, a, 4096, 0), 4096);
    assert_int_equal(pread(fd, b, 4096, 8192), 4096);
    assert_int_equal(pwrite(fd, b, 4096, 0), 4096);
    assert_int_equal(pwrite(fd, a, 4096, 8192), 4096);
    close(fd);
    assert_int_equal(mem_set_verify(f->dirfd, &f->err), QSTILL_E_CORRUPT);
}

/* A hole where data was: punched, or lost by a copy that failed. */
static void verify_finds_data_that_became_a_hole(void **state)
{
    struct fixture *f = *state;
    int fd = openat(f->dirfd, "pc.ram.ram", O_RDWR | O_CLOEXEC);

    assert_int_equal(ftruncate(fd, RAMSET_CHUNK), 0);
    assert_int_equal(ftruncate(fd, MAIN_SIZE), 0);
    close(fd);
    assert_int_equal(mem_set_verify(f->dirfd, &f->err), QSTILL_E_CORRUPT);
    assert_string_equal(f->err.message,
                        "pc.ram.ram, 1048576 bytes at offset 1048576: does not "
                        "match its checksum");
}

static void verify_accepts_zeros_in_place_of_holes(void **state)
{
    static const uint8_t zeros[8192];
    struct fixture *f = *state;
    int fd = openat(f->dirfd, "pc.ram.ram", O_RDWR | O_CLOEXEC);

    assert_int_equal(pwrite(fd, zeros, sizeof(zeros), 40 << 20), 8192);
    close(fd);
    assert_int_equal(mem_set_verify(f->dirfd, &f->err), 0);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(restore_of_all_makes_the_same_files_again),
        T(restore_sends_zero_pages_of_small_blocks_only),
        T(restore_sends_all_zero_pages_when_asked),
        T(restore_leaves_mapped_blocks_out),
        T(restore_of_listed_ranges_sends_just_these_pages),
        T(restore_refuses_ranges_and_names_that_are_not_there),
        T(restore_of_damaged_memory_never_reaches_the_devices),
        T(check_finds_damage_in_what_would_travel),
        T(restore_to_one_who_hangs_up_is_unreachable),
        T(restore_cancelled_stops_while_nobody_reads),
        T(verify_finds_each_kind_of_damage),
        T(verify_finds_pages_that_changed_places),
        T(verify_finds_data_that_became_a_hole),
        T(verify_accepts_zeros_in_place_of_holes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
