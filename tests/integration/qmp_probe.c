/* SPDX-License-Identifier: MIT */
/*
 * Drives include/qstill-qmp.h against a real QEMU, for test_qmp.py: qmp_probe
 * SCENARIO SOCKET [ARG] prints facts, one "key=value" a line, and leaves the
 * judging to the test. Exits 1 when a call failed that should not.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "qstill-qmp.h"

static struct qstill_error err;

static void must(int r, const char *what)
{
    if (r >= 0)
        return;
    printf("failed=%s: %s: %s\n", what, qstill_code_name(err.code),
           err.message);
    exit(1);
}

static void print_failure(const char *key, int r)
{
    printf("%s=%s\n", key, r < 0 ? qstill_code_name(r) : "no failure");
    printf("%s_message=%s\n", key, r < 0 ? err.message : "");
}

static struct qstill_qmp *open_qmp(const char *path)
{
    struct qstill_qmp *q;

    must(qstill_qmp_open(&q, path, NULL, &err), "open");
    return q;
}

static json_t *run(struct qstill_qmp *q, const char *command, json_t *args)
{
    json_t *ret = NULL;

    must(qstill_qmp_execute(q, command, args, 0, &ret, &err), command);
    return ret;
}

static void hello(struct qstill_qmp *q)
{
    json_t *version = run(q, "query-version", NULL);
    json_t *v = json_object_get(version, "qemu");
    pid_t pid = 0;

    printf("version=%d.%d\n",
           (int)json_integer_value(json_object_get(v, "major")),
           (int)json_integer_value(json_object_get(v, "minor")));
    must(qstill_qmp_peer_pid(q, &pid, &err), "peer_pid");
    printf("pid=%d\n", (int)pid);
    json_decref(version);
}

/* Adds `fd` and has QEMU write its device state into it. */
static int save_into(struct qstill_qmp *q, int fd)
{
    json_t *ret = NULL;
    char name[64];

    must(qstill_qmp_execute_fd(q, "add-fd", NULL, fd, 0, &ret, &err), "add-fd");
    snprintf(name, sizeof(name), "/dev/fdset/%d",
             (int)json_integer_value(json_object_get(ret, "fdset-id")));
    json_decref(ret);
    return qstill_qmp_execute(
        q, "xen-save-devices-state",
        json_pack("{s:s, s:b}", "filename", name, "live", 0), 0, NULL, &err);
}

static void pass_fds(struct qstill_qmp *q)
{
    int fd = memfd_create("probe", MFD_CLOEXEC);
    char path[64];
    struct stat st;
    FILE *f;

    must(qstill_qmp_execute_fd(q, "getfd", json_pack("{s:s}", "fdname", "p"),
                               fd, 0, NULL, &err),
         "getfd");
    json_decref(run(q, "closefd", json_pack("{s:s}", "fdname", "p")));
    printf("closefd=ok\n");
    json_decref(run(q, "stop", NULL));
    /* QEMU opens write-only and wants an fd of that very mode */
    print_failure("mode", save_into(q, fd));
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    f = fopen(path, "we");
    must(save_into(q, fileno(f)), "xen-save-devices-state");
    json_decref(run(q, "cont", NULL));
    fstat(fd, &st);
    printf("written=%lld\n", (long long)st.st_size);
    fclose(f);
    close(fd);
}

static void schema(struct qstill_qmp *q)
{
    bool has = false;

    must(qstill_qmp_has_command(q, "xen-save-devices-state", &has, &err), "?");
    printf("xen=%d\n", has);
    must(qstill_qmp_has_command(q, "no-such-command", &has, &err), "?");
    printf("nosuch=%d\n", has);
    must(qstill_qmp_has_event(q, "STOP", &has, &err), "?");
    printf("stop=%d\n", has);
    must(qstill_qmp_has_value(q, "migrate-set-capabilities",
                              "capabilities.capability", "background-snapshot",
                              &has, &err),
         "?");
    printf("background=%d\n", has);
    must(qstill_qmp_has_value(q, "migrate-set-capabilities",
                              "capabilities.capability", "mapped-ram", &has,
                              &err),
         "?");
    printf("mapped=%d\n", has);
    must(qstill_qmp_has_argument(q, "migrate-incoming", "exit-on-error", &has,
                                 &err),
         "?");
    printf("exit_on_error=%d\n", has);
    must(qstill_qmp_has_member(q, "query-named-block-nodes", "active", &has,
                               &err),
         "?");
    printf("active=%d\n", has);
}

/* Several commands on their way, events between the replies, in any order. */
static void events(struct qstill_qmp *q)
{
    static const char *const commands[] = {"stop", "query-status", "cont",
                                           "query-status"};
    uint64_t number[4];
    json_t *ret[4] = {0}, *event = NULL;

    for (int i = 0; i < 4; i++)
        must(qstill_qmp_send(q, commands[i], NULL, &number[i], &err),
             commands[i]);
    for (int i = 3; i >= 0; i--)
        must(qstill_qmp_receive(q, number[i], 0, &ret[i], &err), commands[i]);
    for (int i = 1; i < 4; i += 2)
        printf("status%d=%s\n", i,
               json_string_value(json_object_get(ret[i], "status")));
    for (int i = 0; i < 4; i++)
        json_decref(ret[i]);
    for (;;) {
        must(qstill_qmp_next_event(q, QSTILL_QMP_NO_WAIT, &event, &err),
             "event");
        if (!event)
            break;
        printf("event=%s\n",
               json_string_value(json_object_get(event, "event")));
        json_decref(event);
    }
}

static void errors(struct qstill_qmp *q)
{
    int r = qstill_qmp_execute(q, "device_del",
                               json_pack("{s:s}", "id", "no-such-device"), 0,
                               NULL, &err);

    print_failure("device", r);
    printf("device_class=%s\n", qstill_qmp_error_class(q));
    printf("device_text=%s\n", qstill_qmp_error_text(q));
    r = qstill_qmp_execute(q, "no-such-command", NULL, 0, NULL, &err);
    print_failure("command", r);
    printf("command_class=%s\n", qstill_qmp_error_class(q));
    r = qstill_qmp_execute(q, "stop", json_pack("{s:i}", "surplus", 1), 0, NULL,
                           &err);
    print_failure("argument", r);
    json_decref(run(q, "query-status", NULL));
    printf("class_afterwards=%s\n", qstill_qmp_error_class(q));
}

/* A reply that comes too late is not taken for the next command's. */
static void timeout(struct qstill_qmp *q, const char *file)
{
    int r = qstill_qmp_execute(q, "pmemsave",
                               json_pack("{s:i, s:i, s:s}", "val", 0, "size",
                                         64 << 20, "filename", file),
                               1, NULL, &err);
    json_t *ret;

    print_failure("slow", r);
    for (int i = 0; i < 3; i++) {
        ret = run(q, "query-status", NULL);
        printf("status=%s\n",
               json_string_value(json_object_get(ret, "status")));
        json_decref(ret);
    }
}

static void second(const char *path)
{
    struct qstill_qmp_options options = QSTILL_QMP_OPTIONS_INIT;
    struct timespec a, b;
    struct qstill_qmp *q = NULL;
    int r;

    options.greeting_timeout_ms = 700;
    clock_gettime(CLOCK_MONOTONIC, &a);
    r = qstill_qmp_open(&q, path, &options, &err);
    clock_gettime(CLOCK_MONOTONIC, &b);
    print_failure("second", r);
    printf("second_hint=%s\n", err.hint);
    printf("second_ms=%lld\n", (long long)(b.tv_sec - a.tv_sec) * 1000 +
                                   (b.tv_nsec - a.tv_nsec) / 1000000);
    qstill_qmp_close(q);
}

static void gone(struct qstill_qmp *q)
{
    qstill_qmp_execute(q, "quit", NULL, 0, NULL, &err);
    for (int i = 0; i < 2; i++)
        print_failure(
            "gone", qstill_qmp_execute(q, "query-status", NULL, 0, NULL, &err));
}

static void agent(const char *path)
{
    struct qstill_qga *a;
    uint32_t count = 99;
    bool frozen = false;

    must(qstill_qga_open(&a, path, NULL, &err), "qga_open");
    must(qstill_qga_ping(a, &err), "ping");
    must(qstill_qga_freeze(a, 0, &count, &err), "freeze");
    printf("frozen=%u\n", count);
    must(qstill_qga_is_frozen(a, &frozen, &err), "is_frozen");
    printf("is_frozen=%d\n", frozen);
    print_failure("while_frozen", qstill_qga_execute(a, "guest-get-fsinfo",
                                                     NULL, 0, NULL, &err));
    must(qstill_qga_thaw(a, 0, &count, &err), "thaw");
    printf("thawed=%u\n", count);
    must(qstill_qga_is_frozen(a, &frozen, &err), "is_frozen");
    printf("is_frozen_after=%d\n", frozen);
    print_failure("unknown",
                  qstill_qga_execute(a, "guest-no-such", NULL, 0, NULL, &err));
    must(qstill_qga_ping(a, &err), "ping");
    qstill_qga_close(a);
}

static void silent_agent(const char *path)
{
    struct qstill_qga_options options = QSTILL_QGA_OPTIONS_INIT;
    struct qstill_qga *a = NULL;

    options.timeout_ms = 500;
    print_failure("silent", qstill_qga_open(&a, path, &options, &err));
    qstill_qga_close(a);
}

int main(int argc, char **argv)
{
    const char *what = argc > 2 ? argv[1] : "";
    struct qstill_qmp *q;

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!strcmp(what, "second"))
        second(argv[2]);
    else if (!strcmp(what, "agent"))
        agent(argv[2]);
    else if (!strcmp(what, "silent-agent"))
        silent_agent(argv[2]);
    else {
        q = open_qmp(argv[2]);
        if (!strcmp(what, "hello"))
            hello(q);
        else if (!strcmp(what, "fds"))
            pass_fds(q);
        else if (!strcmp(what, "schema"))
            schema(q);
        else if (!strcmp(what, "events"))
            events(q);
        else if (!strcmp(what, "errors"))
            errors(q);
        else if (!strcmp(what, "timeout"))
            timeout(q, argv[3]);
        else if (!strcmp(what, "gone"))
            gone(q);
        else
            return 2;
        qstill_qmp_close(q);
    }
    return 0;
}
