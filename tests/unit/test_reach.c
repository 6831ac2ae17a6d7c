/* SPDX-License-Identifier: MIT */
#include <fcntl.h>
#include <grp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "engine/reach.h"
#include "qcow2/lock.h"

#define NOBODY 65534u

static char dir[] = "/tmp/qstill-reach.XXXXXX";

static const char *make(char *path, size_t size, const char *name, mode_t mode)
{
    int fd;

    snprintf(path, size, "%s/%s", dir, name);
    fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(0, fchmod(fd, mode));
    close(fd);
    return path;
}

static int setup(void **state)
{
    (void)state;
    return mkdtemp(dir) && chmod(dir, 0755) == 0 ? 0 : -1;
}

static int teardown(void **state)
{
    char cmd[64];

    (void)state;
    snprintf(cmd, sizeof(cmd), "rm -r %s", dir);
    return system(cmd);
}

static void test_what_is_there(void **state)
{
    struct qstill_error err = {0};
    struct reach r;
    char path[128];

    (void)state;
    reach_init(&r, geteuid(), getegid());
    make(path, sizeof(path), "file", 0700);
    assert_int_equal(0, reach_file(&r, path, REACH_FILE, &err));
    assert_int_equal(0, reach_file(&r, path, REACH_PROGRAM, &err));
    assert_int_equal(0, reach_file(&r, dir, REACH_DIRECTORY, &err));
    assert_int_equal(QSTILL_E_PRECONDITION,
                     reach_file(&r, path, REACH_DIRECTORY, &err));
    assert_int_equal(QSTILL_E_PRECONDITION,
                     reach_file(&r, dir, REACH_FILE, &err));
    assert_int_equal(
        QSTILL_E_NOT_FOUND,
        reach_file(&r, "/no/such/file/anywhere", REACH_FILE, &err));
    assert_string_equal("/no/such/file/anywhere is gone", err.message);
}

static void read_rights(char *out, size_t size)
{
    FILE *f = fopen("/proc/thread-self/status", "r");
    char line[256];

    assert_non_null(f);
    out[0] = '\0';
    while (fgets(line, sizeof(line), f))
        if (strncmp(line, "Uid", 3) == 0 || strncmp(line, "Gid", 3) == 0 ||
            strncmp(line, "Groups", 6) == 0 || strncmp(line, "CapEff", 6) == 0)
            strncat(out, line, size - strlen(out) - 1);
    fclose(f);
}

/* As root asks for a QEMU that is started as nobody; and is root after that. */
static void test_rights_of_another_user(void **state)
{
    struct qstill_error err = {0};
    char path[128], before[1024], after[1024];
    struct reach r;

    (void)state;
    if (geteuid() != 0)
        skip();
    reach_init(&r, NOBODY, NOBODY);
    read_rights(before, sizeof(before));
    make(path, sizeof(path), "ours", 0600);
    assert_int_equal(QSTILL_E_PERMISSION,
                     reach_file(&r, path, REACH_FILE, &err));
    assert_non_null(strstr(err.message, "Permission denied"));
    make(path, sizeof(path), "all", 0644);
    assert_int_equal(0, reach_file(&r, path, REACH_FILE, &err));
    assert_int_equal(QSTILL_E_PERMISSION,
                     reach_file(&r, path, REACH_PROGRAM, &err));
    make(path, sizeof(path), "group", 0640);
    assert_int_equal(0, chown(path, 0, NOBODY));
    assert_int_equal(0, reach_file(&r, path, REACH_FILE, &err));
    read_rights(after, sizeof(after));
    assert_string_equal(before, after);
}

/* Groups that no passwd tells of, and none of root's capabilities. */
static void test_rights_of_a_process(void **state)
{
    struct qstill_error err = {0};
    gid_t groups[] = {4711, 4712};
    char path[128];
    struct reach r;
    pid_t pid;
    int go[2], ready[2];
    char c;

    (void)state;
    if (geteuid() != 0)
        skip();
    assert_int_equal(0, pipe(go));
    assert_int_equal(0, pipe(ready));
    pid = fork();
    if (pid == 0) {
        if (setgroups(2, groups) < 0 || setgid(NOBODY) < 0 ||
            setuid(NOBODY) < 0 || write(ready[1], "", 1) != 1)
            _exit(1);
        close(go[1]);
        _exit(read(go[0], &c, 1) != 0);
    }
    assert_int_equal(1, read(ready[0], &c, 1));
    assert_true(reach_init_process(&r, pid));
    make(path, sizeof(path), "of-4712", 0640);
    assert_int_equal(0, chown(path, 0, 4712));
    assert_int_equal(0, reach_file(&r, path, REACH_FILE, &err));
    assert_int_equal(0, chown(path, 0, 4713));
    assert_int_equal(QSTILL_E_PERMISSION,
                     reach_file(&r, path, REACH_FILE, &err));
    close(go[1]);
    waitpid(pid, NULL, 0);
    assert_false(reach_init_process(&r, pid));
    /* one that has them */
    assert_true(reach_init_process(&r, getpid()));
    assert_int_equal(0, reach_file(&r, path, REACH_FILE, &err));
}

/* What QEMU would make, as nobody in a folder of its own. */
static void test_what_is_made(void **state)
{
    static const struct {
        const char *name;
        enum reach_kind kind;
        int code;
        const char *says;
    } cases[] = {
        {"mine/new", REACH_MADE, 0, NULL},
        {"mine/new", REACH_REMADE, 0, NULL},
        {"mine/new", REACH_SOCKET, 0, NULL},
        {"roots/new", REACH_MADE, QSTILL_E_PERMISSION, "cannot be made"},
        {"roots/new", REACH_SOCKET, QSTILL_E_PERMISSION, "cannot be made"},
        {"gone/new", REACH_MADE, QSTILL_E_NOT_FOUND, "directory is gone"},
        {"gone/new", REACH_SOCKET, QSTILL_E_NOT_FOUND, "directory is gone"},
        {"mine", REACH_MADE, QSTILL_E_PRECONDITION, "is a directory"},
        {"mine", REACH_SOCKET, QSTILL_E_PRECONDITION, "is a directory"},
        /* it is opened, not replaced */
        {"mine/closed", REACH_MADE, QSTILL_E_PERMISSION, "cannot be written"},
        {"mine/closed", REACH_REMADE, 0, NULL},
        {"mine/closed", REACH_SOCKET, 0, NULL},
        {"mine/open", REACH_MADE, 0, NULL},
        {"roots/open", REACH_MADE, 0, NULL},
        {"roots/open", REACH_REMADE, 0, NULL},
        {"roots/open", REACH_SOCKET, QSTILL_E_PERMISSION, "cannot be made"},
        {"roots/closed", REACH_REMADE, QSTILL_E_PERMISSION, "be written"},
        /* all may make files there, and remove their own */
        {"sticky/new", REACH_SOCKET, 0, NULL},
        {"sticky/closed", REACH_SOCKET, QSTILL_E_PERMISSION, "another user's"},
        {"sticky/closed", REACH_REMADE, QSTILL_E_PERMISSION, "be written"},
        /* links: to mine/closed, mine/new, roots/new, gone/new, themselves */
        {"mine/to-closed", REACH_MADE, QSTILL_E_PERMISSION, "be written"},
        {"mine/to-closed", REACH_SOCKET, 0, NULL},
        {"mine/to-new", REACH_MADE, 0, NULL},
        {"mine/to-to-new", REACH_MADE, 0, NULL},
        {"mine/to-roots", REACH_MADE, QSTILL_E_PERMISSION, "roots/new cannot"},
        {"mine/to-gone", REACH_MADE, QSTILL_E_NOT_FOUND,
         "mine/to-gone is a link: "},
        {"mine/to-gone", REACH_SOCKET, 0, NULL},
        {"mine/loop", REACH_MADE, QSTILL_E_PERMISSION, "cannot be written"},
        /* what others make */
        {"mine/closed", REACH_PEER, QSTILL_E_PERMISSION, "cannot be opened"},
        {"mine/closed", REACH_DEVICE, QSTILL_E_PERMISSION, "cannot be opened"},
        {"mine/open", REACH_DEVICE, 0, NULL},
        {"mine/open", REACH_PEER, 0, NULL},
        {"mine/new", REACH_PEER, QSTILL_E_NOT_FOUND, "is gone"},
    };
    char path[128], cmd[1024];
    struct reach r;

    (void)state;
    if (geteuid() != 0)
        skip();
    snprintf(cmd, sizeof(cmd),
             "cd %s && mkdir -m 755 mine roots sticky && chmod 1777 sticky && "
             "chown %u mine && for d in mine roots sticky; do echo >$d/closed "
             "&& echo >$d/open && chmod 644 $d/closed && chmod 666 $d/open; "
             "done && cd mine && ln -s closed to-closed && ln -s new to-new && "
             "ln -s ../mine/to-new to-to-new && ln -s ../roots/new to-roots && "
             "ln -s %s/gone/new to-gone && ln -s loop loop",
             dir, NOBODY, dir);
    assert_int_equal(0, system(cmd));
    reach_init(&r, NOBODY, NOBODY);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct qstill_error err = {0};

        snprintf(path, sizeof(path), "%s/%s", dir, cases[i].name);
        if (reach_file(&r, path, cases[i].kind, &err) != cases[i].code ||
            (cases[i].says && !strstr(err.message, cases[i].says)))
            fail_msg("%zu: %s: %d %s", i, path, err.code, err.message);
    }
}

/* top -> file:middle -> json: of golden, which says what is below it. */
static void test_chain(void **state)
{
    struct qstill_error err = {0};
    char cmd[1024], path[128], below[128];
    struct reach r;

    (void)state;
    snprintf(cmd, sizeof(cmd),
             "cd %s && exec 2>&1 >/dev/null && "
             "qemu-img create -f raw base 1M && "
             "qemu-img create -f qcow2 -b base -F raw golden && "
             "qemu-img create -f qcow2 -F qcow2 -b 'json:{\"driver\":\"qcow2\","
             "\"file\":{\"driver\":\"file\",\"filename\":\"%s/golden\"}}' "
             "middle && qemu-img create -f qcow2 -b file:%s/middle -F qcow2 "
             "top && chmod 644 base golden middle top",
             dir, dir, dir);
    if (system("command -v qemu-img >/dev/null") != 0)
        skip();
    assert_int_equal(0, system(cmd));
    reach_init(&r, geteuid() == 0 ? NOBODY : geteuid(),
               geteuid() == 0 ? NOBODY : getegid());
    snprintf(path, sizeof(path), "%s/top", dir);
    assert_int_equal(0, reach_chain(&r, path, "qcow2", &err));
    assert_int_equal(0, reach_chain(&r, path, NULL, &err));
    for (const char *const *name =
             (const char *const[]){"base", "golden", "middle", NULL};
         *name; name++) {
        char away[160];

        snprintf(below, sizeof(below), "%s/%s", dir, *name);
        snprintf(away, sizeof(away), "%s.away", below);
        assert_int_equal(0, rename(below, away));
        assert_int_equal(QSTILL_E_NOT_FOUND, reach_chain(&r, path, NULL, &err));
        assert_non_null(strstr(err.message, below));
        assert_int_equal(0, reach_chain(&r, path, "raw", &err));
        assert_int_equal(0, rename(away, below));
        assert_int_equal(0, chmod(below, 0));
        if (geteuid() == 0)
            assert_int_equal(QSTILL_E_PERMISSION,
                             reach_chain(&r, path, NULL, &err));
        assert_int_equal(0, chmod(below, 0644));
        assert_int_equal(0, reach_chain(&r, path, NULL, &err));
    }
    snprintf(cmd, sizeof(cmd),
             "cd %s && qemu-img rebase -u -b top -F qcow2 "
             "golden",
             dir);
    assert_int_equal(0, system(cmd));
    assert_int_equal(QSTILL_E_CORRUPT, reach_chain(&r, path, "qcow2", &err));
}

/* Data in files of its own: of qcow2, named from where QEMU is, and in the
 * text of a vmdk, from its folder; and what a qed stands on. */
static void test_data(void **state)
{
    static const struct {
        const char *image, *format, *gone;
    } cases[] = {
        {"data/rel.qcow2", NULL, "rel.raw"},
        {"data/abs.qcow2", "qcow2", "data/abs.raw"},
        {"data/top.qcow2", "qcow2", "data/abs.raw"},
        {"data/json.qcow2", "qcow2", "data/abs.raw"},
        {"data/top.qed", "qed", "data/abs.raw"},
        {"data/top.qed", NULL, "data/abs.qcow2"},
        {"data/raw.qed", NULL, "data/abs.qcow2"},
        {"data/v.vmdk", NULL, "data/v-f001.vmdk"},
        {"data/v.vmdk", "vmdk", "data/v-f001.vmdk"},
        {"data/raw.qed", NULL, NULL},
        {"data/told.qcow2", "qcow2", NULL},
        {"data/v.vmdk", "raw", NULL},
        {"data/top.qed", "raw", NULL},
    };
    /* QEMU does not open it */
    static const char line[] = "\nRDONLY 2048 FLAT \"gone.vmdk\" 0\n";
    char cmd[2048], path[128], below[128], away[160];
    struct reach r;
    FILE *f;

    (void)state;
    if (system("command -v qemu-img >/dev/null") != 0)
        skip();
    snprintf(
        cmd, sizeof(cmd),
        "cd %s && exec >/dev/null 2>&1 && mkdir data && d=%s/data && "
        "qemu-img create -f qcow2 -o data_file=rel.raw data/rel.qcow2 1M && "
        "qemu-img create -f qcow2 -o data_file=$d/abs.raw data/abs.qcow2 1M && "
        "qemu-img create -f qcow2 -F qcow2 -b abs.qcow2 data/top.qcow2 && "
        "j='\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\","
        "\"filename\":\"'$d'/abs.qcow2\"}' && qemu-img create -f qcow2 -F "
        "qcow2 -b \"json:{$j}\" data/json.qcow2 && qemu-img create -f qcow2 "
        "-F qcow2 -b \"json:{\\\"data-file\\\":{\\\"driver\\\":"
        "\\\"file\\\",\\\"filename\\\":\\\"$d/rel.qcow2\\\"},"
        "$j}\" data/told.qcow2 && "
        "qemu-img create -f qed -F qcow2 -b abs.qcow2 data/top.qed && "
        "qemu-img create -f qed -F raw -b abs.qcow2 data/raw.qed && "
        "qemu-img create -f vmdk -o subformat=twoGbMaxExtentFlat data/v.vmdk "
        "1M && chmod -R go+rX data *.raw",
        dir, dir);
    assert_int_equal(0, system(cmd));
    reach_init(&r, geteuid() == 0 ? NOBODY : geteuid(),
               geteuid() == 0 ? NOBODY : getegid());
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const char *gone = cases[i].gone ? cases[i].gone : "data/abs.raw";
        struct qstill_error err = {0};

        r.cwd = dir;
        snprintf(path, sizeof(path), "%s/%s", dir, cases[i].image);
        snprintf(below, sizeof(below), "%s/%s", dir, gone);
        snprintf(away, sizeof(away), "%s.away", below);
        if (reach_chain(&r, path, cases[i].format, &err) != 0)
            fail_msg("%zu: %s", i, err.message);
        assert_int_equal(0, rename(below, away));
        reach_chain(&r, path, cases[i].format, &err);
        if (err.code != (cases[i].gone ? QSTILL_E_NOT_FOUND : 0) ||
            (cases[i].gone && !strstr(err.message, below)))
            fail_msg("%zu: %d %s", i, err.code, err.message);
        /* where QEMU is, is not known */
        r.cwd = NULL;
        memset(&err, 0, sizeof(err));
        reach_chain(&r, path, cases[i].format, &err);
        assert_int_equal(err.code, cases[i].gone && strchr(gone, '/')
                                       ? QSTILL_E_NOT_FOUND
                                       : 0);
        assert_int_equal(0, rename(away, below));
    }
    snprintf(path, sizeof(path), "%s/data/v.vmdk", dir);
    f = fopen(path, "a");
    assert_non_null(f);
    fputs(line, f);
    fclose(f);
    assert_int_equal(0, reach_chain(&r, path, NULL, &(struct qstill_error){0}));
}

struct told {
    size_t count;
    char last[160];
};

static int tell(void *user, const char *path, const char *format,
                struct qstill_error *err)
{
    struct told *t = user;

    (void)err;
    t->count++;
    snprintf(t->last, sizeof(t->last), "%s %s", path, format);
    return 0;
}

/* Who writes to one of them keeps QEMU out, but for what it has itself. */
static void test_locks(void **state)
{
    char cmd[512], path[128], below[128], want[160];
    struct qstill_error err = {0};
    struct told told = {0};
    struct reach r;
    int fd;

    (void)state;
    if (system("command -v qemu-img >/dev/null") != 0)
        skip();
    snprintf(cmd, sizeof(cmd),
             "cd %s && exec >/dev/null && qemu-img create -f raw locked 1M && "
             "qemu-img create -f qcow2 -b locked -F raw over",
             dir);
    assert_int_equal(0, system(cmd));
    snprintf(path, sizeof(path), "%s/over", dir);
    snprintf(below, sizeof(below), "%s/locked", dir);
    reach_init(&r, geteuid(), getegid());
    r.each = tell;
    r.user = &told;
    assert_int_equal(0, reach_chain(&r, path, "qcow2", &err));
    assert_int_equal(2, told.count);
    snprintf(want, sizeof(want), "%s raw", below);
    assert_string_equal(want, told.last);
    fd = open(below, O_RDWR);
    assert_int_equal(0, image_lock(fd, below, IMAGE_LOCK_READ, &err));
    r.locks = true;
    assert_int_equal(0, reach_chain(&r, path, "qcow2", &err));
    assert_int_equal(0, image_lock(fd, below, IMAGE_LOCK_WRITE, &err));
    assert_int_equal(QSTILL_E_BUSY, reach_chain(&r, path, "qcow2", &err));
    assert_non_null(strstr(err.message, below));
    assert_non_null(strstr(err.hint, "end what has it open"));
    memset(&err, 0, sizeof(err));
    r.own = getpid();
    assert_int_equal(0, reach_chain(&r, path, "qcow2", &err));
    r.own = 0;
    r.locks = false;
    assert_int_equal(0, reach_chain(&r, path, "qcow2", &err));
    close(fd);
    r.locks = true;
    assert_int_equal(0, reach_chain(&r, path, "qcow2", &err));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_there),
        cmocka_unit_test(test_rights_of_another_user),
        cmocka_unit_test(test_rights_of_a_process),
        cmocka_unit_test(test_what_is_made),
        cmocka_unit_test(test_chain),
        cmocka_unit_test(test_data),
        cmocka_unit_test(test_locks),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
