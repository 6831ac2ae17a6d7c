/* SPDX-License-Identifier: MIT */
/* Starting processes, with /bin/sh in the place of QEMU. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cli/launch.h"

#define PATIENCE_MS 5000

struct place {
    char dir[64];
    char log[96];
};

static int setup(void **state)
{
    static struct place place;

    snprintf(place.dir, sizeof(place.dir), "/tmp/qstill-launch-XXXXXX");
    if (!mkdtemp(place.dir))
        return -1;
    snprintf(place.log, sizeof(place.log), "%s/log", place.dir);
    *state = &place;
    return 0;
}

static int teardown(void **state)
{
    struct place *place = *state;

    unlink(place->log);
    return rmdir(place->dir);
}

static void pause_ms(long ms)
{
    struct timespec ts = {ms / 1000, ms % 1000 * 1000000};

    nanosleep(&ts, NULL);
}

static void read_log(const struct place *place, char *text, size_t size)
{
    FILE *f = fopen(place->log, "r");
    size_t n = f ? fread(text, 1, size - 1, f) : 0;

    text[n] = '\0';
    if (f)
        fclose(f);
}

/* Waits until the log holds `word`. */
static void wait_for(const struct place *place, const char *word)
{
    char text[4096];

    for (int waited = 0; waited < PATIENCE_MS; waited += 10) {
        read_log(place, text, sizeof(text));
        if (strstr(text, word))
            return;
        pause_ms(10);
    }
    fail_msg("'%s' did not come; the log is: %s", word, text);
}

static struct qstill_launch launch_of(const struct place *place,
                                      const char *const *argv)
{
    return (struct qstill_launch){
        .size = sizeof(struct qstill_launch),
        .argv = argv,
        .cwd = place->dir,
        .log = place->log,
        .uid = geteuid(),
        .gid = getegid(),
    };
}

static int start(struct qstill_launch *l, int *pid, struct qstill_error *err)
{
    *err = (struct qstill_error){0};
    *pid = -1;
    return cli_launch(NULL, l, pid, err);
}

static void a_started_process_is_detached_and_has_only_the_log(void **state)
{
    static const char *const argv[] = {
        "sh", "-c",
        "pwd; echo \"$WORD\"; n=0; for f in /proc/$$/fd/*; do [ -e $f ] && "
        "n=$((n+1)); done; "
        "echo $n; "
        "cut -d' ' -f4,6,7 /proc/$$/stat; kill -TERM $$; echo alive",
        NULL};
    static const char *const env[] = {"WORD=given", NULL};
    struct place *place = *state;
    struct qstill_launch l = launch_of(place, argv);
    struct qstill_error err;
    char text[4096], pids[64];
    int pid;
    int held = open(place->dir, O_RDONLY); /* not close-on-exec, to be closed */

    l.env = env;
    assert_true(held >= 0);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTERM, SIG_IGN); /* must not reach the process */
    assert_int_equal(start(&l, &pid, &err), 0);
    signal(SIGTERM, SIG_DFL);
    close(held);
    assert_true(pid > 0);
    snprintf(pids, sizeof(pids), " %d ", getsid(0));
    wait_for(place, " 0\n"); /* stat: no terminal, the last field cut */
    pause_ms(50);
    read_log(place, text, sizeof(text));
    assert_non_null(strstr(text, place->dir));
    assert_non_null(strstr(text, "\ngiven\n3\n"));
    assert_null(strstr(text, pids)); /* a session of its own */
    assert_null(strstr(text, "alive"));
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* no child of ours */
    assert_int_equal(errno, ECHILD);
}

static void a_program_that_is_not_there_is_an_error(void **state)
{
    static const char *const argv[] = {"/no/such/qemu", "-S", NULL};
    struct qstill_launch l = launch_of(*state, argv);
    struct qstill_error err;
    int pid;

    assert_int_equal(start(&l, &pid, &err), QSTILL_E_FAILED);
    assert_string_equal(err.message, "cannot start /no/such/qemu: running it: "
                                     "No such file or directory");
    assert_int_equal(pid, -1);
}

static void a_directory_that_is_not_there_is_an_error(void **state)
{
    static const char *const argv[] = {"/bin/true", NULL};
    struct qstill_launch l = launch_of(*state, argv);
    struct qstill_error err;
    int pid;

    l.cwd = "/no/such/directory";
    assert_int_equal(start(&l, &pid, &err), QSTILL_E_FAILED);
    assert_string_equal(err.message,
                        "cannot start /bin/true: entering the VM's directory: "
                        "No such file or directory");
}

static void a_log_that_is_a_link_is_refused(void **state)
{
    static const char *const argv[] = {"/bin/true", NULL};
    struct place *place = *state;
    struct qstill_launch l = launch_of(place, argv);
    struct qstill_error err;
    int pid;

    assert_int_equal(symlink("/dev/null", place->log), 0);
    assert_int_equal(start(&l, &pid, &err), QSTILL_E_FAILED);
    assert_non_null(strstr(err.message, "opening the VM's log"));
    unlink(place->log);
}

static void a_parent_that_detaches_is_not_the_process(void **state)
{
    static const char *const argv[] = {"sh", "-c", "exit 0", "-daemonize",
                                       NULL};
    struct qstill_launch l = launch_of(*state, argv);
    struct qstill_error err;
    int pid;

    assert_int_equal(start(&l, &pid, &err), 0);
    assert_int_equal(pid, 0);
}

static void a_detaching_start_that_fails_quotes_its_last_line(void **state)
{
    static const char *const argv[] = {"/bin/sh", "-c",
                                       "echo first; echo the reason; exit 3",
                                       "-daemonize", NULL};
    struct qstill_launch l = launch_of(*state, argv);
    struct qstill_error err;
    int pid;

    assert_int_equal(start(&l, &pid, &err), QSTILL_E_FAILED);
    assert_string_equal(err.message,
                        "/bin/sh exited with status 3: the reason");
    assert_non_null(strstr(err.hint, l.log));
}

static void a_launcher_runs_in_a_shell_with_the_environment(void **state)
{
    static const char *const env[] = {"QSTILL_QMP=/run/x y", NULL};
    static const char *const argv[] = {"/bin/false", NULL};
    struct place *place = *state;
    struct qstill_launch l = launch_of(place, argv);
    struct qstill_error err;
    int pid;

    l.env = env;
    l.launcher = "echo \"got $QSTILL_QMP\"; exit 0";
    assert_int_equal(start(&l, &pid, &err), 0);
    assert_int_equal(pid, 0);
    wait_for(place, "got /run/x y\n");
    l.launcher = "kill -9 $$";
    assert_int_equal(start(&l, &pid, &err), QSTILL_E_FAILED);
    assert_string_equal(err.message, "the launcher was killed by signal 9");
}

static void a_launcher_in_the_foreground_holds_nothing_of_ours(void **state)
{
    static const char *const argv[] = {"/bin/false", NULL};
    struct place *place = *state;
    struct qstill_launch l = launch_of(place, argv);
    char env_word[128];
    const char *env[] = {env_word, NULL};
    struct qstill_error err;
    struct timespec before, after;
    int pid, lock = open(place->dir, O_RDONLY | O_CLOEXEC), again;

    /* The log stands for the socket: there already, and made anew. */
    snprintf(env_word, sizeof(env_word), "QSTILL_QMP=%s", place->log);
    l.env = env;
    close(open(place->log, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    assert_int_equal(flock(lock, LOCK_EX), 0);
    l.launcher = "sleep 0.2; echo started; sleep 3";
    clock_gettime(CLOCK_MONOTONIC, &before);
    assert_int_equal(start(&l, &pid, &err), 0);
    clock_gettime(CLOCK_MONOTONIC, &after);
    assert_int_equal(pid, 0);
    assert_in_range(after.tv_sec - before.tv_sec, 0, 2); /* not to its end */
    wait_for(place, "started");
    close(lock);
    again = open(place->dir, O_RDONLY | O_CLOEXEC);
    assert_int_equal(flock(again, LOCK_EX | LOCK_NB), 0);
    close(again);
}

static void another_user_is_refused_without_root_and_taken_as_root(void **state)
{
    static const char *const argv[] = {"sh", "-c",
                                       "id -u; id -g; id -G; echo \"[$HOME]\"; "
                                       "echo end",
                                       NULL};
    struct place *place = *state;
    struct qstill_launch l = launch_of(place, argv);
    struct qstill_error err;
    char text[256];
    int pid;

    l.uid = 65533;
    l.gid = 65532;
    l.cwd = "/";
    if (geteuid() != 0) {
        assert_int_equal(start(&l, &pid, &err), QSTILL_E_PERMISSION);
        assert_non_null(strstr(err.message, "the VM ran as user 65533"));
        return;
    }
    assert_int_equal(start(&l, &pid, &err), 0);
    wait_for(place, "end");
    read_log(place, text, sizeof(text));
    assert_string_equal(text, "65533\n65532\n65532\n[]\nend\n");
}

static void the_groups_are_those_that_are_given(void **state)
{
    static const char *const argv[] = {"sh", "-c", "id -G; echo end", NULL};
    static const uint32_t groups[] = {4242, 4243};
    struct place *place = *state;
    struct qstill_launch l = launch_of(place, argv);
    struct qstill_error err;
    char text[256], want[64];
    int pid;

    l.groups = groups;
    l.group_count = 2;
    if (geteuid() != 0) {
        assert_int_equal(start(&l, &pid, &err), QSTILL_E_FAILED);
        return;
    }
    assert_int_equal(start(&l, &pid, &err), 0);
    wait_for(place, "end");
    read_log(place, text, sizeof(text));
    snprintf(want, sizeof(want), "%u 4242 4243\nend\n", (unsigned)getegid());
    assert_string_equal(text, want);

    l.uid = 65533; /* of another, too */
    l.gid = 65532;
    l.cwd = "/";
    l.group_count = 0;
    assert_int_equal(start(&l, &pid, &err), 0);
    wait_for(place, "65532\nend");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_started_process_is_detached_and_has_only_the_log),
        TEST(a_program_that_is_not_there_is_an_error),
        TEST(a_directory_that_is_not_there_is_an_error),
        TEST(a_log_that_is_a_link_is_refused),
        TEST(a_parent_that_detaches_is_not_the_process),
        TEST(a_detaching_start_that_fails_quotes_its_last_line),
        TEST(a_launcher_runs_in_a_shell_with_the_environment),
        TEST(a_launcher_in_the_foreground_holds_nothing_of_ours),
        TEST(another_user_is_refused_without_root_and_taken_as_root),
        TEST(the_groups_are_those_that_are_given),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
