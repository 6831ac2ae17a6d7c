/* SPDX-License-Identifier: MIT */
/*
 * revert: the VM is as it was at a snapshot.
 *
 * The happy path, with a new QEMU process:
 *   plan      lock, recovery, preflight, way of restore
 *   keep      (--keep) the present state becomes a snapshot
 *   prepare   journal, new empty heads on the snapshot's frozen layers
 *   inplace   only there: the running QEMU becomes the snapshot's; the next
 *             three are left out
 *   end       what can soon be told of the memory's files is checked, then the
 *             running QEMU is stopped and ended
 *   start     a new one on the new heads, waiting for its state
 *   load      the stream: device state, and RAM unless it is mapped
 *   commit    vm.json and journal say that the new heads count
 *   run       cont; the old heads are removed
 * Failures: what happened in the running process is undone, and with --restore
 * auto a new process is tried. Before the commit the new process is ended, the
 * new heads are removed, and the VM is started again on its old heads if it had
 * been running (its old memory is gone with the old process). After the commit
 * the next command finishes.
 */
#include "revert_impl.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/options.h"
#include "job.h"
#include "layer_file.h"
#include "layer_name.h"
#include "livechain.h"
#include "nvdimm.h"
#include "preflight.h"
#include "ramfds.h"
#include "ready.h"
#include "start.h"
#include "trash.h"

void revert_lap(struct revert *r, const char *phase)
{
    double now = clock_ms();

    if (r->result.time_count < TIMES_MAX - 1) {
        r->times[r->result.time_count].phase = phase;
        r->times[r->result.time_count++].ms = now - r->phase_ms;
    }
    r->phase_ms = now;
}

/* -------------------------------------------------------------------- plan */

static void describe(struct revert *r, const struct manifest *m)
{
    struct buf *text = job_text(r->job);

    buf_printf(text, "revert to %s (%s), restore %s%s\n", m->name, m->id,
               revert_way_name(r->way),
               r->in_process && r->way == WAY_DISK
                   ? ", the running QEMU goes on"
                   : "");
    for (size_t i = 0; i < m->disk_count; i++)
        buf_printf(text, "disk %s: a new head on %s\n", m->disks[i].name,
                   m->disks[i].path);
}

static int plan_enter(void *ctx, struct qstill_error *err)
{
    struct revert *r = ctx;

    r->begun_ms = r->phase_ms = clock_ms();
    if (id_new(r->tag, err) < 0 || revert_plan(r, err) < 0 ||
        revert_keep_plan(r, err) < 0)
        return err->code;
    describe(r, tree_find(&r->s.tree, r->id));
    if (r->way == WAY_DISK)
        nvdimm_note(&r->s, " is not brought back: it stays as it is");
    revert_lap(r, "plan");
    return 0;
}

/* ----------------------------------------------------------------- prepare */

static int fill_journal(struct revert *r, const struct manifest *m,
                        struct qstill_error *err)
{
    r->j.op = JOURNAL_REVERT;
    r->j.phase = JOURNAL_BEGUN;
    r->j.snapshot = r->id;
    r->j.tag = r->tag;
    r->j.old_current = r->s.rec.current;
    r->j.was_running = r->was_running;
    r->j.inplace = r->in_process;
    r->j.reset = r->in_process && r->way == WAY_DISK;
    if (r->in_process) {
        r->j.pid = (uint64_t)r->s.pid;
        r->j.pid_start = start_time_of(r->s.pid);
    }
    r->j.kept = r->result.kept;
    if (r->way != WAY_DISK && nvdimm_loads(&r->s, m, &r->arena, &r->loads,
                                           &r->load_count, &r->j.boot, err) < 0)
        return err->code;
    if (r->in_process) {
        r->j.loads = r->loads;
        r->j.load_count = r->load_count;
    }
    r->j.disks = arena_array(&r->arena, m->disk_count + 1, sizeof(*r->j.disks));
    if (!r->j.disks)
        return err_nomem(err);
    for (size_t i = 0; i < m->disk_count; i++) {
        const struct vm_disk *d = vmrecord_disk(&r->s.rec, m->disks[i].name);
        const char *path = NULL;

        if (layer_new_path(&r->s, d, NULL, r->tag, &path, err) < 0)
            return err->code;
        r->j.disks[i] = (struct journal_disk){
            d->name, d->head_path, d->head_format, path, OVERLAY_FORMAT};
    }
    r->j.disk_count = m->disk_count;
    return 0;
}

int revert_make_heads(struct revert *r, struct qstill_error *err)
{
    const struct manifest *m = tree_find(&r->s.tree, r->id);

    for (size_t i = 0; i < m->disk_count; i++) {
        const struct manifest_disk *md = &m->disks[i];
        struct vm_disk *d = vmrecord_disk(&r->s.rec, md->name);
        const char *path;
        uint64_t size;

        /* its own word before ours: manifests of older versions may have the
         * size that the disk had when the VM was attached */
        if (layer_virtual_size(md->path, md->format, &size, err) < 0)
            return err->code;
        d->virtual_size = size ? size : md->virtual_size;
        if (layer_create(&r->s, d, d->virtual_size, md->path, md->format, NULL,
                         r->tag, &path, err) < 0)
            return err_wrap(err, "new head of disk %s", d->name);
    }
    return 0;
}

static int prepare_enter(void *ctx, struct qstill_error *err)
{
    struct revert *r = ctx;

    if (r->o.dry_run)
        return 0;
    if (fill_journal(r, tree_find(&r->s.tree, r->id), err) < 0)
        return err->code;
    r->journaled = true;
    if (r->in_process && r->way == WAY_INPLACE &&
        media_differing(&r->s, &r->arena, &tree_find(&r->s.tree, r->id)->media,
                        &r->j.media, err) < 0)
        return err->code;
    if (journal_save(r->s.vmfd, &r->j, err) < 0 ||
        revert_make_heads(r, err) < 0)
        return err->code;
    r->j.phase = JOURNAL_SWITCHING;
    if (journal_save(r->s.vmfd, &r->j, err) < 0)
        return err->code;
    revert_lap(r, "prepare");
    return 0;
}

static void prepare_undo(void *ctx, struct qstill_error *err)
{
    struct qstill_error ignored = {0};
    struct revert *r = ctx;

    restore_close(r->restore);
    r->restore = NULL;
    inplace_fini(&r->inplace);
    if (!r->journaled || r->committed)
        return;
    if (r->started)
        start_kill(&r->s, r->pid);
    r->started = false;
    revert_put_settings_back(r);
    if (r->j.phase == JOURNAL_COMMITTED) { /* it may have been written */
        r->j.phase = JOURNAL_SWITCHING;
        r->j.was_running = r->was_running;
        journal_save(r->s.vmfd, &r->j, &ignored);
    }
    revert_roll_back(&r->s, &r->j, job_text(r->job), err);
    nvdimm_tell_mixed(&r->s, &r->j);
    r->journaled = false;
}

/* --------------------------------------------------------------- end, start */

int revert_say_how(struct revert *r, struct qstill_error *err)
{
    if (!r->was_running)
        return err_hint(err,
                        "nothing has changed; qstill start %s starts the "
                        "VM on its old disks",
                        r->vm);
    return err_hint(err,
                    "the VM is started again on its old disks, which are "
                    "unchanged; if it is off: qstill start %s",
                    r->vm);
}

static int end_enter(void *ctx, struct qstill_error *err)
{
    struct revert *r = ctx;

    if (r->o.dry_run || r->in_process)
        return 0;
    /* While there still is something to lose. */
    if (r->way != WAY_DISK && r->state != QSTILL_STATE_STOPPED &&
        (r->s.qmp || revert_keeps_content(r)) && revert_check_files(r, err) < 0)
        return err->code;
    if (!r->s.qmp)
        return 0;
    if (qmp_stop(r->s.qmp, 0, err) < 0 || start_quit(&r->s, err) < 0)
        return err->code;
    revert_lap(r, "end");
    return 0;
}

static int start_eagerly(struct revert *r, struct start_options *o,
                         struct qstill_error *err)
{
    start_kill(&r->s, r->pid);
    r->started = false;
    r->way = WAY_EAGER;
    if (revert_fill_start(r, tree_find(&r->s.tree, r->id), o, err) < 0)
        return err->code;
    if (start_vm(&r->s, o, &r->pid, err) < 0)
        return revert_say_how(r, err);
    r->started = true;
    return 0;
}

/* The guest could have QEMU damage the snapshot that it runs on. */
static int seal_files(struct revert *r, struct start_options *o,
                      struct qstill_error *err)
{
    if (o->mapped_readonly ||
        ramfds_seal(&r->s, o->mapped, o->mapped_count, err) == 0)
        return 0;
    if (r->wanted != WAY_AUTO || err->code == QSTILL_E_UNREACHABLE)
        return revert_say_how(r, err);
    store_note(r->store, "restore mapped not taken: %s", err->message);
    err_clear(err);
    return start_eagerly(r, o, err);
}

static int start_enter(void *ctx, struct qstill_error *err)
{
    struct revert *r = ctx;
    struct start_options o;
    const struct manifest *m;

    if (r->o.dry_run || r->in_process || r->state == QSTILL_STATE_STOPPED)
        return 0;
    if (revert_fill_start(r, tree_find(&r->s.tree, r->id), &o, err) < 0)
        return err->code;
    if (start_vm(&r->s, &o, &r->pid, err) < 0)
        return revert_say_how(r, err);
    r->started = true;
    if (seal_files(r, &o, err) < 0)
        return err->code;
    m = tree_find(&r->s.tree, r->id);
    if (o.incoming && (preflight_process(&r->s, m, r->o.force, err) < 0 ||
                       media_put(&r->s, &m->media, err) < 0))
        return err->code;
    revert_lap(r, "start");
    return 0;
}

/* ------------------------------------------------------------- commit, run */

static void fill_result(struct revert *r)
{
    static const char *const states[] = {"", "running", "paused", "stopped"};

    r->result.state = states[r->state];
    r->result.restore = revert_way_name(r->way);
    r->times[r->result.time_count].phase = "total";
    r->times[r->result.time_count++].ms = clock_ms() - r->begun_ms;
    r->result.times = r->times;
}

/* The last phase: a cancel that comes while it works finds the job done, and
 * does not say of a VM that was reverted that it was not. */
static int commit_enter(void *ctx, struct qstill_error *err)
{
    struct revert *r = ctx;
    const struct manifest *m = tree_find(&r->s.tree, r->id);

    if (r->o.dry_run) {
        fill_result(r);
        return 0;
    }
    r->j.phase = JOURNAL_COMMITTED;
    r->j.was_running = r->state == QSTILL_STATE_RUNNING;
    /* a process that lives on maps what it mapped */
    r->j.mapped = r->in_process          ? r->s.rec.mapped
                  : r->way == WAY_MAPPED ? r->id
                                         : NULL;
    r->j.freezing = manifest_wakes_frozen(m) && r->way != WAY_DISK;
    r->j.pid = (uint64_t)r->s.pid;
    r->j.pid_start = start_time_of(r->s.pid);
    if (journal_save(r->s.vmfd, &r->j, err) < 0)
        return err->code;
    r->committed = true;
    r->s.rest_job = r->job;
    if ((r->started || r->in_process) && revert_run(&r->s, &r->j, err) < 0)
        return err->code;
    revert_lap(r, "run");
    if (r->j.freezing && !r->s.rec.agent)
        store_note(r->store,
                   "the guest of %s was captured frozen: thaw it by hand",
                   m->name);
    else if (r->j.freezing && r->state == QSTILL_STATE_PAUSED)
        store_note(r->store,
                   "the guest of %s was captured frozen: when it runs, the "
                   "next verb of qstill thaws it",
                   m->name);
    if (revert_finish(&r->s, &r->j, job_text(r->job), err) < 0)
        return err->code;
    revert_lap(r, "clean");
    fill_result(r);
    return 0;
}

/* --------------------------------------------------------------------- job */

static void revert_free(void *ctx)
{
    struct revert *r = ctx;

    qstill_job_free(r->keeping);
    restore_close(r->restore);
    inplace_fini(&r->inplace);
    qmp_unplug_fini(&r->unplug);
    settings_fini(&r->was);
    ramset_close(r->set);
    if (r->session_open)
        session_close(&r->s);
    arena_fini(&r->arena);
    free(r);
}

static const struct job_phase revert_phases[] = {
    {"plan", plan_enter, NULL, NULL},
    {"keep", revert_keep_enter, revert_keep_step, NULL},
    {"prepare", prepare_enter, NULL, prepare_undo},
    {"inplace", revert_inplace_enter, revert_inplace_step, NULL},
    {"end", end_enter, NULL, NULL},
    {"start", start_enter, NULL, NULL},
    {"memory", revert_load_enter, revert_load_step, NULL},
    {"commit", commit_enter, NULL, NULL},
    {NULL, NULL, NULL, NULL},
};
static const struct job_ops revert_ops = {revert_phases, revert_free};

static int take_options(struct revert *r, const char *vm, const char *snap,
                        const struct qstill_revert_options *o,
                        struct qstill_error *err)
{
    const char *word;

    if (name_check("VM name", vm, err) < 0 ||
        name_check("snapshot name", snap, err) < 0)
        return err->code;
    if (options_take(&r->o, sizeof(r->o), o, "revert", err) < 0 ||
        trash_keep_option(r->o.keep_trash, TRASH_KEEP_REVERT, &r->j.keep_trash,
                          err) < 0)
        return err->code;
    word = r->o.restore ? r->o.restore : "auto";
    while (r->wanted <= WAY_EAGER &&
           strcmp(word, revert_way_name(r->wanted)) != 0)
        r->wanted++;
    if (r->wanted > WAY_EAGER) {
        err_set(err, QSTILL_E_USAGE, "unknown restore '%.32s'", word);
        return err_hint(err, "known are auto, inplace, mapped, eager");
    }
    r->vm = arena_strdup(&r->arena, vm);
    r->snap = arena_strdup(&r->arena, snap);
    return r->vm && r->snap ? 0 : err_nomem(err);
}

QSTILL_PUBLIC int qstill_revert(struct qstill_store *store, const char *vm,
                                const char *snap,
                                const struct qstill_revert_options *options,
                                struct qstill_job **out,
                                struct qstill_error *caller_err)
{
    struct qstill_error scratch, *err = err_door(caller_err, &scratch);
    struct revert *r = calloc(1, sizeof(*r));

    if (!r)
        return err_nomem(err);
    r->store = store;
    if (take_options(r, vm, snap, options, err) < 0) {
        revert_free(r);
        return err->code;
    }
    if (job_new(&r->job, &revert_ops, r, err) < 0)
        return err->code;
    *out = r->job;
    return 0;
}

QSTILL_PUBLIC const struct qstill_revert_result *
qstill_revert_result(const struct qstill_job *job)
{
    const struct revert *r = job_ctx(job, &revert_ops);

    return r && r->result.times ? &r->result : NULL;
}
