/* SPDX-License-Identifier: MIT */
/*
 * create: a snapshot of all disks, with or without memory, at one instant.
 *
 * The happy path:
 *   plan      lock, recovery, names, blockers, mode
 *   prepare   journal, temporary directory, overlays, capture buffers
 *   freeze    the guest's filesystems (--quiesce)
 *   switch    stop, one transaction over all disks, device state, instant,
 *             cont; precopy: QEMU stops the guest by itself
 *   thaw
 *   copy      the rest of the memory, while the guest runs
 *   publish   manifest, one rename, vm.json, journal away
 * Failures: whatever fails before the rename is undone by unwind_create(), by
 * us or by the next command; the VM runs on and no snapshot is listed. After
 * the rename the snapshot exists, and what is left is finished by recovery.
 */
#include "create_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/options.h"
#include "base/publish.h"
#include "head_zeroes.h"
#include "job.h"
#include "labels.h"
#include "livechain.h"
#include "protect.h"
#include "qmp/graph.h"
#include "ready.h"
#include "trash.h"
#include "unwind.h"

/* ------------------------------------------------------------ freeze, thaw */

/* In the journal for as long as it is ours: a recovery thaws the guest then,
 * whoever has frozen it. */
static int set_freezing(struct create *c, bool on, struct qstill_error *err)
{
    c->j.freezing = on;
    return journal_save(c->s.vmfd, &c->j, err);
}

static int freeze(struct create *c, struct qstill_error *err)
{
    struct qstill_error second = {0};

    if (quiesce_check(&c->s, err) < 0 || set_freezing(c, true, err) < 0)
        return err->code;
    if (quiesce_freeze(&c->s, c->o.freeze_timeout_ms, &c->quiesce, err) < 0 &&
        !c->quiesce.sent)
        set_freezing(c, false, &second);
    return err->code;
}

static int freeze_enter(void *ctx, struct qstill_error *err)
{
    struct create *c = ctx;

    if (c->o.dry_run || !c->o.quiesce)
        return 0;
    /* QEMU stops the guest by itself, and a stopped one cannot freeze */
    if (c->o.memory && c->mode == MODE_PRECOPY)
        store_note(c->store, "mode precopy: the guest is frozen for as long as "
                             "its memory is copied");
    if (freeze(c, err) < 0)
        return err->code;
    if (c->quiesce.filesystems > 0 &&
        c->quiesce.filesystems < c->quiesce.mounted)
        store_note(c->store, "the guest agent froze %u of %u filesystems",
                   c->quiesce.filesystems, c->quiesce.mounted);
    if (c->quiesce.filesystems == 0)
        store_note(c->store,
                   "the guest agent froze no filesystem: none is mounted, or "
                   "none that it can freeze");
    return 0;
}

static int thaw_enter(void *ctx, struct qstill_error *err)
{
    struct create *c = ctx;

    if (!c->quiesce.frozen)
        return 0;
    if (quiesce_thaw(&c->s, &c->quiesce, err) < 0)
        return err->code;
    if (c->quiesce.early)
        store_note(c->store,
                   "the guest was thawed by somebody else, before the "
                   "snapshot perhaps: it is not quiesced");
    return set_freezing(c, false, err);
}

/* ------------------------------------------------------------------ switch */

/* A job in the way is QEMU's to see: it may be on a disk that is none of ours.
 */
static int not_switched(struct create *c, struct qstill_error *err)
{
    struct qstill_error why = {0};

    err_wrap(err, "switching the disks");
    if (err->code == QSTILL_E_FAILED &&
        ready_jobs(&c->s, &why) == QSTILL_E_BUSY) {
        err->code = why.code;
        err_hint(err, "%s", why.hint);
    }
    return err->code;
}

static int switch_disks(struct create *c, struct qstill_error *err)
{
    size_t n = c->s.rec.disk_count;
    struct qmp_overlay *o;

    c->switched = true;
    if (n == 0)
        return 0;
    o = arena_array(&c->arena, n, sizeof(*o));
    if (!o)
        return err_nomem(err);
    for (size_t i = 0; i < n; i++) {
        const struct vm_disk *d = &c->s.rec.disks[i];
        const struct qmp_disk *q = session_live_disk(&c->s, d);

        if (!q)
            return err_set(err, QSTILL_E_PRECONDITION, "disk %s is gone",
                           d->name);
        o[i].node = q->node;
        o[i].path = c->j.disks[i].new_path;
        o[i].new_node = arena_printf(&c->arena, "qs%zu-%s", i, c->id);
        if (!o[i].new_node)
            return err_nomem(err);
    }
    if (qmp_snapshot_disks(c->s.qmp, o, n, err) < 0)
        return not_switched(c, err);
    return 0;
}

/* Whoever stops it from now on is somebody else. Without room for the journal
 * a recovery resumes it all the same. */
static void note_resumed(struct create *c)
{
    struct qstill_error ignored = {0};

    if (!c->was_running)
        return;
    c->j.resumed = true;
    journal_save(c->s.vmfd, &c->j, &ignored);
}

static int check_pause(struct create *c, double so_far,
                       struct qstill_error *err)
{
    if (!c->o.max_pause_ms || !c->was_running || so_far <= c->o.max_pause_ms)
        return 0;
    err_set(err, QSTILL_E_PRECONDITION,
            "the pause would have been over %u ms (mode %s, %.0f ms)",
            c->o.max_pause_ms, mode_name(c->mode), so_far);
    return err_hint(err, "allow a longer --max-pause-ms, or another --mode");
}

static int start_precopy(struct create *c, struct qstill_error *err)
{
    if (qmp_status_read(c->s.qmp, &c->s.status, err) < 0 ||
        (!c->s.status.running && create_stopped_by_others(c, err) < 0))
        return err->code;
    return memcap_precopy_start(&c->mem, err);
}

static int switch_enter(void *ctx, struct qstill_error *err)
{
    struct create *c = ctx;

    if (c->o.dry_run || !c->s.qmp)
        return 0;
    if (!c->o.memory)
        return switch_disks(c, err);
    if (create_manifest_look(c, err) < 0)
        return err->code;
    if (c->mode == MODE_PRECOPY)
        return start_precopy(c, err);
    if (create_stop_guest(c, err) < 0 || switch_disks(c, err) < 0 ||
        create_manifest_media(c, err) < 0 || create_check_stopped(c, err) < 0)
        return err->code;
    return memcap_instant(&c->mem, err);
}

/* precopy, until QEMU has stopped the guest; then the instant. */
static int switch_precopy(struct create *c, struct qstill_error *err)
{
    bool by_others = false;

    if (memcap_precopy_stopped(&c->mem, c->o.max_pause_ms, &c->stop_ms,
                               &by_others, err) < 0)
        return err->code;
    if (by_others && create_stopped_by_others(c, err) < 0)
        return err->code;
    if (c->stop_ms == 0)
        return 0;
    c->stopped = true;
    if (create_check_stopped_by_qemu(c, err) < 0 || switch_disks(c, err) < 0 ||
        create_manifest_media(c, err) < 0)
        return err->code;
    return memcap_instant(&c->mem, err);
}

static int switch_step(void *ctx, bool *done, struct qstill_error *err)
{
    struct create *c = ctx;
    uint64_t so_far, total;
    bool taken = false;

    *done = !c->o.memory || c->o.dry_run;
    if (*done)
        return 0;
    memcap_progress(&c->mem, &so_far, &total);
    job_measure(c->job, so_far, total);
    if (c->mode == MODE_PRECOPY && !c->switched)
        return switch_precopy(c, err);
    if (memcap_instant_taken(&c->mem, &taken, err) < 0 ||
        (c->mode == MODE_BACKGROUND ? create_check_not_stopped_again(c, err)
                                    : create_check_stopped(c, err)) < 0 ||
        check_pause(c, clock_ms() - c->stop_ms, err) < 0)
        return err->code;
    if (!taken) {
        /* A stream may go on while QEMU alone knows that it failed. */
        clock_sleep_ms(1);
        return 0;
    }
    if (create_resume_guest(c, err) < 0)
        return err->code;
    memcap_resumed(&c->mem);
    note_resumed(c);
    *done = true;
    return check_pause(c, c->pause_ms, err);
}

/* Before anything is taken back: to end a capture is to wait for its writes to
 * a disk. A migration has to end first. */
static void resume_at_once(struct create *c)
{
    struct qstill_error ignored = {0};

    if (!c->stopped || c->mem.migrating || c->mode == MODE_PRECOPY)
        return;
    if (livechain_resume(&c->s, journal_stopped_it(&c->j), &ignored) == 0)
        note_resumed(c);
}

static void switch_undo(void *ctx, struct qstill_error *err)
{
    struct qstill_error unthawed = {0};
    struct create *c = ctx;

    if (c->s.qmp && c->journaled)
        resume_at_once(c);
    memcap_abort(&c->mem);
    if (!c->s.qmp || !c->journaled)
        return;
    if (unwind_resume(&c->s, &c->j, &unthawed, err) == 0)
        *err = unthawed;
    else if (err->code == QSTILL_E_UNREACHABLE)
        unwind_await(&c->s, &c->j, err);
}

/* -------------------------------------------------------------------- copy */

static int copy_step(void *ctx, bool *done, struct qstill_error *err)
{
    struct create *c = ctx;
    uint64_t so_far = 0, total = 0;

    *done = true;
    if (c->o.dry_run || !c->o.memory || create_manifest_ask(c, err) < 0)
        return err->code;
    if (memcap_step(&c->mem, done, &so_far, &total, err) < 0)
        return err->code;
    job_measure(c->job, so_far, total);
    if (*done)
        return create_manifest_look_back(c, err);
    clock_sleep_ms(2);
    return 0;
}

/* ----------------------------------------------------------------- publish */

static int publish_snapshot(struct create *c, const struct manifest *m,
                            struct qstill_error *err)
{
    CLEANUP(closep) int tmpfd = -1;
    char tmp[UNWIND_TMP_LEN];

    unwind_tmp_name(c->id, tmp);
    if (store_opendirat(c->s.snapsfd, tmp, &tmpfd, err) < 0 ||
        manifest_save(tmpfd, m, -1, err) < 0 ||
        publish_sync_dir(tmpfd, err) < 0)
        return err->code;
    /* This one rename is the snapshot. */
    if (renameat2(c->s.snapsfd, tmp, c->s.snapsfd, c->id, RENAME_NOREPLACE) < 0)
        return err_errno(err, errno, "cannot publish the snapshot");
    c->published = true;
    return publish_sync_dir(c->s.snapsfd, err);
}

static int publish_enter(void *ctx, struct qstill_error *err)
{
    struct create *c = ctx;

    if (c->o.dry_run)
        return 0;
    if (create_manifest(c, err) < 0 ||
        publish_snapshot(c, &c->manifest, err) < 0)
        return err->code;
    memcap_restore_settings(&c->mem);
    for (size_t i = 0; i < c->j.disk_count; i++)
        if (vmrecord_set_head(&c->s.rec, c->j.disks[i].disk,
                              c->j.disks[i].new_path, OVERLAY_FORMAT, err) < 0)
            return err->code;
    if (trash_age(&c->s, c->id, err) < 0 ||
        vmrecord_set_current(&c->s.rec, c->id, err) < 0 ||
        vmrecord_save(c->s.vmfd, &c->s.rec, err) < 0)
        return err_hint(err, "the snapshot exists; the next command finishes "
                             "the work");
    unlinkat(c->s.vmfd, UNWIND_RESERVE_NAME, 0);
    for (size_t i = 0; !c->o.no_protect && i < c->j.disk_count; i++)
        protect_set(c->j.disks[i].old_path);
    c->s.rest_job = c->job;
    head_zeroes_keep(&c->s);
    if (trash_end(&c->s, job_text(c->job), err) < 0)
        return err_hint(err,
                        "the snapshot exists; qstill recover %s takes "
                        "the trash away",
                        c->vm);
    return 0;
}

/* --------------------------------------------------------------------- job */

static void create_free(void *ctx)
{
    struct create *c = ctx;

    memcap_fini(&c->mem);
    manifest_fini(&c->manifest);
    qmp_ram_fini(&c->ram);
    qmp_memdevs_fini(&c->memdevs);
    qmp_names_fini(&c->devices);
    if (c->session_open)
        session_close(&c->s);
    arena_fini(&c->arena);
    free(c);
}

static const struct job_phase create_phases[] = {
    {"plan", create_plan_enter, NULL, NULL},
    {"prepare", create_prepare_enter, create_prepare_step, create_prepare_undo},
    {"freeze", freeze_enter, NULL, NULL},
    {"switch", switch_enter, switch_step, switch_undo},
    {"thaw", thaw_enter, NULL, NULL},
    {"memory", NULL, copy_step, NULL},
    {"publish", publish_enter, NULL, NULL},
    {NULL, NULL, NULL, NULL},
};

static const struct job_ops create_ops = {create_phases, create_free};

static int copy_labels(struct create *c, const struct qstill_create_options *o,
                       struct qstill_error *err)
{
    c->labels = arena_array(&c->arena, o->label_count + 1, sizeof(char *));
    if (!c->labels)
        return err_nomem(err);
    if (o->label_count > MANIFEST_LABELS_MAX)
        return err_set(err, QSTILL_E_USAGE, "over %d labels",
                       MANIFEST_LABELS_MAX);
    if (labels_check(o->labels, o->label_count, err) < 0)
        return err->code;
    for (size_t i = 0; i < o->label_count; i++) {
        c->labels[i] = arena_strdup(&c->arena, o->labels[i]);
        if (!c->labels[i])
            return err_nomem(err);
    }
    c->label_count = o->label_count;
    return 0;
}

/* Before anything begins: what cannot be opened could not be undone either. */
static int take_disk_dir(struct create *c, struct qstill_error *err)
{
    CLEANUP(freep) char *dir = NULL;
    CLEANUP(closep) int fd = -1;

    if (!c->o.disk_dir)
        return 0;
    fd = open(c->o.disk_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    dir = fd >= 0 ? realpath(c->o.disk_dir, NULL) : NULL;
    if (!dir && (errno == ENOENT || errno == ENOTDIR))
        return err_set(err, QSTILL_E_PRECONDITION,
                       "there is no directory '%s' for the new disk files",
                       c->o.disk_dir);
    if (!dir)
        return err_errno(err, errno, "cannot use directory '%s'",
                         c->o.disk_dir);
    c->disk_dir = arena_strdup(&c->arena, dir);
    return c->disk_dir ? 0 : err_nomem(err);
}

static int take_options(struct create *c, const char *vm, const char *name,
                        const struct qstill_create_options *o,
                        struct qstill_error *err)
{
    if (name_check("VM name", vm, err) < 0 ||
        name_check("snapshot name", name, err) < 0)
        return err->code;
    if (options_take(&c->o, sizeof(c->o), o, "create", err) < 0)
        return err->code;
    if (mode_parse(c->o.mode, &c->wanted, err) < 0)
        return err->code;
    if (!c->o.memory && c->wanted != MODE_COUNT)
        return err_set(err, QSTILL_E_USAGE, "a mode is for --memory only");
    if (copy_labels(c, &c->o, err) < 0 || take_disk_dir(c, err) < 0)
        return err->code;
    c->vm = arena_strdup(&c->arena, vm);
    c->name = arena_strdup(&c->arena, name);
    c->description =
        arena_strdup(&c->arena, c->o.description ? c->o.description : "");
    if (!c->vm || !c->name || !c->description)
        return err_nomem(err);
    return 0;
}

QSTILL_PUBLIC int qstill_create(struct qstill_store *store, const char *vm,
                                const char *name,
                                const struct qstill_create_options *options,
                                struct qstill_job **out,
                                struct qstill_error *caller_err)
{
    struct qstill_error scratch, *err = err_door(caller_err, &scratch);
    struct create *c = calloc(1, sizeof(*c));

    if (!c)
        return err_nomem(err);
    c->store = store;
    if (take_options(c, vm, name, options, err) < 0) {
        create_free(c);
        return err->code;
    }
    if (job_new(&c->job, &create_ops, c, err) < 0)
        return err->code;
    *out = c->job;
    return 0;
}

QSTILL_PUBLIC const char *qstill_create_id(const struct qstill_job *job)
{
    const struct create *c = job_ctx(job, &create_ops);

    return c && c->published ? c->id : NULL;
}
