/* SPDX-License-Identifier: MIT */
/* The record of real processes: children of this test. */
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
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "../lib/mem_tmpdir.h"
#include "engine/launch.h"

struct fixture {
    char dir[128];
    int dirfd;
    pid_t child;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    f->dirfd = mem_tmpdir_make(f->dir);
    *state = f;
    return 0;
}

static void end_child(struct fixture *f)
{
    if (f->child > 0) {
        kill(f->child, SIGKILL);
        waitpid(f->child, NULL, 0);
    }
    f->child = 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    end_child(f);
    mem_tmpdir_remove(f->dir, f->dirfd);
    free(f);
    return 0;
}

/* Runs `argv` as the shell that waits for its input to end; returns when the
 * program has really been entered (its pipe's other end says a byte). */
static void start_child(struct fixture *f, const char *exe,
                        const char *const *argv, const char *const *env)
{
    int out[2], in[2];
    char c;

    assert_int_equal(pipe(out), 0);
    assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    f->child = fork();
    assert_true(f->child >= 0);
    if (f->child == 0) {
        dup2(out[1], 1);
        dup2(in[0], 0);
        if (fchdir(f->dirfd) == 0)
            execve(exe, (char *const *)argv, (char *const *)env);
        _exit(127);
    }
    close(out[1]);
    close(in[0]);
    assert_int_equal(read(out[0], &c, 1), 1);
    close(out[0]);
    /* in[1] stays open until the test program ends */
}

/* "sh -c SCRIPT NAME ARGS...": SCRIPT says a byte and waits. */
#define SCRIPT "echo; read x"

static void a_process_is_read_with_what_a_start_needs(void **state)
{
    struct fixture *f = *state;
    static const char *const argv[] = {
        "sh", "-c", SCRIPT, "qemu", "-drive", "file=a b", "", "-S", NULL};
    static const char *const env[] = {"PATH=/bin:/usr/bin",
                                      "SECRET=1",
                                      "LC_ALL=C",
                                      "LC_=x",
                                      "HOMEX=1",
                                      "HOME=/root",
                                      "QEMU_X=1",
                                      "XDG_RUNTIME_DIR=/r",
                                      "AWS_KEY=2",
                                      "NOT_A_PAIR",
                                      NULL};
    static const char *const kept[] = {
        "PATH=/bin:/usr/bin", "LC_ALL=C",           "LC_=x", "HOME=/root",
        "QEMU_X=1",           "XDG_RUNTIME_DIR=/r", NULL};
    struct launch_record rec = {0};
    struct qstill_error err = {0};
    char *exe;
    size_t i;

    start_child(f, "/bin/sh", argv, env);
    assert_int_equal(launch_read(f->child, &rec, &err), 0);
    for (i = 0; argv[i]; i++)
        assert_string_equal(rec.argv[i], argv[i]);
    assert_null(rec.argv[i]);
    for (i = 0; kept[i]; i++)
        assert_string_equal(rec.env[i], kept[i]);
    assert_null(rec.env[i]);
    assert_string_equal(rec.cwd, f->dir);
    exe = realpath("/bin/sh", NULL);
    assert_string_equal(rec.exe, exe);
    assert_int_equal(rec.uid, geteuid());
    assert_int_equal(rec.gid, getegid());
    free(exe);
    launch_record_fini(&rec);
    assert_null(rec.argv);
}

static void a_replaced_binary_is_named_without_deleted(void **state)
{
    struct fixture *f = *state;
    char cmd[300], exe[200];
    const char *argv[] = {"sh", "-c", SCRIPT, NULL};
    static const char *const env[] = {NULL};
    struct launch_record rec = {0};
    struct qstill_error err = {0};

    snprintf(exe, sizeof(exe), "%s/qemu", f->dir);
    snprintf(cmd, sizeof(cmd), "cp -L /bin/sh %s", exe);
    assert_int_equal(system(cmd), 0);
    start_child(f, exe, argv, env);
    assert_int_equal(unlink(exe), 0);
    assert_int_equal(launch_read(f->child, &rec, &err), 0);
    assert_string_equal(rec.exe, exe);
    launch_record_fini(&rec);
}

static void a_daemon_is_where_its_shell_was(void **state)
{
    struct fixture *f = *state;
    static const char *const argv[] = {"sh", "-c",         "cd /; " SCRIPT,
                                       "q",  "-daemonize", NULL};
    char pwd[200];
    const char *env[] = {pwd, NULL};
    struct launch_record rec = {0};
    struct qstill_error err = {0};

    snprintf(pwd, sizeof(pwd), "PWD=%s", f->dir);
    start_child(f, "/bin/sh", argv, env);
    assert_int_equal(launch_read(f->child, &rec, &err), 0);
    assert_string_equal(rec.cwd, f->dir);
    assert_null(rec.env[0]);
    launch_record_fini(&rec);
}

static void another_process_in_the_root_directory_stays_there(void **state)
{
    struct fixture *f = *state;
    static const char *const argv[] = {"sh", "-c", "cd /; " SCRIPT, "q", NULL};
    static const char *const env[] = {"PWD=/tmp", NULL};
    struct launch_record rec = {0};
    struct qstill_error err = {0};

    start_child(f, "/bin/sh", argv, env);
    assert_int_equal(launch_read(f->child, &rec, &err), 0);
    assert_string_equal(rec.cwd, "/");
    launch_record_fini(&rec);
}

static void a_process_that_ended_is_unreachable(void **state)
{
    struct fixture *f = *state;
    static const char *const argv[] = {"sh", "-c", SCRIPT, NULL};
    static const char *const env[] = {NULL};
    struct launch_record rec = {0};
    struct qstill_error err = {0};
    siginfo_t info;
    char says[64];
    pid_t pid;

    start_child(f, "/bin/sh", argv, env);
    pid = f->child;
    snprintf(says, sizeof(says), "process %d is not running", (int)pid);
    kill(pid, SIGKILL);
    assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
    assert_int_equal(launch_read(pid, &rec, &err), QSTILL_E_UNREACHABLE);
    assert_string_equal(err.message, says); /* a zombie */
    end_child(f);
    assert_int_equal(launch_read(pid, &rec, &err), QSTILL_E_UNREACHABLE);
    assert_string_equal(err.message, says);
    assert_null(rec.argv);
}

/* With a stack limit of 64 MiB the kernel takes command lines up to 6 MiB. */
static void start_large(struct fixture *f, size_t words)
{
    static const char *const env[] = {NULL};
    const char **argv = calloc(words + 4, sizeof(*argv));
    char *word = malloc(100001);
    struct rlimit was, large = {64 << 20, RLIM_INFINITY};
    size_t i;

    memset(word, 'x', 100000);
    word[100000] = '\0';
    argv[0] = "sh";
    argv[1] = "-c";
    argv[2] = SCRIPT;
    for (i = 0; i < words; i++)
        argv[3 + i] = word;
    assert_int_equal(getrlimit(RLIMIT_STACK, &was), 0);
    large.rlim_max = was.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_STACK, &large), 0);
    start_child(f, "/bin/sh", argv, env);
    assert_int_equal(setrlimit(RLIMIT_STACK, &was), 0);
    free(argv);
    free(word);
}

static void a_long_command_line_is_read_whole(void **state)
{
    struct fixture *f = *state;
    struct launch_record rec = {0};
    struct qstill_error err = {0};

    start_large(f, 19);
    assert_int_equal(launch_read(f->child, &rec, &err), 0);
    assert_int_equal(strlen(rec.argv[21]), 100000);
    assert_null(rec.argv[22]);
    launch_record_fini(&rec);
}

static void a_command_line_of_more_than_we_keep_is_refused(void **state)
{
    struct fixture *f = *state;
    struct launch_record rec = {0};
    struct qstill_error err = {0};
    char says[100];

    start_large(f, 30);
    assert_int_equal(launch_read(f->child, &rec, &err), QSTILL_E_PRECONDITION);
    snprintf(says, sizeof(says),
             "cmdline of process %d is larger than 2097152 bytes",
             (int)f->child);
    assert_string_equal(err.message, says);
    assert_null(rec.argv);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(
            a_process_is_read_with_what_a_start_needs, setup, teardown),
        cmocka_unit_test_setup_teardown(
            a_replaced_binary_is_named_without_deleted, setup, teardown),
        cmocka_unit_test_setup_teardown(a_daemon_is_where_its_shell_was, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(
            another_process_in_the_root_directory_stays_there, setup, teardown),
        cmocka_unit_test_setup_teardown(a_process_that_ended_is_unreachable,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(a_long_command_line_is_read_whole,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(
            a_command_line_of_more_than_we_keep_is_refused, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
