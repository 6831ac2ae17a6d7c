/* SPDX-License-Identifier: MIT */
/* Mode `paused`, with this process's own memory as the guest's. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "../lib/fault_io.h"
#include "../lib/mem_set.h"
#include "../lib/mem_tmpdir.h"

#define MAIN_SIZE ((size_t)5 * RAMSET_CHUNK + 3 * RAMSET_PAGE)
#define ROM_SIZE  ((size_t)7 * RAMSET_PAGE)

struct fixture {
    char path[128];
    int dirfd;
    uint8_t *ram;
    uint8_t *rom;
    struct capture_source blocks[2];
    struct capture_options options;
    struct qstill_error err;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    f->dirfd = mem_tmpdir_make(f->path);
    f->ram = aligned_alloc(4096, MAIN_SIZE);
    f->rom = aligned_alloc(4096, ROM_SIZE);
    mem_set_fill(f->ram, MAIN_SIZE, 50, 1);
    mem_set_fill(f->rom, ROM_SIZE, 0, 2);
    f->blocks[0] =
        (struct capture_source){"pc.ram", (uintptr_t)f->ram, MAIN_SIZE, 4096};
    f->blocks[1] =
        (struct capture_source){"/rom@etc/x", (uintptr_t)f->rom, ROM_SIZE, 0};
    f->options = (struct capture_options){.dirfd = f->dirfd};
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    mem_tmpdir_remove(f->path, f->dirfd);
    free(f->ram);
    free(f->rom);
    free(f);
    return 0;
}

static struct capture *open_copy(struct fixture *f)
{
    struct capture *c = NULL;

    if (capture_copy_open(&c, getpid(), f->blocks, 2, &f->options, &f->err) < 0)
        fail_msg("%s", f->err.message);
    return c;
}

/* All that comes in front of `complete`; returns capture_finish's code. */
static int carry_out(struct fixture *f, struct capture *c,
                     struct capture_result *result)
{
    CLEANUP(closep) int device = mem_set_device_fd();

    mem_set_wait(c, MEM_SET_READY);
    assert_int_equal(capture_device_state(c, device, &f->err), 0);
    assert_int_equal(capture_instant(c, &f->err), 0);
    mem_set_wait(c, MEM_SET_COMPLETE);
    return capture_finish(c, result, &f->err);
}

static void copy_equals_the_memory_and_its_sums(void **state)
{
    struct fixture *f = *state;
    CLEANUP(capture_closep) struct capture *c = open_copy(f);
    struct capture_status status;
    struct capture_result r;
    size_t zero = 0;

    assert_int_equal(carry_out(f, c, &r), 0);
    mem_set_expect(f->dirfd, "pc.ram", f->ram, MAIN_SIZE);
    mem_set_expect(f->dirfd, "/rom@etc/x", f->rom, ROM_SIZE);
    assert_int_equal(mem_set_verify(f->dirfd, &f->err), 0);
    assert_int_equal(r.block_count, 2);
    assert_string_equal(r.blocks[0].id, "pc.ram");
    assert_int_equal(r.blocks[0].page_size, 4096);
    assert_int_equal(r.memory_bytes, MAIN_SIZE + ROM_SIZE);
    assert_int_equal(r.device_bytes, mem_set_device_len);
    for (size_t i = 0; i < MAIN_SIZE; i += 4096)
        zero += f->ram[i + 4095] == 0 ? 4096 : 0;
    assert_int_equal(r.zero_bytes, zero);
    assert_true(zero > 0);
    assert_int_equal(r.written_bytes, r.memory_bytes - zero);
    assert_true(r.footers);
    assert_false(r.vmdescription);
    capture_poll(c, &status);
    assert_true(status.ready && status.instant_taken && status.complete);
    assert_int_equal(status.bytes_done, r.memory_bytes);
    assert_int_equal(status.bytes_total, r.memory_bytes);
}

static uint8_t *map_ram(int fd)
{
    uint8_t *p = mmap(NULL, MAIN_SIZE, PROT_READ | PROT_WRITE,
                      fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, fd, 0);

    assert_true(p != MAP_FAILED);
    madvise(p, MAIN_SIZE, MADV_NOHUGEPAGE);
    return p;
}

/* Pages that are there, in memory of which most is not. */
static void touch_some(uint8_t *p)
{
    static const unsigned pages[] = {0, 1, 255, 256, 511, 700, 702, 1282};

    for (size_t i = 0; i < ARRAY_LEN(pages); i++)
        memset(p + pages[i] * (size_t)4096, (int)i + 1, 4096);
}

static unsigned resident(const uint8_t *p)
{
    unsigned char there[MAIN_SIZE / 4096];
    unsigned n = 0;

    assert_int_equal(mincore((void *)(uintptr_t)p, MAIN_SIZE, there), 0);
    for (size_t i = 0; i < sizeof(there); i++)
        n += there[i] & 1;
    return n;
}

static void check_untouched(struct fixture *f, uint8_t *p)
{
    CLEANUP(capture_closep) struct capture *c = NULL;
    struct capture_result r;
    unsigned before;

    touch_some(p);
    before = resident(p);
    f->blocks[0].hva = (uintptr_t)p;
    c = open_copy(f);
    assert_int_equal(carry_out(f, c, &r), 0);
    assert_int_equal(r.written_bytes, 8 * 4096 + ROM_SIZE);
    /* reading it has not filled it */
    assert_int_equal(resident(p), before);
    mem_set_expect(f->dirfd, "pc.ram", p, MAIN_SIZE);
    assert_int_equal(mem_set_verify(f->dirfd, &f->err), 0);
    munmap(p, MAIN_SIZE);
}

static void copy_does_not_fill_anonymous_memory_that_was_not_used(void **state)
{
    check_untouched(*state, map_ram(-1));
}

static void copy_does_not_fill_shared_memory_that_was_not_used(void **state)
{
    CLEANUP(closep) int fd = memfd_create("ram", MFD_CLOEXEC);

    assert_int_equal(ftruncate(fd, MAIN_SIZE), 0);
    check_untouched(*state, map_ram(fd));
}

/* A private mapping of a file: what was not touched is the file's. */
static void copy_of_a_private_file_mapping_has_the_files_pages(void **state)
{
    struct fixture *f = *state;
    CLEANUP(closep) int fd = memfd_create("ram", MFD_CLOEXEC);
    CLEANUP(capture_closep) struct capture *c = NULL;
    struct capture_result r;
    uint8_t *p;

    assert_int_equal(write(fd, f->ram, MAIN_SIZE), MAIN_SIZE);
    p = mmap(NULL, MAIN_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    assert_true(p != MAP_FAILED);
    touch_some(p);
    f->blocks[0].hva = (uintptr_t)p;
    c = open_copy(f);
    assert_int_equal(carry_out(f, c, &r), 0);
    mem_set_expect(f->dirfd, "pc.ram", p, MAIN_SIZE);
    munmap(p, MAIN_SIZE);
}

static void copy_leaves_holes_for_zero_pages(void **state)
{
    struct fixture *f = *state;
    struct capture_result r;
    CLEANUP(capture_closep) struct capture *c = NULL;

    memset(f->ram, 0, MAIN_SIZE);
    f->ram[3 * RAMSET_CHUNK] = 1;
    c = open_copy(f);
    assert_int_equal(carry_out(f, c, &r), 0);
    assert_int_equal(r.written_bytes, RAMSET_PAGE + ROM_SIZE);
    /* the filesystem's own blocks may be larger than a page */
    assert_true(r.disk_bytes <= 1 << 20);
    mem_set_expect(f->dirfd, "pc.ram", f->ram, MAIN_SIZE);
}

static void copy_waits_for_the_instant(void **state)
{
    struct fixture *f = *state;
    CLEANUP(closep) int device = mem_set_device_fd();
    CLEANUP(capture_closep) struct capture *c = open_copy(f);
    struct capture_status status;
    struct capture_result r;

    mem_set_wait(c, MEM_SET_READY);
    assert_int_equal(capture_instant(c, &f->err), QSTILL_E_FAILED);
    assert_string_equal(f->err.message, "there is no device state");
    assert_int_equal(capture_finish(c, &r, &f->err), QSTILL_E_BUSY);
    assert_int_equal(capture_device_state(c, device, &f->err), 0);
    assert_int_equal(capture_device_state(c, device, &f->err), QSTILL_E_FAILED);
    usleep(20000);
    capture_poll(c, &status);
    assert_false(status.instant_taken);
    assert_int_equal(status.bytes_done, 0);
    /* what is written until the instant is in the capture */
    mem_set_fill(f->ram, MAIN_SIZE, 10, 77);
    assert_int_equal(capture_instant(c, &f->err), 0);
    mem_set_wait(c, MEM_SET_COMPLETE);
    assert_int_equal(capture_finish(c, &r, &f->err), 0);
    mem_set_expect(f->dirfd, "pc.ram", f->ram, MAIN_SIZE);
}

static void copy_refuses_what_is_no_device_state(void **state)
{
    struct fixture *f = *state;
    CLEANUP(closep) int device = memfd_create("x", MFD_CLOEXEC);
    CLEANUP(capture_closep) struct capture *c = open_copy(f);

    assert_int_equal(capture_device_state(c, device, &f->err),
                     QSTILL_E_CORRUPT);
    assert_int_equal(write(device, "QEVM\0\0\0\2\4", 9), 9);
    assert_int_equal(capture_device_state(c, device, &f->err),
                     QSTILL_E_CORRUPT);
    assert_string_equal(f->err.message, "this is no device state of QEMU");
}

static void copy_with_a_device_state_cut_short_fails(void **state)
{
    struct fixture *f = *state;
    CLEANUP(closep) int device = memfd_create("x", MFD_CLOEXEC);
    CLEANUP(capture_closep) struct capture *c = open_copy(f);
    struct capture_result r;

    assert_int_equal(write(device, mem_set_device, mem_set_device_len - 1),
                     mem_set_device_len - 1);
    assert_int_equal(capture_device_state(c, device, &f->err), 0);
    assert_int_equal(capture_instant(c, &f->err), 0);
    mem_set_wait(c, MEM_SET_COMPLETE);
    assert_int_equal(capture_finish(c, &r, &f->err), QSTILL_E_CORRUPT);
    assert_string_equal(f->err.message, "the device state ends without its end "
                                        "mark: it is cut short");
}

static void copy_of_memory_that_is_not_there_names_block_and_address(void **s)
{
    struct fixture *f = *s;
    CLEANUP(capture_closep) struct capture *c = NULL;
    struct capture_result r;
    char want[128];

    f->blocks[0].hva = 4096;
    snprintf(want, sizeof(want),
             "copying RAM block 'pc.ram': process %d cannot be read at address "
             "0x1000",
             (int)getpid());
    c = open_copy(f);
    assert_int_equal(carry_out(f, c, &r), QSTILL_E_FAILED);
    assert_string_equal(f->err.message, want);
    capture_close(take_ptr(&c));
    assert_int_equal(mem_tmpdir_count(f->dirfd), 0);
}

static void copy_of_a_process_that_is_gone_is_not_found(void **state)
{
    struct fixture *f = *state;
    struct capture *c = NULL;
    pid_t pid = fork();

    if (pid == 0)
        _exit(0);
    waitpid(pid, NULL, 0);
    assert_int_equal(
        capture_copy_open(&c, pid, f->blocks, 2, &f->options, &f->err),
        QSTILL_E_NOT_FOUND);
    assert_non_null(strstr(f->err.message, "there is no process"));
    assert_int_equal(mem_tmpdir_count(f->dirfd), 0);
}

static void copy_cancelled_stops_and_leaves_nothing(void **state)
{
    struct fixture *f = *state;
    CLEANUP(closep) int device = mem_set_device_fd();
    CLEANUP(capture_closep) struct capture *c = NULL;
    struct capture_result r;

    f->options.bwlimit = 1 << 20; /* five seconds of work */
    c = open_copy(f);
    assert_int_equal(capture_device_state(c, device, &f->err), 0);
    assert_int_equal(capture_instant(c, &f->err), 0);
    usleep(10000);
    capture_cancel(c);
    mem_set_wait(c, MEM_SET_COMPLETE);
    assert_int_equal(capture_finish(c, &r, &f->err), QSTILL_E_CANCELLED);
    capture_close(take_ptr(&c));
    assert_int_equal(mem_tmpdir_count(f->dirfd), 0);
}

static void copy_not_finished_leaves_nothing(void **state)
{
    struct fixture *f = *state;
    CLEANUP(closep) int device = mem_set_device_fd();
    struct capture *c = open_copy(f);

    assert_int_equal(capture_device_state(c, device, &f->err), 0);
    assert_int_equal(capture_instant(c, &f->err), 0);
    mem_set_wait(c, MEM_SET_COMPLETE);
    capture_close(c);
    assert_int_equal(mem_tmpdir_count(f->dirfd), 0);
}

/* Each call that changes something fails once, with ENOSPC: the code says so
 * and nothing is left. */
static void copy_onto_a_full_disk_says_so_wherever_it_happens(void **state)
{
    struct fixture *f = *state;
    long calls = 0;

    for (long n = 1;; n++) {
        struct fault_io fault;
        struct capture *c = NULL;
        struct capture_result r;
        int rc;

        fault_io_init(&fault, NULL);
        fault.kinds = FAULT_OPEN | FAULT_WRITE | FAULT_SYNC | FAULT_TRUNCATE;
        fault.at = n;
        fault.error = ENOSPC;
        f->options.io = &fault.io;
        rc =
            capture_copy_open(&c, getpid(), f->blocks, 2, &f->options, &f->err);
        if (rc == 0)
            rc = carry_out(f, c, &r);
        if (fault.failed == 0) {
            assert_int_equal(rc, 0);
            capture_close(c);
            break;
        }
        assert_int_equal(rc, QSTILL_E_NO_SPACE);
        capture_close(c);
        assert_int_equal(mem_tmpdir_count(f->dirfd), 0);
        calls = n;
    }
    assert_true(calls > 10);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(copy_equals_the_memory_and_its_sums),
        T(copy_leaves_holes_for_zero_pages),
        T(copy_does_not_fill_anonymous_memory_that_was_not_used),
        T(copy_does_not_fill_shared_memory_that_was_not_used),
        T(copy_of_a_private_file_mapping_has_the_files_pages),
        T(copy_waits_for_the_instant),
        T(copy_refuses_what_is_no_device_state),
        T(copy_with_a_device_state_cut_short_fails),
        T(copy_of_memory_that_is_not_there_names_block_and_address),
        T(copy_of_a_process_that_is_gone_is_not_found),
        T(copy_cancelled_stops_and_leaves_nothing),
        T(copy_not_finished_leaves_nothing),
        T(copy_onto_a_full_disk_says_so_wherever_it_happens),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
