/* SPDX-License-Identifier: MIT */
/* Mode `cow` when something fails, or we die: the writers are always let go,
 * and no file stays behind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../lib/cow_fixture.h"
#include "../lib/cow_target.h"
#include "../lib/fault_io.h"
#include "../lib/mem_set.h"
#include "../lib/mem_tmpdir.h"
#include "memstate/cow_map.h"
#include "memstate/uffd.h"

enum phase { AT_OPEN, AT_READY, AT_INSTANT, AT_COPY };

/* So slow that it is certainly not over. */
static struct capture *bring_to(struct cow_fixture *f, enum phase phase)
{
    struct capture *c;

    f->options.bwlimit = 4 * MIB;
    c = cow_open(f);
    if (phase >= AT_READY)
        mem_set_wait(c, MEM_SET_READY);
    if (phase >= AT_INSTANT) {
        cow_stress_pause(&f->stress);
        cow_instant(f, c);
    }
    if (phase >= AT_COPY) {
        cow_stress_resume(&f->stress);
        cow_stress_goes_on(&f->stress);
    }
    return c;
}

/* The writers, woken if they were paused, write on everywhere. */
static void expect_free(struct cow_fixture *f)
{
    cow_stress_resume(&f->stress);
    cow_stress_goes_on(&f->stress);
    cow_stress_goes_on(&f->stress);
}

static void a_cancelled_capture_lets_everybody_go(void **state)
{
    struct cow_fixture *f = *state;
    struct capture_result r;

    cow_start(f, COW_PRIVATE, true);
    for (int phase = AT_OPEN; phase <= AT_COPY; phase++) {
        struct capture *c = bring_to(f, (enum phase)phase);

        capture_cancel(c);
        mem_set_wait(c, MEM_SET_COMPLETE);
        expect_free(f);
        assert_int_equal(capture_finish(c, &r, &f->err), QSTILL_E_CANCELLED);
        assert_string_equal(f->err.message, "cancelled");
        capture_close(c);
        assert_int_equal(mem_tmpdir_count(f->dirfd), 0);
    }
    f->options.bwlimit = 0;
    cow_round(f);
    cow_stress_stop(&f->stress);
}

static void a_closed_capture_lets_everybody_go(void **state)
{
    struct cow_fixture *f = *state;

    cow_start(f, COW_MEMFD, true);
    for (int phase = AT_OPEN; phase <= AT_COPY; phase++) {
        capture_close(bring_to(f, (enum phase)phase));
        expect_free(f);
        assert_int_equal(mem_tmpdir_count(f->dirfd), 0);
    }
    cow_stress_stop(&f->stress);
}

/* A process of its own captures, and is killed at that phase. */
static void capture_and_die(struct cow_fixture *f, enum phase phase)
{
    int status, told[2];
    pid_t pid;
    char c;

    assert_int_equal(pipe(told), 0);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        bring_to(f, phase);
        if (write(told[1], "x", 1) != 1)
            _exit(1);
        for (;;)
            pause();
    }
    assert_int_equal(read(told[0], &c, 1), 1);
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    close(told[0]);
    close(told[1]);
}

static void our_death_lets_everybody_go(void **state)
{
    static const enum cow_memory kinds[] = {COW_PRIVATE, COW_MEMFD};
    struct cow_fixture *f = *state;

    for (size_t k = 0; k < 2; k++) {
        cow_start(f, kinds[k], true);
        for (int phase = AT_OPEN; phase <= AT_COPY; phase++) {
            capture_and_die(f, (enum phase)phase);
            expect_free(f);
            cow_empty_dir(f);
        }
        f->options.bwlimit = 0;
        cow_round(f);
        cow_empty_dir(f);
        cow_stress_stop(&f->stress);
        f->stress = (struct cow_stress){
            .size = 16 * MIB, .threads = 4, .pace_us = 1000};
    }
}

static void a_full_disk_ends_it_and_removes_the_files(void **state)
{
    struct cow_fixture *f = *state;
    struct capture_result r;
    struct capture *c;
    struct fault_io io;

    cow_start(f, COW_PRIVATE, true);
    fault_io_init(&io, NULL);
    io.kinds = FAULT_WRITE;
    io.at = 3;
    io.onwards = true;
    io.error = ENOSPC;
    f->options.io = &io.io;
    c = cow_open(f);
    mem_set_wait(c, MEM_SET_READY);
    cow_stress_pause(&f->stress);
    cow_instant(f, c);
    cow_stress_resume(&f->stress);
    mem_set_wait(c, MEM_SET_COMPLETE);
    expect_free(f);
    assert_int_equal(capture_finish(c, &r, &f->err), QSTILL_E_NO_SPACE);
    assert_non_null(strstr(f->err.message, "writing the memory of RAM block"));
    capture_close(c);
    assert_int_equal(mem_tmpdir_count(f->dirfd), 0);
    cow_stress_stop(&f->stress);
}

static void a_target_that_dies_is_an_error(void **state)
{
    struct cow_fixture *f = *state;
    struct capture_result r;
    struct capture *c;

    for (int phase = AT_OPEN; phase <= AT_COPY; phase++) {
        cow_start(f, COW_PRIVATE, true);
        c = bring_to(f, (enum phase)phase);
        cow_stress_stop(&f->stress);
        f->stress = (struct cow_stress){
            .size = 16 * MIB, .threads = 4, .pace_us = 1000};
        mem_set_wait(c, MEM_SET_COMPLETE);
        assert_true(capture_finish(c, &r, &f->err) < 0);
        assert_true(f->err.code == QSTILL_E_UNREACHABLE ||
                    f->err.code == QSTILL_E_FAILED);
        capture_close(c);
        assert_int_equal(mem_tmpdir_count(f->dirfd), 0);
    }
}

static void a_full_pool_makes_writers_wait_and_stays_right(void **state)
{
    struct cow_fixture *f = *state;

    f->cow.pool_bytes = 1; /* 4 MiB is the least */
    f->options.bwlimit = 30 * MIB;
    f->stress.size = 32 * MIB;
    f->stress.pace_us = 0;
    cow_start(f, COW_PRIVATE, true);
    cow_round(f);
    assert_true(f->stats.waited > 0);
    assert_int_equal(f->stats.pool_peak_bytes, 4 * MIB);
    assert_true(f->stats.longest_stall_ns > 0);
    cow_stress_stop(&f->stress);
}

/* ----------------------------------------------------------------- balloon */

/* A target that gives back a part of its memory whenever it gets a byte. */
struct balloon {
    pid_t pid;
    uint8_t *ram;
    int fds[2];
    int answers[2];
};

static void balloon_start(struct balloon *b)
{
    char c;

    b->ram = mmap(NULL, 16 * MIB, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(b->ram != MAP_FAILED);
    assert_int_equal(pipe(b->fds), 0);
    assert_int_equal(pipe(b->answers), 0);
    b->pid = fork();
    assert_true(b->pid >= 0);
    if (b->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
        memset(b->ram, 7, 16 * MIB);
        if (write(b->answers[1], "u", 1) != 1)
            _exit(1);
        while (read(b->fds[0], &c, 1) == 1) {
            madvise(b->ram + 12 * MIB, 3 * MIB, MADV_DONTNEED);
            b->ram[13 * MIB] = 9;
            if (write(b->answers[1], "d", 1) != 1)
                _exit(1);
        }
        _exit(0);
    }
    assert_int_equal(read(b->answers[0], &c, 1), 1);
}

static void balloon_blow(struct balloon *b)
{
    char c;

    assert_int_equal(write(b->fds[1], "x", 1), 1);
    assert_int_equal(read(b->answers[0], &c, 1), 1);
}

static void balloon_stop(struct balloon *b)
{
    kill(b->pid, SIGKILL);
    waitpid(b->pid, NULL, 0);
    munmap(b->ram, 16 * MIB);
    for (int i = 0; i < 2; i++) {
        close(b->fds[i]);
        close(b->answers[i]);
    }
}

static struct capture *balloon_open(struct cow_fixture *f,
                                    const struct balloon *b)
{
    struct capture_source s = {"pc.ram", (uintptr_t)b->ram, 16 * MIB, 4096};
    struct capture *c = NULL;

    if (cow_hindrance()) {
        print_message("skipped: %s\n", cow_hindrance());
        skip();
    }
    if (capture_cow_open(&c, b->pid, &s, 1, &f->cow, &f->options, &f->err) < 0)
        fail_msg("%s", f->err.message);
    mem_set_wait(c, MEM_SET_READY);
    return c;
}

static void memory_given_back_before_the_instant_is_zero(void **state)
{
    struct cow_fixture *f = *state;
    uint8_t *want = calloc(1, 16 * MIB);
    struct capture_result r;
    struct balloon b;
    struct capture *c;

    for (int old = 0; old < 2; old++) {
        f->cow.no_unpopulated = old == 1;
        balloon_start(&b);
        c = balloon_open(f, &b);
        balloon_blow(&b);
        cow_instant(f, c);
        mem_set_wait(c, MEM_SET_COMPLETE);
        assert_int_equal(capture_finish(c, &r, &f->err), 0);
        memset(want, 7, 16 * MIB);
        memset(want + 12 * MIB, 0, 3 * MIB);
        want[13 * MIB] = 9;
        mem_set_expect(f->dirfd, "pc.ram", want, 16 * MIB);
        assert_int_equal(r.zero_bytes, 3 * MIB - RAMSET_PAGE);
        capture_close(c);
        balloon_stop(&b);
        cow_empty_dir(f);
    }
    free(want);
}

static void memory_given_back_too_early_fails_with_its_reason(void **state)
{
    struct cow_fixture *f = *state;
    struct capture_result r;
    struct balloon b;
    struct capture *c;

    balloon_start(&b);
    f->options.bwlimit = 4 * MIB;
    c = balloon_open(f, &b);
    cow_instant(f, c);
    balloon_blow(&b); /* it is not held up either */
    mem_set_wait(c, MEM_SET_COMPLETE);
    assert_int_equal(capture_finish(c, &r, &f->err), QSTILL_E_FAILED);
    assert_string_equal(
        f->err.message,
        "the guest gave memory back (balloon) before it was saved");
    assert_non_null(strstr(f->err.hint, "--mode paused"));
    balloon_blow(&b);
    capture_close(c);
    assert_int_equal(mem_tmpdir_count(f->dirfd), 0);
    balloon_stop(&b);
}

/* ---------------------------------------------------------------- refusals */

static void refuse(struct cow_fixture *f, pid_t pid,
                   const struct capture_source *s, size_t n, int code,
                   const char *text)
{
    struct capture *c = NULL;

    assert_int_equal(
        capture_cow_open(&c, pid, s, n, &f->cow, &f->options, &f->err), code);
    if (!strstr(f->err.message, text))
        fail_msg("'%s' is not in '%s'", text, f->err.message);
    assert_null(c);
    assert_int_equal(mem_tmpdir_count(f->dirfd), 0);
}

static void memory_of_a_disk_file_is_refused_by_name(void **state)
{
    static const int flags[] = {MAP_PRIVATE, MAP_SHARED};
    static const char *const words[] = {"private", "shared"};
    struct cow_fixture *f = *state;
    char path[64], text[256];
    struct statfs fs;
    int fd;

    /* /tmp may be memory itself (it is on Debian 13) */
    assert_int_equal(statfs("/var/tmp", &fs), 0);
    if (fs.f_type == TMPFS_MAGIC)
        skip();
    cow_start(f, COW_PRIVATE, true);
    for (int i = 0; i < 2; i++) {
        struct capture_source s = {"pc.ram", 0, 4 * MIB, 4096};
        void *p;

        snprintf(path, sizeof(path), "/var/tmp/qstill-test.XXXXXX");
        fd = mkstemp(path);
        assert_true(fd >= 0);
        assert_int_equal(ftruncate(fd, 4 * MIB), 0);
        p = mmap(NULL, 4 * MIB, PROT_READ | PROT_WRITE, flags[i], fd, 0);
        assert_true(p != MAP_FAILED);
        s.hva = (uintptr_t)p;
        unlink(path);
        snprintf(text, sizeof(text),
                 "RAM block 'pc.ram': it is a %s mapping of the file %s",
                 words[i], path);
        refuse(f, getpid(), &s, 1, QSTILL_E_PRECONDITION, text);
        assert_non_null(strstr(f->err.hint, "--mode paused"));
        munmap(p, 4 * MIB);
        close(fd);
    }
    cow_stress_stop(&f->stress);
}

static void memory_that_is_not_there_is_refused(void **state)
{
    struct cow_fixture *f = *state;
    struct capture_source s[3];

    cow_start(f, COW_PRIVATE, true);
    cow_sources(f, s);
    s[0].size += 64 * 1024 * MIB;
    refuse(f, f->stress.pid, s, 1, QSTILL_E_PRECONDITION, "RAM block 'pc.ram'");
    s[1] = (struct capture_source){"other", s[0].hva + 4 * MIB, 8 * MIB, 0};
    s[0].size = 8 * MIB;
    refuse(f, f->stress.pid, s, 2, QSTILL_E_FAILED, "two RAM blocks overlap");
    s[0].hva += 512;
    refuse(f, f->stress.pid, s, 1, QSTILL_E_PRECONDITION,
           "border of its pages");
    refuse(f, 0x3fffffff, s, 1, QSTILL_E_UNREACHABLE, "there is no process");
    cow_stress_goes_on(&f->stress);
    cow_stress_stop(&f->stress);
}

static void shared_memory_that_a_balloon_gives_back_is_refused(void **state)
{
    struct cow_fixture *f = *state;
    struct capture_source s[4];
    size_t n;

    cow_start(f, COW_MEMFD, true);
    n = cow_sources(f, s);
    f->cow.gives_back = true;
    refuse(f, f->stress.pid, s, n, QSTILL_E_PRECONDITION,
           "which the VM's balloon gives back unseen");
    cow_stress_goes_on(&f->stress);
    cow_stress_stop(&f->stress);
}

static void two_captures_at_once_are_refused(void **state)
{
    struct cow_fixture *f = *state;
    struct capture_source s[3];
    struct capture *c;
    size_t n;

    cow_start(f, COW_PRIVATE, true);
    c = bring_to(f, AT_COPY);
    n = cow_sources(f, s);
    mem_tmpdir_remove(f->path, f->dirfd);
    f->dirfd = f->options.dirfd = mem_tmpdir_make(f->path);
    refuse(f, f->stress.pid, s, n, QSTILL_E_BUSY, "has a userfaultfd already");
    capture_close(c);
    expect_free(f);
    cow_stress_stop(&f->stress);
}

/* ------------------------------------------------------------ user of QEMU */

static int device_for_child = -1;

static void become_nobody(void)
{
    if (dup2(device_for_child, 77) != 77 || setgid(65534) < 0 ||
        setuid(65534) < 0)
        _exit(7);
    prctl(PR_SET_DUMPABLE, 1);
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
}

static void a_target_without_rights_uses_the_device_it_was_given(void **state)
{
    struct uffd_options o = UFFD_OPTIONS_INIT;
    struct cow_fixture *f = *state;
    struct cow_target t;
    struct uffd u;

    device_for_child = open("/dev/userfaultfd", O_RDWR);
    if (geteuid() != 0 || device_for_child < 0) {
        print_message("skipped: needs root and /dev/userfaultfd\n");
        skip();
    }
    cow_target_start_with(&t, COW_PPOLL, become_nobody);
    close(device_for_child);
    if (uffd_open(&u, t.pid, &o, &f->err) == 0) {
        uffd_close(&u); /* vm.unprivileged_userfaultfd=1 */
    } else {
        assert_int_equal(f->err.code, QSTILL_E_PERMISSION);
        assert_non_null(strstr(f->err.message, "only make a userfaultfd for "
                                               "faults of user mode"));
        assert_non_null(strstr(f->err.hint, "unprivileged_userfaultfd"));
    }
    o.device_fd = 77;
    if (uffd_open(&u, t.pid, &o, &f->err) < 0)
        fail_msg("%s", f->err.message);
    uffd_close(&u);
    cow_target_goes_on(&t);
    cow_target_stop(&t);
}

/* ------------------------------------------------------------------ stats */

static void stalls_are_told_by_their_share(void **state)
{
    struct cow_stats s = {.longest_stall_ns = 5300000};

    (void)state;
    s.stalls[3] = 980; /* less than 8 us */
    s.stalls[10] = 19; /* less than 1024 us */
    s.stalls[13] = 1;
    assert_true(cow_stats_stall_ms(&s, 0.5) == 0.008);
    assert_true(cow_stats_stall_ms(&s, 0.99) == 1.024);
    assert_true(cow_stats_stall_ms(&s, 1.0) == 5.3);
    memset(&s, 0, sizeof(s));
    assert_true(cow_stats_stall_ms(&s, 0.99) == 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, cow_setup, cow_teardown)
        T(a_cancelled_capture_lets_everybody_go),
        T(a_closed_capture_lets_everybody_go),
        T(our_death_lets_everybody_go),
        T(a_full_disk_ends_it_and_removes_the_files),
        T(a_target_that_dies_is_an_error),
        T(a_full_pool_makes_writers_wait_and_stays_right),
        T(memory_given_back_before_the_instant_is_zero),
        T(memory_given_back_too_early_fails_with_its_reason),
        T(memory_of_a_disk_file_is_refused_by_name),
        T(memory_that_is_not_there_is_refused),
        T(shared_memory_that_a_balloon_gives_back_is_refused),
        T(two_captures_at_once_are_refused),
        T(a_target_without_rights_uses_the_device_it_was_given),
        T(stalls_are_told_by_their_share),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
