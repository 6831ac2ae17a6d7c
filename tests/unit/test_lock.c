/* SPDX-License-Identifier: MIT */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "../lib/mem_tmpdir.h"
#include "engine/lock.h"

struct fixture {
    char path[128];
    int dirfd;
    struct qstill_error err;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    f->dirfd = mem_tmpdir_make(f->path);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    mem_tmpdir_remove(f->path, f->dirfd);
    free(f);
    return 0;
}

static void put(struct fixture *f, const char *text)
{
    int fd = openat(f->dirfd, "lock", O_WRONLY | O_CREAT | O_TRUNC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
}

static void get(struct fixture *f, char text[300])
{
    int fd = openat(f->dirfd, "lock", O_RDONLY);
    ssize_t n;

    assert_true(fd >= 0);
    n = read(fd, text, 299);
    assert_true(n >= 0);
    text[n] = '\0';
    close(fd);
}

static void a_taken_lock_says_who_and_a_released_one_is_empty(void **state)
{
    struct fixture *f = *state;
    struct lock_info info;
    char text[300], start[64];
    struct stat st;
    int fd = -1;

    assert_int_equal(lock_take(f->dirfd, "create", &fd, &f->err), 0);
    get(f, text);
    snprintf(start, sizeof(start), "%d ", (int)getpid());
    assert_memory_equal(text, start, strlen(start));
    assert_non_null(strstr(text, " create\n"));
    assert_int_equal(fstatat(f->dirfd, "lock", &st, 0), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);

    assert_int_equal(lock_holder(f->dirfd, &info, &f->err), 0);
    assert_true(info.held);
    assert_int_equal(info.pid, getpid());
    assert_string_equal(info.verb, "create");
    assert_int_equal(info.since, st.st_mtime);

    lock_release(&fd);
    assert_int_equal(fd, -1);
    lock_release(&fd);
    get(f, text);
    assert_string_equal(text, "");
    assert_int_equal(lock_holder(f->dirfd, &info, &f->err), 0);
    assert_false(info.held);
    assert_int_equal(info.pid, 0);
}

static void a_second_taker_is_told_who_holds_it(void **state)
{
    struct fixture *f = *state;
    char says[64];
    int fd = -1, second = -1;

    assert_int_equal(lock_take(f->dirfd, "revert", &fd, &f->err), 0);
    assert_int_equal(lock_take(f->dirfd, "create", &second, &f->err),
                     QSTILL_E_BUSY);
    snprintf(says, sizeof(says),
             "VM is locked by process %d (qstill revert, since 2",
             (int)getpid());
    assert_memory_equal(f->err.message, says, strlen(says));
    assert_string_equal(f->err.hint, "try again when it is done");
    assert_int_equal(second, -1);
    lock_release(&fd);
    assert_int_equal(lock_take(f->dirfd, "create", &second, &f->err), 0);
    lock_release(&second);
}

/* Between the kernel's lock and the line that says who has it. */
static void a_taker_waits_for_the_owners_line(void **state)
{
    struct fixture *f = *state;
    char says[64], line[300];
    int fd = -1, second = -1;
    pid_t pid;

    assert_int_equal(lock_take(f->dirfd, "revert", &fd, &f->err), 0);
    get(f, line);
    assert_int_equal(ftruncate(fd, 0), 0);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        usleep(50000);
        _exit(pwrite(fd, line, strlen(line), 0) == (ssize_t)strlen(line) ? 0
                                                                         : 1);
    }
    assert_int_equal(lock_take(f->dirfd, "create", &second, &f->err),
                     QSTILL_E_BUSY);
    snprintf(says, sizeof(says), "VM is locked by process %d (qstill revert",
             (int)getpid());
    assert_memory_equal(f->err.message, says, strlen(says));
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    lock_release(&fd);
}

/* A child that takes the lock, says so, and waits to be killed. */
static pid_t holder(struct fixture *f)
{
    int p[2], fd = -1;
    pid_t pid;
    char c = 0;

    assert_int_equal(pipe(p), 0);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        c = lock_take(f->dirfd, "delete", &fd, &f->err) == 0;
        if (write(p[1], &c, 1) == 1)
            pause();
        _exit(1);
    }
    close(p[1]);
    assert_int_equal(read(p[0], &c, 1), 1);
    assert_int_equal(c, 1);
    close(p[0]);
    return pid;
}

static void a_lock_dies_with_its_owner_and_is_taken_over(void **state)
{
    struct fixture *f = *state;
    pid_t pid = holder(f);
    struct lock_info info;
    char text[300], says[64];
    int fd = -1;

    assert_int_equal(lock_take(f->dirfd, "create", &fd, &f->err),
                     QSTILL_E_BUSY);
    snprintf(says, sizeof(says), "VM is locked by process %d (qstill delete",
             (int)pid);
    assert_memory_equal(f->err.message, says, strlen(says));
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    get(f, text);
    assert_non_null(strstr(text, " delete\n"));
    assert_int_equal(lock_holder(f->dirfd, &info, &f->err), 0);
    assert_false(info.held);
    assert_int_equal(lock_take(f->dirfd, "create", &fd, &f->err), 0);
    get(f, text);
    assert_non_null(strstr(text, " create\n"));
    lock_release(&fd);
}

#define BOOT "00000000-0000-0000-0000-000000000001"

static void a_lock_of_this_host_from_another_boot_is_taken_over(void **state)
{
    struct fixture *f = *state;
    char text[300];
    struct utsname u;
    int fd = -1;

    uname(&u);
    snprintf(text, sizeof(text), "1 1 %s " BOOT " create\n", u.nodename);
    put(f, text);
    assert_int_equal(lock_take(f->dirfd, "recover", &fd, &f->err), 0);
    lock_release(&fd);
}

static void a_lock_of_this_boot_under_another_name_is_taken_over(void **state)
{
    struct fixture *f = *state;
    char text[300], boot[64] = "";
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY);

    assert_true(read(fd, boot, sizeof(boot) - 1) > 36);
    close(fd);
    fd = -1;
    snprintf(text, sizeof(text), "1 1 renamed %.36s create\n", boot);
    put(f, text);
    assert_int_equal(lock_take(f->dirfd, "recover", &fd, &f->err), 0);
    lock_release(&fd);
}

static void a_lock_that_another_host_left_is_refused(void **state)
{
    struct fixture *f = *state;
    static const char left[] = "77 1 other.example " BOOT " create\n";
    char text[300];
    int fd = -1;

    put(f, left);
    assert_int_equal(lock_take(f->dirfd, "recover", &fd, &f->err),
                     QSTILL_E_BUSY);
    assert_non_null(strstr(f->err.message,
                           "VM is locked by process 77 on host other.example "
                           "(qstill create, since 2"));
    assert_non_null(strstr(f->err.message, "which did not release it"));
    assert_string_equal(f->err.hint,
                        "when no qstill runs on other.example any more, remove "
                        "the file \"lock\" in the VM's directory of the store");
    get(f, text);
    assert_string_equal(text, left);
    assert_int_equal(unlinkat(f->dirfd, "lock", 0), 0);
    assert_int_equal(lock_take(f->dirfd, "recover", &fd, &f->err), 0);
    lock_release(&fd);
}

static void a_line_that_was_not_written_whole_is_nobodys(void **state)
{
    static const char *const texts[] = {
        "77 1 other.example " BOOT " create", /* no newline */
        "77 1 other\n",
        "x\n",
        "-5 1 other.example " BOOT " create\n",
        "99999999999999999999 1 other.example " BOOT " create\n",
    };
    struct fixture *f = *state;
    size_t i;

    for (i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        int fd = -1;

        put(f, texts[i]);
        assert_int_equal(lock_take(f->dirfd, "create", &fd, &f->err), 0);
        lock_release(&fd);
    }
}

/* A file system without a byte to give: RLIMIT_FSIZE refuses as EFBIG does,
 * which is counted as no room. */
static void a_lock_needs_no_room_for_its_line(void **state)
{
    struct fixture *f = *state;
    struct rlimit was, none;
    struct lock_info info;
    int fd = -1, second = -1;

    put(f, "1 1 gone 00000000-0000-0000-0000-000000000001 crea");
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
    none = (struct rlimit){0, was.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &none), 0);
    assert_int_equal(lock_take(f->dirfd, "delete", &fd, &f->err), 0);
    assert_int_equal(f->err.code, 0);
    assert_int_equal(lock_holder(f->dirfd, &info, &f->err), 0);
    assert_true(info.held);
    assert_int_equal(lock_take(f->dirfd, "create", &second, &f->err),
                     QSTILL_E_BUSY);
    assert_string_equal(
        f->err.message,
        "VM is locked by another qstill that does not say who it is");
    lock_release(&fd);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
    signal(SIGXFSZ, SIG_DFL);
    assert_int_equal(lock_take(f->dirfd, "create", &fd, &f->err), 0);
    lock_release(&fd);
}

static void a_symbolic_link_is_not_followed(void **state)
{
    struct fixture *f = *state;
    struct lock_info info;
    int fd = -1;

    assert_int_equal(symlinkat("/tmp/elsewhere", f->dirfd, "lock"), 0);
    assert_int_equal(lock_take(f->dirfd, "create", &fd, &f->err),
                     QSTILL_E_PRECONDITION);
    assert_string_equal(f->err.message,
                        "lock is a symbolic link, which is not followed here");
    assert_int_equal(lock_holder(f->dirfd, &info, &f->err),
                     QSTILL_E_PRECONDITION);
    assert_int_equal(fd, -1);
}

static void nobody_holds_a_lock_that_was_never_made(void **state)
{
    struct fixture *f = *state;
    struct lock_info info;

    assert_int_equal(lock_holder(f->dirfd, &info, &f->err), 0);
    assert_false(info.held);
    assert_int_equal(mem_tmpdir_count(f->dirfd), 0);
    assert_int_equal(f->err.code, 0);
}

static void two_looks_tell_whether_an_operation_was_at_work(void **state)
{
    struct fixture *f = *state;
    struct lock_look before, after;
    const struct timespec old[2] = {{.tv_sec = 1}, {.tv_sec = 1}};
    int fd = -1;

    lock_look(f->dirfd, &before);
    lock_look(f->dirfd, &after);
    assert_true(lock_was_free(&before, &after));
    assert_int_equal(lock_take(f->dirfd, "create", &fd, &f->err), 0);
    lock_look(f->dirfd, &after);
    assert_false(lock_was_free(&before, &after));
    assert_false(lock_was_one(&before, &after));
    lock_look(f->dirfd, &before);
    assert_true(lock_was_one(&before, &after));
    assert_int_equal(lock_say_busy(f->dirfd, &f->err), QSTILL_E_BUSY);
    assert_non_null(strstr(f->err.message, "qstill create"));
    lock_release(&fd);

    assert_int_equal(utimensat(f->dirfd, "lock", old, 0), 0);
    lock_look(f->dirfd, &before);
    assert_false(before.held);
    assert_int_equal(lock_take(f->dirfd, "delete", &fd, &f->err), 0);
    lock_release(&fd);
    lock_look(f->dirfd, &after);
    assert_false(after.held);
    assert_false(lock_was_free(&before, &after)); /* one came and went */
    lock_look(f->dirfd, &before);
    assert_true(lock_was_free(&before, &after));
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(a_taken_lock_says_who_and_a_released_one_is_empty),
        T(a_second_taker_is_told_who_holds_it),
        T(a_taker_waits_for_the_owners_line),
        T(a_lock_dies_with_its_owner_and_is_taken_over),
        T(a_lock_of_this_host_from_another_boot_is_taken_over),
        T(a_lock_of_this_boot_under_another_name_is_taken_over),
        T(a_lock_that_another_host_left_is_refused),
        T(a_line_that_was_not_written_whole_is_nobodys),
        T(a_lock_needs_no_room_for_its_line),
        T(a_symbolic_link_is_not_followed),
        T(nobody_holds_a_lock_that_was_never_made),
        T(two_looks_tell_whether_an_operation_was_at_work),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
