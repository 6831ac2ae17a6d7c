/* SPDX-License-Identifier: MIT */
/* The door for a VMM of one's own (qstill-memory.h): memory that threads write
 * to without pause, captured and restored through the public calls alone. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../lib/cow_fixture.h"
#include "../lib/mem_tmpdir.h"
#include "qstill-memory.h"

#define STATE "what the devices know"

struct toy {
    struct cow_stress stress;
    char path[128]; /* a scratch directory */
    char dir[160];  /* the capture, in it */
    int dirfd;
    struct qstill_region regions[2];
    struct qstill_vmm vmm;
    struct qstill_memory_options options;
    struct qstill_error err;
    uint8_t *reference; /* the RAM at the pause, by a second reader */
    uint8_t *rom;
    int paused, resumed, saved, loaded;
    int fail_pause, fail_save, slow_save_ms;
};

static int toy_pause(void *user, struct qstill_error *err)
{
    struct toy *t = user;

    if (t->fail_pause) {
        snprintf(err->message, sizeof(err->message), "the brake is broken");
        return err->code = QSTILL_E_FAILED;
    }
    cow_stress_pause(&t->stress);
    t->paused++;
    free(t->reference);
    t->reference = cow_stress_copy(&t->stress);
    return 0;
}

static int toy_resume(void *user, struct qstill_error *err)
{
    struct toy *t = user;

    (void)err;
    t->resumed++;
    cow_stress_resume(&t->stress);
    return 0;
}

static int toy_save(void *user, int fd, struct qstill_error *err)
{
    struct toy *t = user;

    t->saved++;
    usleep((useconds_t)t->slow_save_ms * 1000);
    if (t->fail_save) {
        snprintf(err->message, sizeof(err->message), "a device is mute");
        return err->code = QSTILL_E_FAILED;
    }
    return write(fd, STATE, sizeof(STATE)) == sizeof(STATE) ? 0 : -1;
}

static int toy_load(void *user, const void *state, size_t length,
                    struct qstill_error *err)
{
    struct toy *t = user;

    (void)err;
    assert_int_equal(length, sizeof(STATE));
    assert_memory_equal(state, STATE, sizeof(STATE));
    t->loaded++;
    return 0;
}

static int setup(void **state)
{
    struct toy *t = calloc(1, sizeof(*t));

    t->dirfd = mem_tmpdir_make(t->path);
    snprintf(t->dir, sizeof(t->dir), "%s/one", t->path);
    t->stress =
        (struct cow_stress){.size = 16 * MIB, .threads = 4, .pace_us = 1000};
    t->options = (struct qstill_memory_options)QSTILL_MEMORY_OPTIONS_INIT;
    t->vmm = (struct qstill_vmm){sizeof(t->vmm), t,        toy_pause,
                                 toy_resume,     toy_save, toy_load};
    t->rom = mmap(NULL, 65536, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(t->rom, 0x5a, 65536);
    *state = t;
    return 0;
}

static void empty(const char *path)
{
    char command[400];

    snprintf(command, sizeof(command), "rm -rf '%s/one' '%s/one.partial'", path,
             path);
    assert_int_equal(system(command), 0);
}

static int teardown(void **state)
{
    struct toy *t = *state;

    empty(t->path);
    if (t->stress.pid > 0 && t->stress.pid != getpid())
        kill(t->stress.pid, SIGKILL);
    mem_tmpdir_remove(t->path, t->dirfd);
    munmap(t->rom, 65536);
    free(t->reference);
    free(t);
    return 0;
}

static void begin_in(struct toy *t, enum cow_memory kind, bool other)
{
    if (cow_hindrance()) {
        print_message("skipped: %s\n", cow_hindrance());
        skip();
    }
    if (!cow_stress_start(&t->stress, kind, other)) {
        print_message("skipped: no memory of this kind here\n");
        skip();
    }
    t->regions[0] =
        (struct qstill_region){"main", t->stress.ram, t->stress.size, 4096, 0};
    /* At the same address in a forked process. */
    t->regions[1] = (struct qstill_region){"a/rom", t->rom, 65536, 0, 0};
}

static void begin(struct toy *t)
{
    begin_in(t, COW_PRIVATE, false);
}

static int capture(struct toy *t, struct qstill_job **out)
{
    struct qstill_job *job = NULL;
    int r = qstill_memory_capture(t->dir, t->regions, 2, &t->vmm, &t->options,
                                  &job, &t->err);

    if (r == 0)
        r = qstill_job_run(job, NULL, NULL, &t->err);
    if (r == 0)
        *out = job;
    else
        qstill_job_free(job);
    return r;
}

static void good_capture(struct toy *t, const char *mode)
{
    const struct qstill_memory_result *got;
    struct qstill_job *job = NULL;

    if (capture(t, &job) < 0)
        fail_msg("%s", t->err.message);
    got = qstill_memory_result(job);
    assert_non_null(got);
    assert_string_equal(got->mode, mode);
    assert_true(got->pause_ms > 0);
    assert_int_equal(got->memory_bytes, t->stress.size + 65536);
    assert_in_range(got->written_bytes, 65536, got->memory_bytes);
    assert_in_range(got->size_bytes, 65536, got->memory_bytes + (4 << 20));
    qstill_job_free(job);
    assert_int_equal(t->paused, t->resumed);
    cow_stress_goes_on(&t->stress);
}

/* Into memory that is full of something else; must equal the reference. */
static void expect_restored(struct toy *t)
{
    uint8_t *ram = mmap(NULL, t->stress.size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct qstill_region there[2] = {t->regions[1], t->regions[0]};
    struct qstill_job *job = NULL;
    uint8_t rom[65536];

    memset(ram, 0xaa, t->stress.size);
    memset(t->rom, 0, 65536);
    there[1].address = ram;
    if (qstill_memory_restore(t->dir, there, 2, &t->vmm, &job, &t->err) < 0 ||
        qstill_job_run(job, NULL, NULL, &t->err) < 0)
        fail_msg("%s", t->err.message);
    qstill_job_free(job);
    memset(rom, 0x5a, sizeof(rom));
    assert_memory_equal(t->rom, rom, sizeof(rom));
    assert_int_equal(memcmp(ram, t->reference, t->stress.size), 0);
    assert_int_equal(t->loaded, 1);
    munmap(ram, t->stress.size);
}

/* The VM runs, nothing stands under the name or beside it. */
static void expect_nothing(struct toy *t)
{
    char partial[200];

    assert_int_equal(t->paused, t->resumed);
    cow_stress_goes_on(&t->stress);
    snprintf(partial, sizeof(partial), "%s.partial", t->dir);
    assert_int_equal(access(t->dir, F_OK), -1);
    assert_int_equal(access(partial, F_OK), -1);
}

static void a_running_vm_is_captured_and_restored_as_it_was(void **state)
{
    struct toy *t = *state;

    begin(t);
    t->options.bwlimit = 40 * MIB;
    good_capture(t, "cow");
    expect_restored(t);
    cow_stress_stop(&t->stress);
}

static void shared_memory_of_another_process_too(void **state)
{
    struct toy *t = *state;

    begin_in(t, COW_MEMFD, true);
    t->options.pid = t->stress.pid;
    good_capture(t, "cow");
    /* The ROM is that of the process, and was copied when it was forked. */
    expect_restored(t);
    cow_stress_stop(&t->stress);
}

static void a_userfaultfd_of_its_own_is_used(void **state)
{
    struct toy *t = *state;

    begin(t);
    t->options.has_userfaultfd = true;
    t->options.userfaultfd = (int)syscall(SYS_userfaultfd, 0);
    if (t->options.userfaultfd < 0) {
        print_message("skipped: no userfaultfd: %s\n", strerror(errno));
        cow_stress_stop(&t->stress);
        skip();
    }
    t->options.mode = "cow";
    good_capture(t, "cow");
    /* It was taken over. */
    assert_int_equal(fcntl(t->options.userfaultfd, F_GETFD), -1);
    expect_restored(t);
    cow_stress_stop(&t->stress);
}

static void a_descriptor_that_is_no_userfaultfd_is_refused(void **state)
{
    struct qstill_job *job = NULL;
    struct toy *t = *state;

    begin(t);
    t->options.has_userfaultfd = true;
    t->options.userfaultfd = open("/dev/null", O_RDWR);
    assert_int_equal(capture(t, &job), QSTILL_E_USAGE);
    assert_non_null(strstr(t->err.message, "is no fresh userfaultfd"));
    assert_int_equal(t->paused, 0);
    expect_nothing(t);
    cow_stress_stop(&t->stress);
}

static void a_vm_without_device_state_needs_no_callbacks_for_it(void **state)
{
    struct toy *t = *state;

    begin(t);
    t->vmm.save = NULL;
    good_capture(t, "cow");
    t->vmm.load = NULL;
    t->loaded = 1; /* not called */
    expect_restored(t);
    cow_stress_stop(&t->stress);
}

static void mode_paused_holds_it_for_the_whole_copy(void **state)
{
    struct toy *t = *state;

    begin(t);
    t->options.mode = "paused";
    good_capture(t, "paused");
    expect_restored(t);
    cow_stress_stop(&t->stress);
}

static void auto_takes_paused_where_cow_cannot_be_and_says_why(void **state)
{
    const struct qstill_memory_result *got;
    struct qstill_job *job = NULL;
    char file[200];
    struct toy *t = *state;
    int fd;

    begin(t);
    /* A private mapping of a file on a disk cannot be protected. */
    snprintf(file, sizeof(file), "%s/file", t->path);
    fd = open(file, O_RDWR | O_CREAT, 0600);
    assert_int_equal(ftruncate(fd, 4 * MIB), 0);
    t->regions[1].length = 4 * MIB;
    t->regions[1].address =
        mmap(NULL, 4 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    close(fd);
    t->options.mode = "cow";
    if (capture(t, &job) == 0) {
        print_message("skipped: the scratch directory is memory\n");
        qstill_job_free(job);
        cow_stress_stop(&t->stress);
        skip();
    }
    assert_int_equal(t->err.code, QSTILL_E_PRECONDITION);
    assert_non_null(strstr(t->err.message, "RAM block 'a/rom'"));
    expect_nothing(t);
    t->options.mode = NULL;
    if (capture(t, &job) < 0)
        fail_msg("%s", t->err.message);
    got = qstill_memory_result(job);
    assert_string_equal(got->mode, "paused");
    assert_non_null(strstr(got->mode_reason, "cannot be write-protected"));
    qstill_job_free(job);
    munmap(t->regions[1].address, 4 * MIB);
    cow_stress_stop(&t->stress);
}

static void callbacks_that_fail_leave_it_running_and_no_files(void **state)
{
    struct qstill_job *job = NULL;
    struct toy *t = *state;

    begin(t);
    t->fail_pause = 1;
    assert_int_equal(capture(t, &job), QSTILL_E_FAILED);
    assert_string_equal(t->err.message, "pausing the VM: the brake is broken");
    expect_nothing(t);
    t->fail_pause = 0;
    t->fail_save = 1;
    assert_int_equal(capture(t, &job), QSTILL_E_FAILED);
    assert_string_equal(t->err.message,
                        "saving the device state: a device is mute");
    assert_int_equal(t->resumed, 1);
    expect_nothing(t);
    cow_stress_stop(&t->stress);
}

/* Bare codes, as an embedder may well return them: `err` stays empty. */
static int mute(void *user, struct qstill_error *err)
{
    (void)user;
    (void)err;
    return QSTILL_E_FAILED;
}

static int mute_save(void *user, int fd, struct qstill_error *err)
{
    (void)fd;
    return mute(user, err);
}

static int mute_load(void *user, const void *state, size_t length,
                     struct qstill_error *err)
{
    (void)state;
    (void)length;
    mute(user, err);
    return QSTILL_E_CORRUPT;
}

static void shared_memory_that_is_given_back_is_not_for_cow(void **state)
{
    struct toy *t = *state;
    struct qstill_job *job = NULL;

    begin_in(t, COW_MEMFD, false);
    t->options.gives_back = true;
    t->options.mode = "cow";
    assert_int_equal(capture(t, &job), QSTILL_E_PRECONDITION);
    assert_non_null(strstr(t->err.message, "'main' is shared memory"));
    assert_non_null(strstr(t->err.message, "gives back unseen"));
    expect_nothing(t);
    t->options.mode = NULL;
    good_capture(t, "paused");
    cow_stress_stop(&t->stress);
}

static void private_memory_that_is_given_back_is(void **state)
{
    struct toy *t = *state;

    begin(t);
    t->options.gives_back = true;
    good_capture(t, "cow");
    cow_stress_stop(&t->stress);
}

static void callbacks_may_fail_without_a_word(void **state)
{
    struct qstill_job *job = NULL;
    struct toy *t = *state;

    begin(t);
    t->vmm.pause = mute;
    assert_int_equal(capture(t, &job), QSTILL_E_FAILED);
    assert_non_null(strstr(t->err.message, "pausing the VM"));
    expect_nothing(t);
    t->vmm.pause = toy_pause;
    t->vmm.save = mute_save;
    assert_int_equal(capture(t, &job), QSTILL_E_FAILED);
    assert_non_null(strstr(t->err.message, "saving the device state"));
    assert_int_equal(t->resumed, 1);
    expect_nothing(t);
    t->vmm.save = toy_save;
    t->vmm.resume = mute;
    assert_int_equal(capture(t, &job), QSTILL_E_FAILED);
    assert_non_null(strstr(t->err.message, "resuming the VM"));
    toy_resume(t, &t->err);
    expect_nothing(t);
    t->vmm.resume = toy_resume;
    good_capture(t, "cow");
    t->vmm.load = mute_load;
    cow_stress_pause(&t->stress); /* who is restored does not run */
    assert_int_equal(
        qstill_memory_restore(t->dir, t->regions, 2, &t->vmm, &job, &t->err),
        0);
    assert_int_equal(qstill_job_run(job, NULL, NULL, &t->err),
                     QSTILL_E_CORRUPT);
    assert_non_null(strstr(t->err.message, "loading the device state"));
    qstill_job_free(job);
    cow_stress_resume(&t->stress);
    cow_stress_stop(&t->stress);
}

static void regions_are_apart_and_have_names_of_their_own(void **state)
{
    struct qstill_job *job = NULL;
    struct toy *t = *state;

    begin(t);
    t->regions[1].id = "main";
    assert_int_equal(capture(t, &job), QSTILL_E_USAGE);
    assert_int_equal(
        qstill_memory_restore(t->path, t->regions, 2, &t->vmm, &job, &t->err),
        QSTILL_E_USAGE);
    assert_non_null(strstr(t->err.message, "two regions have the id 'main'"));
    t->regions[1] = t->regions[0];
    t->regions[1].id = "again";
    t->regions[1].address = (uint8_t *)t->regions[0].address + 4096;
    t->regions[1].length -= 4096;
    assert_int_equal(capture(t, &job), QSTILL_E_USAGE);
    assert_non_null(strstr(t->err.message, "overlap"));
    assert_int_equal(t->paused, 0);
    expect_nothing(t);
    cow_stress_stop(&t->stress);
}

static void a_pause_that_is_too_long_is_no_capture(void **state)
{
    struct qstill_job *job = NULL;
    struct toy *t = *state;

    begin(t);
    t->slow_save_ms = 30;
    t->options.max_pause_ms = 20;
    assert_int_equal(capture(t, &job), QSTILL_E_PRECONDITION);
    assert_non_null(strstr(t->err.message, "would have been over 20 ms"));
    expect_nothing(t);
    t->options.max_pause_ms = 20000;
    good_capture(t, "cow");
    cow_stress_stop(&t->stress);
}

static void cancelled_while_it_copies_it_leaves_nothing(void **state)
{
    struct qstill_job *job = NULL;
    struct toy *t = *state;
    bool done = false;

    begin(t);
    t->options.bwlimit = 1 * MIB;
    assert_int_equal(qstill_memory_capture(t->dir, t->regions, 2, &t->vmm,
                                           &t->options, &job, &t->err),
                     0);
    while (!t->resumed)
        assert_int_equal(qstill_job_step(job, &done, &t->err), 0);
    qstill_job_cancel(job);
    assert_int_equal(qstill_job_run(job, NULL, NULL, &t->err),
                     QSTILL_E_CANCELLED);
    assert_null(qstill_memory_result(job));
    qstill_job_free(job);
    expect_nothing(t);
    cow_stress_stop(&t->stress);
}

static void a_directory_that_is_there_is_not_touched(void **state)
{
    struct qstill_job *job = NULL;
    struct toy *t = *state;

    begin(t);
    good_capture(t, "cow");
    assert_int_equal(capture(t, &job), QSTILL_E_BUSY);
    assert_string_equal(t->err.message, "one exists already");
    expect_restored(t);
    cow_stress_stop(&t->stress);
}

static void what_a_dead_capture_left_is_replaced_and_a_living_one_not(void **s)
{
    struct toy *t = *s;
    struct qstill_job *first = NULL, *job = NULL;
    char partial[200], file[220];
    bool done = false;
    int fd;

    begin(t);
    snprintf(partial, sizeof(partial), "%s.partial", t->dir);
    snprintf(file, sizeof(file), "%s/main.ram", partial);
    assert_int_equal(mkdir(partial, 0700), 0);
    fd = open(file, O_WRONLY | O_CREAT, 0600);
    close(fd);
    t->options.bwlimit = 8 * MIB;
    assert_int_equal(qstill_memory_capture(t->dir, t->regions, 2, &t->vmm,
                                           &t->options, &first, &t->err),
                     0);
    while (!t->resumed)
        assert_int_equal(qstill_job_step(first, &done, &t->err), 0);
    assert_int_equal(capture(t, &job), QSTILL_E_BUSY);
    assert_string_equal(t->err.message,
                        "another capture is writing one.partial");
    if (qstill_job_run(first, NULL, NULL, &t->err) < 0)
        fail_msg("%s", t->err.message);
    qstill_job_free(first);
    expect_restored(t);
    cow_stress_stop(&t->stress);
}

static int run_verify(struct toy *t)
{
    struct qstill_job *job = NULL;
    int r = qstill_memory_verify(t->dir, &job, &t->err);

    if (r == 0)
        r = qstill_job_run(job, NULL, NULL, &t->err);
    qstill_job_free(job);
    return r;
}

static void damage_is_found_and_what_does_not_fit_is_refused(void **state)
{
    struct qstill_job *job = NULL;
    struct toy *t = *state;
    uint8_t *ram;
    char file[220];
    int fd;

    begin(t);
    good_capture(t, "cow");
    cow_stress_stop(&t->stress);
    ram = aligned_alloc(4096, t->stress.size);
    memset(ram, 0, t->stress.size);
    t->regions[0].address = ram;
    t->regions[0].length = 65536;
    assert_int_equal(
        qstill_memory_restore(t->dir, t->regions, 2, &t->vmm, &job, &t->err),
        QSTILL_E_PRECONDITION);
    assert_non_null(strstr(t->err.message, "block 'main' has 16777216 bytes in "
                                           "the capture, and 65536 here"));
    assert_int_equal(qstill_memory_restore(t->dir, t->regions + 1, 1, &t->vmm,
                                           &job, &t->err),
                     QSTILL_E_PRECONDITION);
    assert_non_null(strstr(t->err.message, "has no place here"));
    assert_int_equal(run_verify(t), 0);

    snprintf(file, sizeof(file), "%s/a%%2From.ram", t->dir);
    fd = open(file, O_RDWR);
    assert_int_equal(pwrite(fd, "X", 1, 5000), 1);
    close(fd);
    assert_int_equal(run_verify(t), QSTILL_E_CORRUPT);
    t->regions[0] = (struct qstill_region){
        "main",
        mmap(NULL, t->stress.size, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
        t->stress.size, 0, 0};
    assert_int_equal(
        qstill_memory_restore(t->dir, t->regions, 2, &t->vmm, &job, &t->err),
        0);
    assert_int_equal(qstill_job_run(job, NULL, NULL, &t->err),
                     QSTILL_E_CORRUPT);
    assert_non_null(strstr(t->err.message, "a%2From.ram"));
    qstill_job_free(job);
    assert_int_equal(t->loaded, 0);
    munmap(t->regions[0].address, t->stress.size);
    free(ram);
}

static void nonsense_is_refused(void **state)
{
    struct toy *t = *state;
    struct qstill_job *job = NULL;
    struct qstill_region r[2];
    uint8_t *page = t->rom;

    r[0] = (struct qstill_region){"a", page, 4096, 0, 0};
    r[1] = (struct qstill_region){"a", page + 4096, 4096, 0, 0};
#define REFUSED(n, words)                                                      \
    do {                                                                       \
        int code_ = qstill_memory_capture(t->dir, r, n, &t->vmm, &t->options,  \
                                          &job, &t->err);                      \
        assert_int_equal(code_, QSTILL_E_USAGE);                               \
        assert_non_null(strstr(t->err.message, words));                        \
    } while (0)
    REFUSED(0, "0 regions are not 1 to 256");
    r[0].length = 5000;
    REFUSED(1, "region 'a' is not a number of whole pages");
    r[0].length = 4096;
    r[0].id = "";
    REFUSED(1, "the id of region 0 is not 1 to 255 bytes long");
    r[0].id = "a";
    t->options.mode = "fast";
    REFUSED(1, "unknown mode 'fast'");
    t->options.mode = "paused";
    t->vmm.pause = NULL;
    REFUSED(1, "without pause and resume");
    t->vmm.pause = toy_pause;
    t->dir[strlen(t->dir) - 3] = '\0';
    REFUSED(1, "names no new directory");
    assert_int_equal(t->paused, 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
#undef T
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        T(a_running_vm_is_captured_and_restored_as_it_was),
        T(shared_memory_of_another_process_too),
        T(a_userfaultfd_of_its_own_is_used),
        T(a_descriptor_that_is_no_userfaultfd_is_refused),
        T(a_vm_without_device_state_needs_no_callbacks_for_it),
        T(mode_paused_holds_it_for_the_whole_copy),
        T(auto_takes_paused_where_cow_cannot_be_and_says_why),
        T(shared_memory_that_is_given_back_is_not_for_cow),
        T(private_memory_that_is_given_back_is),
        T(callbacks_may_fail_without_a_word),
        T(regions_are_apart_and_have_names_of_their_own),
        T(callbacks_that_fail_leave_it_running_and_no_files),
        T(a_pause_that_is_too_long_is_no_capture),
        T(cancelled_while_it_copies_it_leaves_nothing),
        T(a_directory_that_is_there_is_not_touched),
        T(what_a_dead_capture_left_is_replaced_and_a_living_one_not),
        T(damage_is_found_and_what_does_not_fit_is_refused),
        T(nonsense_is_refused),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
