/* SPDX-License-Identifier: MIT */
/* What a VMM of one's own may hand over or return that is not as it should be:
 * who closes its userfaultfd, callbacks that say two things, a DIR.partial
 * that is somebody else's. No thread writes here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../lib/cow_fixture.h"
#include "../lib/mem_tmpdir.h"
#include "qstill-memory.h"

#define SIZE (2 * MIB)

/* What a callback returns, and what it puts into its `err`. */
struct says {
    int returns;
    int code;
    const char *message;
    const char *hint;
};

struct door {
    char path[128]; /* a scratch directory */
    char dir[160];  /* the capture, in it */
    char partial[180];
    int dirfd;
    uint8_t *ram;
    struct qstill_region region;
    struct qstill_vmm vmm;
    struct qstill_memory_options options;
    struct qstill_error err;
    struct says pause, save, resume, load;
    int paused, resumed;
};

static int say(const struct says *s, struct qstill_error *err)
{
    if (s->code)
        err->code = s->code;
    if (s->message)
        snprintf(err->message, sizeof(err->message), "%s", s->message);
    if (s->hint)
        snprintf(err->hint, sizeof(err->hint), "%s", s->hint);
    return s->returns;
}

static int door_pause(void *user, struct qstill_error *err)
{
    struct door *d = user;

    d->paused += d->pause.returns == 0;
    return say(&d->pause, err);
}

static int door_resume(void *user, struct qstill_error *err)
{
    struct door *d = user;

    d->resumed++;
    return say(&d->resume, err);
}

static int door_save(void *user, int fd, struct qstill_error *err)
{
    (void)fd;
    return say(&((struct door *)user)->save, err);
}

static int door_load(void *user, const void *state, size_t length,
                     struct qstill_error *err)
{
    (void)state;
    (void)length;
    return say(&((struct door *)user)->load, err);
}

static int setup(void **state)
{
    struct door *d = calloc(1, sizeof(*d));

    d->dirfd = mem_tmpdir_make(d->path);
    snprintf(d->dir, sizeof(d->dir), "%s/one", d->path);
    snprintf(d->partial, sizeof(d->partial), "%s.partial", d->dir);
    d->ram = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(d->ram != MAP_FAILED);
    memset(d->ram, 0x5a, SIZE / 2);
    d->region = (struct qstill_region){"main", d->ram, SIZE, 4096, 0};
    d->vmm = (struct qstill_vmm){sizeof(d->vmm), d,         door_pause,
                                 door_resume,    door_save, door_load};
    d->options = (struct qstill_memory_options)QSTILL_MEMORY_OPTIONS_INIT;
    *state = d;
    return 0;
}

static int teardown(void **state)
{
    struct door *d = *state;
    char command[200];

    snprintf(command, sizeof(command), "rm -rf '%s'/*", d->path);
    assert_int_equal(system(command), 0);
    mem_tmpdir_remove(d->path, d->dirfd);
    munmap(d->ram, SIZE);
    free(d);
    return 0;
}

static int begin(struct door *d, struct qstill_job **job)
{
    return qstill_memory_capture(d->dir, &d->region, 1, &d->vmm, &d->options,
                                 job, &d->err);
}

static int capture(struct door *d)
{
    struct qstill_job *job = NULL;
    int r = begin(d, &job);

    if (r == 0)
        r = qstill_job_run(job, NULL, NULL, &d->err);
    qstill_job_free(job);
    return r;
}

static int restore(struct door *d)
{
    struct qstill_job *job = NULL;
    int r =
        qstill_memory_restore(d->dir, &d->region, 1, &d->vmm, &job, &d->err);

    if (r == 0)
        r = qstill_job_run(job, NULL, NULL, &d->err);
    qstill_job_free(job);
    return r;
}

/* ------------------------------------------------------- the userfaultfd */

static bool is_open(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

/* A descriptor is enough where it is not to be used. */
static void give(struct door *d)
{
    d->options.has_userfaultfd = true;
    d->options.userfaultfd = open("/dev/null", O_RDWR | O_CLOEXEC);
    assert_true(d->options.userfaultfd >= 0);
}

static void expect_refused_and_closed(struct door *d, const char *words)
{
    assert_int_equal(capture(d), QSTILL_E_USAGE);
    assert_non_null(strstr(d->err.message, words));
    assert_false(is_open(d->options.userfaultfd));
    assert_int_equal(d->paused, 0);
}

static void what_is_refused_at_the_door_takes_the_userfaultfd_too(void **state)
{
    struct {
        struct qstill_memory_options known;
        uint64_t unknown;
    } newer = {.unknown = 1};
    struct door *d = *state;
    struct qstill_job *job = NULL;

    give(d);
    newer.known = d->options;
    newer.known.size = sizeof(newer);
    assert_int_equal(qstill_memory_capture(d->dir, &d->region, 1, &d->vmm,
                                           &newer.known, &job, &d->err),
                     QSTILL_E_USAGE);
    assert_non_null(strstr(d->err.message, "does not know"));
    assert_false(is_open(d->options.userfaultfd));

    give(d);
    d->vmm.pause = NULL;
    expect_refused_and_closed(d, "without pause and resume");
    d->vmm.pause = door_pause;
    give(d);
    d->vmm.size = 1;
    expect_refused_and_closed(d, "no valid size");
    d->vmm.size = sizeof(d->vmm);
    give(d);
    d->options.mode = "fast";
    expect_refused_and_closed(d, "unknown mode 'fast'");
    d->options.mode = NULL;
    give(d);
    d->region.length = 5000;
    expect_refused_and_closed(d, "not a number of whole pages");
    d->region.length = SIZE;
    give(d);
    strcat(d->dir, "/..");
    expect_refused_and_closed(d, "names no new directory");
}

static void a_capture_that_does_not_need_it_closes_it(void **state)
{
    struct door *d = *state;
    struct qstill_job *job = NULL;

    give(d);
    d->options.mode = "paused";
    if (capture(d) < 0)
        fail_msg("%s", d->err.message);
    assert_false(is_open(d->options.userfaultfd));

    /* A job that never ran. */
    give(d);
    d->options.mode = NULL;
    assert_int_equal(begin(d, &job), 0);
    assert_true(is_open(d->options.userfaultfd));
    qstill_job_free(job);
    assert_false(is_open(d->options.userfaultfd));
}

static void options_without_a_size_take_nothing(void **state)
{
    struct door *d = *state;
    struct qstill_job *job = NULL;

    give(d);
    d->options.size = 0;
    assert_int_equal(begin(d, &job), QSTILL_E_USAGE);
    assert_true(is_open(d->options.userfaultfd));
    /* As of a caller that was built when there was none. */
    d->options.size = offsetof(struct qstill_memory_options, has_userfaultfd);
    d->options.mode = "fast";
    assert_int_equal(begin(d, &job), QSTILL_E_USAGE);
    assert_true(is_open(d->options.userfaultfd));
    close(d->options.userfaultfd);
}

static void a_negative_descriptor_is_not_taken_for_none(void **state)
{
    struct door *d = *state;

    d->options.has_userfaultfd = true;
    d->options.userfaultfd = -1;
    assert_int_equal(capture(d), QSTILL_E_USAGE);
    assert_non_null(strstr(d->err.message, "userfaultfd -1"));
    assert_int_equal(d->paused, 0);
}

/* A monitor that makes it, and only then becomes a process of its own (a
 * daemon): it is for the memory of the parent, at the same addresses. */
static void one_of_another_process_is_refused(void **state)
{
    struct door *d = *state;
    int status;
    pid_t child;

    d->options.has_userfaultfd = true;
    d->options.userfaultfd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    if (d->options.userfaultfd < 0) {
        print_message("skipped: no userfaultfd here\n");
        skip();
    }
    child = fork();
    assert_true(child >= 0);
    if (child == 0)
        _exit(capture(d) != QSTILL_E_USAGE                          ? 1
              : strstr(d->err.message, "is not of process") == NULL ? 2
              : d->paused || access(d->partial, F_OK) == 0          ? 3
                                                                    : 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    close(d->options.userfaultfd);
    assert_int_equal(status, 0);
    memset(d->ram, 1, SIZE); /* the parent's is as free as it was */
}

/* ------------------------------------------------------------- callbacks */

static void who_returns_0_has_done_it_whatever_err_says(void **state)
{
    static const struct says both = {0, QSTILL_E_CORRUPT, "a late thought",
                                     "ask the vendor"};
    static const struct says plus = {0, 7, "a late thought", NULL};
    struct door *d = *state;

    d->options.mode = "paused";
    for (int i = 0; i < 2; i++) {
        d->pause = d->save = d->resume = d->load = i ? plus : both;
        if (capture(d) < 0)
            fail_msg("%s", d->err.message);
        assert_int_equal(d->err.code, 0);
        memset(d->ram, 0, SIZE);
        if (restore(d) < 0)
            fail_msg("%s", d->err.message);
        assert_int_equal(d->err.code, 0);
        assert_int_equal(d->ram[SIZE / 2 - 1], 0x5a);
        d->dir[strlen(d->dir) - 1]++;
    }
    /* In an undo. */
    d->save = (struct says){.returns = QSTILL_E_FAILED};
    assert_int_equal(capture(d), QSTILL_E_FAILED);
    assert_string_equal(d->err.message,
                        "saving the device state: the VMM's callback returned "
                        "-1");
    d->resume = both;
    assert_int_equal(capture(d), QSTILL_E_FAILED);
    assert_string_equal(d->err.hint, "");
    assert_int_equal(d->paused, 4);
    assert_int_equal(d->resumed, 4);
}

static void expect_nothing(struct door *d)
{
    assert_int_equal(d->paused, d->resumed);
    assert_int_equal(access(d->dir, F_OK), -1);
    assert_int_equal(access(d->partial, F_OK), -1);
}

/* An errno, or a library's own number, is no success. */
static void a_positive_code_is_a_failure(void **state)
{
    static const struct says plus = {-1, 5, "the brake is broken", NULL};
    static const struct says bare = {5, 0, "the brake is broken", NULL};
    static const struct says word = {-1, 0, "the brake is broken", NULL};
    const struct says *all[] = {&plus, &bare, &word};
    struct door *d = *state;

    for (size_t i = 0; i < 3; i++) {
        d->pause = *all[i];
        assert_int_equal(capture(d), QSTILL_E_FAILED);
        assert_string_equal(d->err.message,
                            "pausing the VM: the brake is broken");
        assert_int_equal(d->err.code, QSTILL_E_FAILED);
        expect_nothing(d);
        d->pause = (struct says){0};
        d->save = *all[i];
        assert_int_equal(capture(d), QSTILL_E_FAILED);
        assert_non_null(strstr(d->err.message, "the device state: the brake"));
        expect_nothing(d);
        d->save = (struct says){0};
        d->resume = *all[i];
        assert_int_equal(capture(d), QSTILL_E_FAILED);
        assert_non_null(strstr(d->err.message, "resuming the VM: the brake"));
        expect_nothing(d);
        d->resume = (struct says){0};
    }
    d->options.mode = "paused";
    assert_int_equal(capture(d), 0);
    d->load = plus;
    assert_int_equal(restore(d), QSTILL_E_FAILED);
    assert_string_equal(d->err.message,
                        "loading the device state: the brake is broken");
}

/* --------------------------------------------------------- DIR.partial */

static void put(const struct door *d, const char *name)
{
    char path[260];
    int fd;

    snprintf(path, sizeof(path), "%s/%s", d->partial, name);
    fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
    assert_true(fd >= 0);
    close(fd);
}

static bool has(const struct door *d, const char *name)
{
    char path[260];

    snprintf(path, sizeof(path), "%s/%s", d->partial, name);
    return access(path, F_OK) == 0;
}

static void a_partial_that_is_not_ours_is_left_alone(void **state)
{
    struct door *d = *state;
    char path[260];

    assert_int_equal(mkdir(d->partial, 0755), 0);
    put(d, "main.ram");
    put(d, "letter.txt");
    assert_int_equal(capture(d), QSTILL_E_BUSY);
    assert_non_null(strstr(d->err.message, "one.partial"));
    assert_non_null(strstr(d->err.message, "letter.txt"));
    assert_true(d->err.hint[0]);
    assert_true(has(d, "letter.txt"));
    assert_true(has(d, "main.ram"));
    assert_int_equal(d->paused, 0);
    snprintf(path, sizeof(path), "%s/letter.txt", d->partial);
    unlink(path);

    /* Our names, but no files. */
    snprintf(path, sizeof(path), "%s/sums", d->partial);
    assert_int_equal(mkdir(path, 0755), 0);
    assert_int_equal(capture(d), QSTILL_E_BUSY);
    assert_true(has(d, "sums"));
    assert_true(has(d, "main.ram"));
    assert_int_equal(rmdir(path), 0);
    assert_int_equal(symlink("/etc/passwd", path), 0);
    assert_int_equal(capture(d), QSTILL_E_BUSY);
    assert_true(has(d, "sums"));
    unlink(path);

    /* What a capture leaves that died. */
    put(d, "sums");
    put(d, "device.state");
    put(d, "a%2From.ram");
    d->options.mode = "paused";
    if (capture(d) < 0)
        fail_msg("%s", d->err.message);
    assert_int_equal(access(d->partial, F_OK), -1);
}

/* ------------------------------------------------------- what is no memory */

static void a_region_that_cannot_be_read_is_refused_in_each_mode(void **state)
{
    static const char *const modes[] = {NULL, "cow", "paused"};
    struct door *d = *state;
    bool gone = false;

    for (size_t i = 0; i < 6; i++) {
        d->options.mode = modes[i % 3];
        if (!gone)
            assert_int_equal(mprotect(d->ram + MIB, MIB, PROT_NONE), 0);
        assert_int_equal(capture(d), QSTILL_E_PRECONDITION);
        assert_non_null(strstr(d->err.message, "main"));
        assert_true(d->err.hint[0]);
        expect_nothing(d);
        if (i == 2) {
            assert_int_equal(munmap(d->ram + MIB, MIB), 0);
            gone = true;
        }
    }
    assert_true(mmap(d->ram + MIB, MIB, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
                     0) != MAP_FAILED);
}

static void a_region_that_cannot_be_written_is_not_restored(void **state)
{
    struct door *d = *state;

    assert_int_equal(capture(d), 0);
    memset(d->ram, 1, SIZE);
    assert_int_equal(mprotect(d->ram + MIB, 16 * 4096, PROT_READ), 0);
    for (int gone = 0; gone < 2; gone++) {
        assert_int_equal(restore(d), QSTILL_E_PRECONDITION);
        assert_non_null(strstr(d->err.message, "region main: there is no "
                                               "memory to be written"));
        assert_non_null(strstr(d->err.hint, "writable"));
        assert_int_equal(d->ram[0], 1);
        assert_int_equal(munmap(d->ram + MIB, MIB), 0);
    }
    assert_true(mmap(d->ram + MIB, MIB, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
                     0) != MAP_FAILED);
    assert_int_equal(restore(d), 0);
    assert_int_equal(d->ram[0], 0x5a);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
#undef T
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        T(what_is_refused_at_the_door_takes_the_userfaultfd_too),
        T(a_capture_that_does_not_need_it_closes_it),
        T(options_without_a_size_take_nothing),
        T(a_negative_descriptor_is_not_taken_for_none),
        T(one_of_another_process_is_refused),
        T(who_returns_0_has_done_it_whatever_err_says),
        T(a_positive_code_is_a_failure),
        T(a_partial_that_is_not_ours_is_left_alone),
        T(a_region_that_cannot_be_read_is_refused_in_each_mode),
        T(a_region_that_cannot_be_written_is_not_restored),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
