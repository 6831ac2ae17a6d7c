/* SPDX-License-Identifier: MIT */
/*
 * qstill bench restore: a snapshot with memory of a VM of our own, reverted in
 * each way, and QEMU's own snapshot-load (loadvm) of the same VM beside them.
 * The time is until the guest runs: the command is over and the guest's
 * counter has moved.
 */
#include "verbs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench.h"
#include "bench_vm.h"
#include "run.h"

enum { SETTLE_MS = 300, POLL_MS = 1, JOB_MS = 600000, MOVES_MS = 10000 };

struct work {
    struct cli *cli;
    struct bench_vm vm;
    struct bench_report report;
};

static void work_freep(struct work **w)
{
    if (*w)
        bench_vm_fini(&(*w)->vm);
    free(*w);
}

static int create(struct work *w, struct qstill_error *err)
{
    struct qstill_create_options o = QSTILL_CREATE_OPTIONS_INIT;
    struct qstill_job *job;

    o.memory = true;
    o.no_protect = true;
    if (qstill_create(w->vm.store, BENCH_VM, "s", &o, &job, err) < 0)
        return err->code;
    return bench_job(w->cli, job, err);
}

static int wait_beat(struct work *w, struct qstill_error *err)
{
    double deadline = bench_now_ms() + MOVES_MS;
    struct guest_page first, now;

    if (bench_vm_read(&w->vm, &first, err) < 0)
        return err->code;
    for (;;) {
        if (bench_vm_read(&w->vm, &now, err) < 0 || now.beat != first.beat)
            return err->code;
        if (bench_now_ms() > deadline)
            return cli_fail(err, QSTILL_E_FAILED,
                            "the guest does not run after it");
    }
}

/* ------------------------------------------------------------------- ours */

static int one_revert(struct work *w, const char *restore,
                      struct bench_row *row, struct qstill_error *err)
{
    struct qstill_revert_options o = QSTILL_REVERT_OPTIONS_INIT;
    struct qstill_job *job;
    double took, from;

    o.state = QSTILL_STATE_RUNNING;
    o.restore = restore;
    sync();
    bench_sleep_ms(SETTLE_MS);
    from = bench_now_ms();
    if (qstill_revert(w->vm.store, BENCH_VM, "s", &o, &job, err) < 0 ||
        bench_job(w->cli, job, err) < 0)
        return err->code;
    took = bench_now_ms() - from;
    /* To find the guest in a new process is our work, not the revert's. */
    if (bench_vm_again(&w->vm, err) < 0)
        return err->code;
    from = bench_now_ms();
    if (wait_beat(w, err) < 0)
        return err->code;
    bench_add(&row->ms, took + (bench_now_ms() - from));
    return 0;
}

static int ours(struct work *w, const char *restore, struct qstill_error *err)
{
    struct bench_row *row = bench_row(&w->report, restore, true);

    for (size_t i = 0; i < w->report.reps; i++)
        if (one_revert(w, restore, row, err) < 0)
            return err->code == QSTILL_E_PRECONDITION ? bench_skip(row, err)
                                                      : err->code;
    return 0;
}

/* ----------------------------------------------------------------- QEMU's */

/* The node that the disk writes to. */
static int find_node(struct work *w, char out[64], struct qstill_error *err)
{
    json_t *ret = NULL, *in;
    const char *node;

    if (qstill_qmp_execute(w->vm.qmp, "query-block", NULL, 0, &ret, err) < 0)
        return err->code;
    in = json_object_get(json_array_get(ret, 0), "inserted");
    node = json_string_value(json_object_get(in, "node-name"));
    snprintf(out, 64, "%s", node ? node : "");
    json_decref(ret);
    if (!out[0])
        return cli_fail(err, QSTILL_E_FAILED, "QEMU names no disk");
    return 0;
}

/* Runs one of QEMU's snapshot jobs to its end. */
static int snapshot_job(struct work *w, const char *command, const char *node,
                        struct qstill_error *err)
{
    double deadline = bench_now_ms() + JOB_MS;
    json_t *arguments =
        json_pack("{s:s,s:s,s:s,s:[s]}", "job-id", "bench", "tag", "bench",
                  "vmstate", node, "devices", node);
    char status[32] = "", words[200] = "";

    if (bench_vm_say(&w->vm, command, arguments, err) < 0)
        return err->code;
    while (strcmp(status, "concluded") != 0) {
        json_t *ret = NULL, *job;

        if (qstill_qmp_execute(w->vm.qmp, "query-jobs", NULL, 0, &ret, err) < 0)
            return err->code;
        job = json_array_get(ret, 0);
        snprintf(status, sizeof(status), "%s",
                 job ? json_string_value(json_object_get(job, "status"))
                     : "concluded");
        if (json_object_get(job, "error"))
            snprintf(words, sizeof(words), "%s",
                     json_string_value(json_object_get(job, "error")));
        json_decref(ret);
        if (bench_now_ms() > deadline)
            return cli_fail(err, QSTILL_E_FAILED, "%s does not end", command);
        if (run_cancelled(err) < 0)
            return err->code;
        bench_sleep_ms(POLL_MS);
    }
    if (bench_vm_say(&w->vm, "job-dismiss", json_pack("{s:s}", "id", "bench"),
                     err) < 0)
        return err->code;
    return words[0] ? cli_fail(err, QSTILL_E_FAILED, "%s: %s", command, words)
                    : 0;
}

static int one_load(struct work *w, const char *node, struct bench_row *row,
                    struct qstill_error *err)
{
    double from;

    sync();
    bench_sleep_ms(SETTLE_MS);
    from = bench_now_ms();
    if (bench_vm_say(&w->vm, "stop", NULL, err) < 0 ||
        snapshot_job(w, "snapshot-load", node, err) < 0 ||
        bench_vm_say(&w->vm, "cont", NULL, err) < 0 || wait_beat(w, err) < 0)
        return err->code;
    bench_add(&row->ms, bench_now_ms() - from);
    return 0;
}

static int theirs(struct work *w, struct qstill_error *err)
{
    struct bench_row *row = bench_row(&w->report, "QEMU snapshot-load", false);
    char node[64];
    int r = find_node(w, node, err);

    if (r == 0)
        r = snapshot_job(w, "snapshot-save", node, err);
    for (size_t i = 0; r == 0 && i < w->report.reps; i++)
        r = one_load(w, node, row, err);
    return r < 0 ? bench_skip(row, err) : 0;
}

/* ------------------------------------------------------------------- verb */

/* A VM whose RAM maps a snapshot's file is another one: what needs ordinary
 * RAM comes before mapped, or after eager, which brings it back. */
static int measure_all(struct work *w, struct qstill_error *err)
{
    if (create(w, err) < 0 || ours(w, "inplace", err) < 0 ||
        ours(w, "mapped", err) < 0 || ours(w, "eager", err) < 0)
        return err->code;
    return theirs(w, err);
}

static int restore_run(struct cli *cli, const struct args *args,
                       struct qstill_error *err)
{
    CLEANUP(work_freep) struct work *w = calloc(1, sizeof(*w));
    struct bench_vm_options o = {0};

    if (!w)
        return cli_fail(err, QSTILL_E_FAILED, "out of memory");
    w->cli = cli;
    bench_vm_options_read(&o, args);
    if (bench_reps(cli, args, &w->report.reps, err) < 0)
        return err->code;
    run_prepare(cli);
    if (bench_vm_start(&w->vm, &o, err) < 0)
        return err->code;
    w->report.what = "restore";
    w->report.unit = "a revert, until the guest runs";
    w->report.accel = w->vm.accel;
    w->report.size = w->vm.size;
    if (measure_all(w, err) < 0)
        return err->code;
    return bench_show(cli, &w->report, err);
}

static const struct option_spec restore_options[] = {
    BENCH_VM_OPTIONS,
    {0},
};

const struct verb verb_bench_restore = {
    .name = "bench restore",
    .summary = "Measures reverts with memory, and QEMU's own beside them",
    .options = restore_options,
    .run = restore_run,
};
