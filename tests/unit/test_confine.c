/* SPDX-License-Identifier: MIT */
/* The words of what confines a process, and what a new one is refused for. */
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "engine/confine.h"
#include "engine/mounts.h"

static struct confine own(void)
{
    CLEANUP(closep) int dir = open("/proc/self", O_PATH | O_CLOEXEC);
    CLEANUP(closep) int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    struct confine c = {0};
    char text[8192];
    ssize_t n = read(fd, text, sizeof(text) - 1);

    assert_true(n > 0);
    text[n] = '\0';
    confine_read(dir, text, &c);
    assert_true(c.known);
    return c;
}

static void words_come_back(void **state)
{
    CLEANUP(arena_fini) struct arena a = ARENA_INIT;
    struct confine c = own(), again;
    struct qstill_error err = {0};
    char *text;

    (void)state;
    assert_int_equal(c.apart, 0);
    c.apart = 1u << CONFINE_MNT | 1u << CONFINE_ROOT;
    c.no_new_privs = true;
    c.ambient = 1u << 12;
    c.filters = 3;
    assert_int_equal(confine_format(&c, &a, &text, &err), 0);
    assert_non_null(strstr(text, "apart=mnt,root"));
    assert_int_equal(confine_parse(text, &again, &err), 0);
    assert_true(confine_is_same(&c, &again));
    again.space[CONFINE_NET]++;
    assert_false(confine_is_same(&c, &again));
    again = c;
    again.since++;
    assert_false(confine_is_same(&c, &again));

    assert_int_equal(confine_parse(NULL, &again, &err), 0);
    assert_false(again.known);
    assert_int_equal(confine_format(&again, &a, &text, &err), 0);
    assert_null(text);
}

static void words_that_are_none_are_damage(void **state)
{
    static const char *const bad[] = {
        "nnp", "nnp=x", "what=1", "bnd=", "apart=time", "user=1x", "caps=65"};
    struct confine c;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct qstill_error err = {0};

        if (confine_parse(bad[i], &c, &err) != QSTILL_E_CORRUPT)
            fail_msg("%s", bad[i]);
    }
}

static void refused(const struct confine *c, const char *words)
{
    struct qstill_error err = {0};

    if (!words) {
        assert_int_equal(confine_check(c, 65534, false, &err), 0);
        return;
    }
    assert_int_equal(confine_check(c, 65534, false, &err),
                     QSTILL_E_PRECONDITION);
    if (!strstr(err.message, words))
        fail_msg("%s", err.message);
}

static bool is_on_the_host(void)
{
    struct confine c = own();

    return c.space[CONFINE_USER] == 0xeffffffd &&
           c.space[CONFINE_UTS] == 0xeffffffe;
}

/* We are in namespaces of our own: another's counts as long as it is there. */
static int in_other_spaces(void)
{
    struct confine c, gone;
    struct qstill_error err = {0};
    int fds[2], status, r = 0;
    pid_t pid;

    if (unshare(CLONE_NEWUTS | CLONE_NEWIPC) < 0)
        return 77;
    gone = own();
    if (unshare(CLONE_NEWUTS | CLONE_NEWIPC) < 0 || pipe(fds) < 0)
        return 77;
    r |= confine_check(&gone, 65534, false, &err) != 0;
    c = own();
    pid = fork();
    if (pid == 0) {
        close(fds[1]);
        _exit(read(fds[0], &status, 1) != 0);
    }
    if (unshare(CLONE_NEWUTS | CLONE_NEWIPC) < 0)
        return 77;
    c.since = 1; /* who is there came later, so the numbers are used again */
    r |= 16 * (confine_check(&c, 65534, false, &err) != 0);
    c.since = ~(uint64_t)0;
    r |= 2 * (confine_check(&c, 65534, false, &err) != QSTILL_E_PRECONDITION ||
              !strstr(err.message, "(ipc, uts)"));
    close(fds[0]);
    close(fds[1]);
    waitpid(pid, &status, 0);
    r |= 4 * (confine_check(&c, 65534, false, &err) != 0);
    c.apart = 1u << CONFINE_UTS; /* it was so for who looked, too */
    r |= 8 * (confine_check(&c, 65534, false, &err) != QSTILL_E_PRECONDITION);
    return r;
}

static void a_namespace_that_is_gone(void **state)
{
    int status;
    pid_t pid = fork();

    (void)state;
    if (pid == 0)
        _exit(in_other_spaces());
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77)
        skip();
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* The same mounts in another namespace are what we have. */
static int in_other_mounts(void)
{
    CLEANUP(closep) int dir = -1;
    char path[32];
    int fds[2], status, r = 0;
    pid_t pid;

    if (unshare(CLONE_NEWNS) < 0 ||
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 || pipe(fds) < 0)
        return 77;
    pid = fork();
    if (pid == 0) {
        close(fds[1]);
        _exit(read(fds[0], &status, 1) != 0);
    }
    snprintf(path, sizeof(path), "/proc/%d", (int)pid);
    dir = open(path, O_PATH);
    if (unshare(CLONE_NEWNS) < 0)
        return 77;
    r |= !mounts_are_ours(dir);
    if (mount("none", "/tmp", "tmpfs", 0, NULL) < 0)
        return 77;
    r |= 2 * mounts_are_ours(dir);
    umount("/tmp");
    r |= 4 * !mounts_are_ours(dir);
    if (mount("/tmp", "/tmp", NULL, MS_BIND, NULL) < 0 ||
        mount(NULL, "/tmp", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL) < 0)
        return 77;
    r |= 8 * mounts_are_ours(dir);
    close(fds[0]);
    close(fds[1]);
    waitpid(pid, &status, 0);
    return r;
}

static void the_same_mounts(void **state)
{
    int status;
    pid_t pid = fork();

    (void)state;
    if (pid == 0)
        _exit(in_other_mounts());
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77)
        skip();
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void what_a_new_process_would_not_have(void **state)
{
    struct confine c = own();
    struct qstill_error err = {0};

    (void)state;
    refused(&c, NULL);
    c.apart = 1u << CONFINE_NET; /* it was so for another; not for us */
    refused(&c, NULL);
    strcpy(c.boot, "another");
    refused(&c, "(net)");
    c = own();
    c.space[CONFINE_USER] = c.space[CONFINE_UTS] = 1;
    /* gone; but who is on the host itself sees that QEMU was not */
    refused(&c, is_on_the_host() ? "(user, uts)" : NULL);
    strcpy(c.boot, "another"); /* where numbers mean others */
    refused(&c, NULL);
    c.apart = 1u << CONFINE_ROOT;
    refused(&c, "root directory");
    c = own();
    c.filters++;
    refused(&c, "seccomp");
    assert_int_equal(confine_check(&c, 65534, true, &err), 0);
    c.filters++; /* one is QEMU's own, the other not */
    assert_int_equal(confine_check(&c, 65534, true, &err),
                     QSTILL_E_PRECONDITION);
    c = (struct confine){.known = false, .apart = 1};
    refused(&c, NULL);
}

static void what_is_given(void **state)
{
    struct confine c = {.known = true,
                        .no_new_privs = true,
                        .caps = 41,
                        .bounding = 0xff,
                        .permitted = 0x0f,
                        .inheritable = 0x1f};
    struct qstill_launch l = {.size = sizeof(l)};
    uint64_t later = ~(uint64_t)0 << 41; /* of a newer kernel: as they are */

    (void)state;
    confine_give(&c, 0, &l);
    assert_true(l.confined && l.no_new_privs);
    assert_int_equal(l.caps_bounding, later | 0x0f);
    assert_int_equal(l.caps_inheritable, 0x0f);
    confine_give(&c, 1000, &l);
    assert_true(l.no_new_privs);
    assert_int_equal(l.caps_bounding, later | 0xff);
    assert_int_equal(l.caps_inheritable, 0x1f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(words_come_back),
        cmocka_unit_test(words_that_are_none_are_damage),
        cmocka_unit_test(a_namespace_that_is_gone),
        cmocka_unit_test(the_same_mounts),
        cmocka_unit_test(what_a_new_process_would_not_have),
        cmocka_unit_test(what_is_given),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
