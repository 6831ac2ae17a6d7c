/* SPDX-License-Identifier: MIT */
#include "cow_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "mem_set.h"
#include "mem_tmpdir.h"
#include "memstate/uffd.h"

const char *cow_hindrance(void)
{
    static struct qstill_error err;
    struct uffd_options o = UFFD_OPTIONS_INIT;
    struct uffd u;

    if (uffd_open(&u, getpid(), &o, &err) < 0)
        return err.message;
    uffd_close(&u);
    return NULL;
}

int cow_setup(void **state)
{
    struct cow_fixture *f = calloc(1, sizeof(*f));

    f->dirfd = mem_tmpdir_make(f->path);
    f->options = (struct capture_options){.dirfd = f->dirfd};
    f->cow = (struct capture_cow_options)CAPTURE_COW_OPTIONS_INIT;
    f->cow.stats = &f->stats;
    f->stress = (struct cow_stress){
        .size = 16 * MIB + 12288, .threads = 4, .pace_us = 1000};
    if (getenv("QSTILL_TEST_MIB")) {
        f->stress.size = strtoul(getenv("QSTILL_TEST_MIB"), NULL, 10) * MIB;
        f->stress.threads = 8;
    }
    f->rom = mmap(NULL, 65536, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mem_set_fill(f->rom, 65536, 10, 5);
    *state = f;
    return 0;
}

int cow_teardown(void **state)
{
    struct cow_fixture *f = *state;

    /* A test that failed leaves it running. */
    if (f->stress.pid > 0 && f->stress.pid != getpid())
        kill(f->stress.pid, SIGKILL);
    mem_tmpdir_remove(f->path, f->dirfd);
    munmap(f->rom, 65536);
    free(f);
    return 0;
}

void cow_start(struct cow_fixture *f, enum cow_memory kind, bool other)
{
    if (cow_hindrance()) {
        print_message("skipped: %s\n", cow_hindrance());
        skip();
    }
    if (!cow_stress_start(&f->stress, kind, other)) {
        print_message("skipped: no memory of this kind here\n");
        skip();
    }
}

/* The stress memory as three blocks with a hole between, and a ROM. */
size_t cow_sources(struct cow_fixture *f, struct capture_source *out)
{
    uint64_t at = (uintptr_t)f->stress.ram;
    bool huge = f->stress.fd >= 0 && f->stress.size % (2 * MIB) == 0;
    uint64_t first = 4 * MIB, gap = huge ? 0 : 8192;
    uint64_t second = f->stress.size - first - gap;

    out[0] = (struct capture_source){"pc.ram", at + first + gap, second, 0};
    out[1] = (struct capture_source){"dimm1", at, first, 0};
    out[2] = (struct capture_source){"pc.rom", (uintptr_t)f->rom, 65536, 0};
    return 3;
}

struct capture *cow_open(struct cow_fixture *f)
{
    struct capture_source s[3];
    struct capture *c = NULL;
    size_t n = cow_sources(f, s);

    if (capture_cow_open(&c, f->stress.pid, s, n, &f->cow, &f->options,
                         &f->err) < 0)
        fail_msg("%s", f->err.message);
    return c;
}

void cow_instant(struct cow_fixture *f, struct capture *c)
{
    CLEANUP(closep) int device = mem_set_device_fd();

    assert_int_equal(capture_device_state(c, device, &f->err), 0);
    assert_int_equal(capture_instant(c, &f->err), 0);
    mem_set_wait(c, MEM_SET_INSTANT);
}

void cow_expect_files(struct cow_fixture *f, const uint8_t *copy)
{
    struct capture_source s[3];

    cow_sources(f, s);
    for (int i = 0; i < 2; i++)
        mem_set_expect(f->dirfd, s[i].id,
                       copy + (s[i].hva - (uintptr_t)f->stress.ram), s[i].size);
    mem_set_expect(f->dirfd, "pc.rom", f->rom, 65536);
    if (mem_set_verify(f->dirfd, &f->err) < 0)
        fail_msg("%s", f->err.message);
}

/* Open, ready, pause, reference, instant, resume, complete, compare. */
void cow_round(struct cow_fixture *f)
{
    CLEANUP(capture_closep) struct capture *c = cow_open(f);
    CLEANUP(freep) uint8_t *copy = NULL;
    struct capture_result r;

    mem_set_wait(c, MEM_SET_READY);
    cow_stress_goes_on(&f->stress);
    cow_stress_pause(&f->stress);
    copy = cow_stress_copy(&f->stress);
    cow_instant(f, c);
    cow_stress_resume(&f->stress);
    mem_set_wait(c, MEM_SET_COMPLETE);
    if (capture_finish(c, &r, &f->err) < 0)
        fail_msg("%s", f->err.message);
    if (getenv("QSTILL_TEST_VERBOSE"))
        print_message("arm %.1f instant %.2f copy %.1f ms, marked %llu, "
                      "faults %llu (%llu waited), longest %.2f ms\n",
                      f->stats.arm_ms, f->stats.instant_ms, f->stats.copy_ms,
                      (unsigned long long)f->stats.marked,
                      (unsigned long long)f->stats.faults,
                      (unsigned long long)f->stats.waited,
                      (double)f->stats.longest_stall_ns / 1e6);
    cow_expect_files(f, copy);
    assert_int_equal(r.faults, f->stats.faults);
    assert_true(r.written_bytes > 0 && r.zero_bytes > 0);
    cow_stress_goes_on(&f->stress);
}

void cow_empty_dir(struct cow_fixture *f)
{
    mem_tmpdir_remove(f->path, f->dirfd);
    f->dirfd = mem_tmpdir_make(f->path);
    f->options.dirfd = f->dirfd;
}
