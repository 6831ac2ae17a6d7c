/* SPDX-License-Identifier: MIT */
/* The files that a process has open. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/opened.h"

#define NOBODY 65534

static void opened_knows_files_and_not_names(void **state)
{
    char path[] = "/tmp/qstill-test.XXXXXX", aside[64];
    struct qstill_error err = {0};
    struct opened o;
    FILE *f;
    int fd = mkstemp(path);

    (void)state;
    assert_true(fd >= 0);
    assert_int_equal(opened_read(&o, getpid(), &err), 0);
    assert_true(o.known);
    assert_true(opened_has(&o, path));
    snprintf(aside, sizeof(aside), "%s.aside", path);
    assert_int_equal(rename(path, aside), 0);
    assert_false(opened_has(&o, path));
    assert_true(opened_has(&o, aside));
    f = fopen(path, "w");
    assert_non_null(f);
    fclose(f);
    assert_false(opened_has(&o, path));
    opened_fini(&o);
    unlink(path);
    unlink(aside);
    close(fd);
}

static void opened_of_nobody_knows_nothing(void **state)
{
    struct qstill_error err = {0};
    struct opened o;
    pid_t pid = fork();

    (void)state;
    if (pid == 0)
        _exit(0);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    assert_int_equal(opened_read(&o, pid, &err), 0);
    assert_false(o.known);
    assert_int_equal(opened_read(&o, 0, &err), 0);
    assert_false(o.known);
    opened_fini(&o);
}

/* In a child that gave up its rights: 1 known, 0 not, 2 failed. */
static int known_to_nobody(pid_t of)
{
    struct qstill_error err = {0};
    struct opened o;
    int status = 0;
    pid_t pid = fork();

    if (pid == 0) {
        if (setresgid(NOBODY, NOBODY, NOBODY) < 0 ||
            setresuid(NOBODY, NOBODY, NOBODY) < 0 ||
            opened_read(&o, of, &err) < 0)
            _exit(2);
        _exit(o.known);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WEXITSTATUS(status);
}

/* The list of descriptors of such a process can be read, but none followed. */
static void opened_of_one_with_more_rights_is_not_known(void **state)
{
    char comm[64], name[32] = "";
    pid_t pid;

    (void)state;
    if (geteuid() != 0 || access("/usr/bin/setpriv", X_OK) < 0)
        skip();
    pid = fork();
    if (pid == 0) {
        execl("/usr/bin/setpriv", "setpriv", "--reuid=65534", "--regid=65534",
              "--clear-groups", "--inh-caps=+net_admin",
              "--ambient-caps=+net_admin", "sleep", "30", NULL);
        _exit(127);
    }
    snprintf(comm, sizeof(comm), "/proc/%d/comm", (int)pid);
    for (int i = 0; i < 2000 && strcmp(name, "sleep\n") != 0; i++) {
        FILE *f = fopen(comm, "r");

        if (f && !fgets(name, sizeof(name), f))
            name[0] = 0;
        if (f)
            fclose(f);
        usleep(1000);
    }
    assert_string_equal(name, "sleep\n");
    assert_int_equal(known_to_nobody(pid), 0);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(opened_knows_files_and_not_names),
        cmocka_unit_test(opened_of_nobody_knows_nothing),
        cmocka_unit_test(opened_of_one_with_more_rights_is_not_known),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
