/* SPDX-License-Identifier: MIT */
/*
 * qstill bench memory: live snapshots of a VM of our own with its memory, and
 * QEMU's own migrations of the same VM into a file beside them. Every time is
 * until the files are durable.
 */
#include "verbs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench.h"
#include "bench_vm.h"
#include "run.h"

enum { IDLE_MS = 1000, SETTLE_MS = 300, POLL_MS = 2, MIGRATE_MS = 600000 };

struct work {
    struct cli *cli;
    struct bench_vm vm;
    struct bench_report report;
    struct guest_watch watch;
    bool by_name; /* QEMU can migrate to "file:" */
};

static void work_freep(struct work **w)
{
    if (*w)
        bench_vm_fini(&(*w)->vm);
    free(*w);
}

/* ------------------------------------------------------------------- ours */

static int create(struct work *w, const char *mode, struct qstill_error *err)
{
    struct qstill_create_options o = QSTILL_CREATE_OPTIONS_INIT;
    struct qstill_job *job;

    o.memory = true;
    o.mode = mode;
    o.no_protect = true;
    if (qstill_create(w->vm.store, BENCH_VM, "s", &o, &job, err) < 0)
        return err->code;
    return bench_job(w->cli, job, err);
}

static int drop(struct work *w, struct qstill_error *err)
{
    static const char *const names[] = {"s"};
    struct qstill_job *job;

    if (qstill_delete(w->vm.store, BENCH_VM, names, 1, NULL, &job, err) < 0)
        return err->code;
    return bench_job(w->cli, job, err);
}

static int stored(struct work *w, uint64_t *out, struct qstill_error *err)
{
    struct qstill_snapshot_list *list;
    const struct qstill_snapshot *s;
    int r;

    if (qstill_snapshot_list(w->vm.store, BENCH_VM, &list, err) < 0)
        return err->code;
    r = qstill_snapshot_find(list, "s", &s, err);
    if (r == 0)
        *out = s->memory_written;
    qstill_snapshot_list_free(list);
    return r;
}

static int one_snapshot(struct work *w, const char *mode, struct bench_row *row,
                        struct qstill_error *err)
{
    struct guest_page before, after;
    double from, took, stop, cont;
    int r;

    sync();
    bench_sleep_ms(SETTLE_MS);
    bench_vm_stopped(&w->vm, &stop, &cont);
    if (bench_vm_read(&w->vm, &before, err) < 0 ||
        guest_watch_begin(&w->watch, w->vm.pid, w->vm.ram + GUEST_METER, err) <
            0)
        return err->code;
    from = bench_now_ms();
    r = create(w, mode, err);
    took = bench_now_ms() - from;
    guest_watch_end(&w->watch);
    if (r < 0 || bench_vm_read(&w->vm, &after, err) < 0 ||
        stored(w, &row->bytes, err) < 0)
        return err->code;
    bench_add(&row->ms, took);
    bench_vm_stopped(&w->vm, &stop, &cont);
    bench_add(&row->pause, guest_watch_pause_ms(&w->watch, stop, cont));
    if (w->report.has_stalls)
        guest_took_add(&w->report.stalls, &before, &after);
    return drop(w, err);
}

static int ours(struct work *w, const char *mode, struct qstill_error *err)
{
    struct bench_row *row = bench_row(&w->report, mode, true);

    w->report.has_stalls = strcmp(mode, "cow") == 0;
    for (size_t i = 0; i < w->report.reps; i++)
        if (one_snapshot(w, mode, row, err) < 0)
            return err->code;
    return 0;
}

static int idle(struct work *w, struct qstill_error *err)
{
    struct guest_page before, after;

    if (bench_vm_read(&w->vm, &before, err) < 0)
        return err->code;
    bench_sleep_ms(IDLE_MS);
    if (bench_vm_read(&w->vm, &after, err) < 0)
        return err->code;
    guest_took_add(&w->report.idle, &before, &after);
    return 0;
}

/* ------------------------------------------------------------------- QEMU's */

struct way {
    const char *name;
    bool mapped, multifd, direct;
};
static const struct way ways[] = {
    {"QEMU migrate, stream", false, false, false},
    {"QEMU migrate, mapped-ram", true, false, false},
    {"QEMU migrate, mapped-ram multifd direct-io", true, true, true},
};

static int set_capabilities(struct work *w, const struct way *way, bool on,
                            struct qstill_error *err)
{
    json_t *list = json_array();

    if (way->mapped)
        json_array_append_new(list, json_pack("{s:s,s:b}", "capability",
                                              "mapped-ram", "state", on));
    if (way->multifd)
        json_array_append_new(
            list, json_pack("{s:s,s:b}", "capability", "multifd", "state", on));
    if (json_array_size(list) == 0) {
        json_decref(list);
        return 0;
    }
    return bench_vm_say(&w->vm, "migrate-set-capabilities",
                        json_pack("{s:o}", "capabilities", list), err);
}

static int set_parameters(struct work *w, const struct way *way, bool on,
                          struct qstill_error *err)
{
    json_t *p = json_pack("{s:I}", "max-bandwidth", (json_int_t)1 << 40);

    if (way->direct)
        json_object_set_new(p, "direct-io", json_boolean(on));
    return bench_vm_say(&w->vm, "migrate-set-parameters", p, err);
}

static int wait_migration(struct work *w, struct qstill_error *err)
{
    double deadline = bench_now_ms() + MIGRATE_MS;

    for (;;) {
        json_t *ret = NULL;
        char status[32] = "";

        if (qstill_qmp_execute(w->vm.qmp, "query-migrate", NULL, 0, &ret, err) <
            0)
            return err->code;
        snprintf(status, sizeof(status), "%s",
                 json_string_value(json_object_get(ret, "status")));
        json_decref(ret);
        if (strcmp(status, "completed") == 0)
            return 0;
        if (strcmp(status, "failed") == 0 || bench_now_ms() > deadline)
            return cli_fail(err, QSTILL_E_FAILED, "its migration is %s",
                            status);
        if (run_cancelled(err) < 0)
            return err->code;
        bench_sleep_ms(POLL_MS);
    }
}

/* By name where QEMU can (its file formats need it, and QEMU 11 takes no file's
 * descriptor any more), else into a descriptor. */
static int migrate(struct work *w, const char *path, int fd,
                   struct qstill_error *err)
{
    char uri[PATH_MAX + 24];

    if (w->by_name) {
        snprintf(uri, sizeof(uri), "file:%s", path);
    } else {
        snprintf(uri, sizeof(uri), "fd:bench");
        if (qstill_qmp_execute_fd(w->vm.qmp, "getfd",
                                  json_pack("{s:s}", "fdname", "bench"), fd, 0,
                                  NULL, err) < 0)
            return err->code;
    }
    if (bench_vm_say(&w->vm, "migrate", json_pack("{s:s}", "uri", uri), err) <
            0 ||
        wait_migration(w, err) < 0)
        return err->code;
    if (fsync(fd) < 0)
        return cli_fail(err, QSTILL_E_FAILED, "fsync of %s: %s", path,
                        strerror(errno));
    return 0;
}

static int one_migration(struct work *w, struct bench_row *row,
                         struct qstill_error *err)
{
    char path[PATH_MAX + 16];
    struct qstill_error second = {0};
    double from, took;
    struct stat st;
    int fd, r;

    snprintf(path, sizeof(path), "%s/migration", w->vm.dir);
    fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        return cli_fail(err, QSTILL_E_FAILED, "%s: %s", path, strerror(errno));
    sync();
    bench_sleep_ms(SETTLE_MS);
    r = bench_vm_say(&w->vm, "stop", NULL, err);
    from = bench_now_ms();
    if (r == 0)
        r = migrate(w, path, fd, err);
    took = bench_now_ms() - from;
    if (r == 0 && fstat(fd, &st) == 0)
        row->bytes = (uint64_t)st.st_blocks * 512;
    close(fd);
    unlink(path);
    /* The guest stood still all the time. */
    if (bench_vm_say(&w->vm, "cont", NULL, &second) < 0 && r == 0)
        *err = second;
    if (r < 0 || err->code < 0)
        return err->code;
    bench_add(&row->ms, took);
    bench_add(&row->pause, took);
    return 0;
}

static int theirs(struct work *w, const struct way *way,
                  struct qstill_error *err)
{
    struct bench_row *row = bench_row(&w->report, way->name, false);
    struct qstill_error ignored = {0};
    int r = set_capabilities(w, way, true, err);

    if (r == 0)
        r = set_parameters(w, way, true, err);
    for (size_t i = 0; r == 0 && i < w->report.reps; i++)
        r = one_migration(w, row, err);
    set_parameters(w, way, false, &ignored);
    set_capabilities(w, way, false, &ignored);
    return r < 0 ? bench_skip(row, err) : 0;
}

/* ------------------------------------------------------------------- verb */

static int measure_all(struct work *w, const char *mode,
                       struct qstill_error *err)
{
    if (ours(w, mode, err) < 0 || (w->report.has_stalls && idle(w, err) < 0) ||
        qstill_qmp_has_value(w->vm.qmp, "migrate", "channels.addr.transport",
                             "file", &w->by_name, err) < 0)
        return err->code;
    for (size_t i = 0; i < ARRAY_LEN(ways); i++)
        if (theirs(w, &ways[i], err) < 0)
            return err->code;
    return 0;
}

static int memory_run(struct cli *cli, const struct args *args,
                      struct qstill_error *err)
{
    CLEANUP(work_freep) struct work *w = calloc(1, sizeof(*w));
    struct bench_vm_options o = {0};
    const char *mode = args_text(args, "mode");

    if (!w)
        return cli_fail(err, QSTILL_E_FAILED, "out of memory");
    w->cli = cli;
    bench_vm_options_read(&o, args);
    if (bench_reps(cli, args, &w->report.reps, err) < 0)
        return err->code;
    run_prepare(cli);
    if (bench_vm_start(&w->vm, &o, err) < 0)
        return err->code;
    w->report.what = "memory";
    w->report.unit = "a snapshot, until it is durable";
    w->report.accel = w->vm.accel;
    w->report.size = w->vm.size;
    w->report.slowest = GUEST_PAGES * w->report.reps;
    w->report.stalls.hz = w->report.idle.hz = w->vm.hz;
    if (measure_all(w, mode ? mode : "cow", err) < 0)
        return err->code;
    return bench_show(cli, &w->report, err);
}

static const struct option_spec memory_options[] = {
    BENCH_VM_OPTIONS,
    {"mode", "cow|background|precopy|paused", OPTION_CHOICE, false,
     "of our snapshots (default: cow)"},
    {0},
};

const struct verb verb_bench_memory = {
    .name = "bench memory",
    .summary = "Measures snapshots with memory, and QEMU's own beside them",
    .options = memory_options,
    .run = memory_run,
};
