/* SPDX-License-Identifier: MIT */
/*
 * undo: takes back the last revert or delete whose trash is still there, or (a
 * redo) the last undo of a revert.
 *
 * Of a revert, or of such an undo:
 *   plan      lock, recovery, the files of the trash, how the VM is started
 *   prepare   journal
 *   end       the running QEMU is ended
 *   start     a new one on the old heads, its guest not running yet
 *   commit    journal; vm.json gets the heads, those left become trash; cont
 * Failures: before the commit the VM is started again on the heads it had, and
 * the trash stays. After it the next command finishes.
 *
 * Of a delete: from the journal on it only goes forward: the directories get
 * their names back, the children their parents, the layers their owners.
 */
#include "undo.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/options.h"
#include "delete.h"
#include "headlock.h"
#include "bases.h"
#include "headuse.h"
#include "job.h"
#include "layer_file.h"
#include "layers.h"
#include "livechain.h"
#include "nvdimm.h"
#include "qmp/monitor.h"
#include "ready.h"
#include "revert.h"
#include "revert_impl.h"
#include "start.h"
#include "trash.h"
#include "undo_impl.h"

struct undo {
    struct qstill_store *store;
    struct qstill_job *job;
    struct arena arena;
    struct session s;
    bool session_open;
    const char *vm;
    struct qstill_undo_options o;
    char tag[ID_LEN + 1];
    bool was_on;
    struct journal j;
    bool journaled, committed, started;
    int pid;
};

static const struct vm_trash *newest(const struct session *s, bool redo)
{
    for (size_t i = s->rec.trash_count; i-- > 0;)
        if (s->rec.trash[i].keep > 0 && s->rec.trash[i].redo == redo)
            return &s->rec.trash[i];
    return NULL;
}

/* -------------------------------------------------------------------- plan */

static int find_trash(struct undo *u, const struct vm_trash **out,
                      struct qstill_error *err)
{
    const struct vm_trash *t = newest(&u->s, u->o.redo);

    if (!t && !u->o.redo)
        t = newest(&u->s, true);
    if (!t && u->o.redo) {
        err_set(err, QSTILL_E_NOT_FOUND,
                "VM %s has no undo of a revert to take back", u->vm);
        return err_hint(err, "what it left is kept until the next create, "
                             "revert or delete, or as the revert's "
                             "--keep-trash says");
    }
    if (!t) {
        err_set(err, QSTILL_E_NOT_FOUND,
                "VM %s has no revert or delete to take back", u->vm);
        return err_hint(err, "trash is kept until the next operation, or as "
                             "--keep-trash says");
    }
    for (size_t i = 0; i < t->layer_count; i++)
        if (access(t->layers[i].path, F_OK) < 0)
            return err_errno(err, errno, "disk %s: %s of the trash",
                             t->layers[i].disk, t->layers[i].path);
    *out = t;
    return trash_check(&u->s, t, err);
}

static int plan_heads(struct undo *u, const struct vm_trash *t,
                      struct qstill_error *err)
{
    CLEANUP(layers_fini) struct layers all = {0};
    const char *below;

    if (layers_load(&u->s, &all, err) < 0)
        return err->code;
    /* what the entry does not tell, or is listed no more, the layers do */
    below = t->layer_count
                ? undo_owner_below(&u->s, &all, t->layers[0].path, NULL)
                : NULL;
    if (t->current && tree_find(&u->s.tree, t->current))
        below = t->current;
    u->j.snapshot = arena_strdup(&u->arena, below ? below : "");
    u->j.keep_trash = t->keep; /* as long as what it takes back */
    u->j.disks =
        arena_array(&u->arena, t->layer_count + 1, sizeof(*u->j.disks));
    if (!u->j.disks || !u->j.snapshot)
        return err_nomem(err);
    for (size_t i = 0; i < t->layer_count; i++) {
        const struct vm_hidden *l = &t->layers[i];
        const struct vm_disk *d = vmrecord_disk(&u->s.rec, l->disk);

        if (!d)
            return err_set(err, QSTILL_E_PRECONDITION,
                           "VM %s has no disk %s any more", u->vm, l->disk);
        u->j.disks[i] = (struct journal_disk){
            d->name, d->head_path, d->head_format, l->path, l->format};
        buf_printf(job_text(u->job), "disk %s goes back to %s\n", d->name,
                   l->path);
    }
    u->j.disk_count = t->layer_count;
    return 0;
}

static int plan_snapshots(struct undo *u, const struct vm_trash *t,
                          struct qstill_error *err)
{
    for (size_t i = 0; i < t->id_count; i++) {
        CLEANUP(manifest_fini) struct manifest m = {.arena = ARENA_INIT};
        CLEANUP(closep) int fd = -1;
        const struct manifest *taken;
        char name[TRASH_NAME_LEN];

        trash_name(t->ids[i], name);
        if (store_opendirat(u->s.snapsfd, name, &fd, err) < 0 ||
            manifest_load(fd, &m, err) < 0)
            return err_wrap(err, "snapshot %s", t->ids[i]);
        taken = tree_taken(&u->s.tree, m.name);
        if (taken) {
            err_set(err, QSTILL_E_BUSY, "a snapshot named %s exists again (%s)",
                    m.name, taken->id);
            return err_hint(err, "rename that one first");
        }
        buf_printf(job_text(u->job), "snapshot %s (%s) comes back\n", m.name,
                   m.id);
    }
    u->j.snapshot = arena_strdup(&u->arena, "");
    return u->j.snapshot ? 0 : err_nomem(err);
}

static int fill_start(struct undo *u, struct start_options *o,
                      struct qstill_error *err)
{
    struct start_head *heads =
        arena_array(&u->arena, u->j.disk_count + 1, sizeof(*heads));

    if (!heads)
        return err_nomem(err);
    for (size_t i = 0; i < u->j.disk_count; i++)
        heads[i] =
            (struct start_head){u->j.disks[i].disk, u->j.disks[i].new_path,
                                u->j.disks[i].new_format};
    *o = (struct start_options){.heads = heads,
                                .head_count = u->j.disk_count,
                                .paused = true,
                                .tag = u->tag};
    return 0;
}

static int check_vm(struct undo *u, struct qstill_error *err)
{
    struct start_options o;

    if (session_connect(&u->s, err) < 0)
        return err->code;
    u->was_on = u->s.qmp != NULL;
    if (!u->was_on &&
        (headuse_check_frozen(&u->s, err) < 0 || headlock_take(&u->s, err) < 0))
        return err->code;
    u->j.was_running = u->was_on && u->s.status.running;
    if (!u->was_on || u->j.disk_count == 0)
        return 0;
    if (ready_settled(&u->s, err) < 0 || session_check_heads(&u->s, err) < 0 ||
        session_check_bases(&u->s, err) < 0 || fill_start(u, &o, err) < 0)
        return err->code;
    return start_check(&u->s, &o, err);
}

static int plan_enter(void *ctx, struct qstill_error *err)
{
    struct undo *u = ctx;
    const struct vm_trash *t = NULL;

    if (id_new(u->tag, err) < 0 ||
        session_open_for(&u->s, u->store, u->vm, "undo", u->job, 0, err) < 0)
        return err->code;
    u->session_open = true;
    if (find_trash(u, &t, err) < 0)
        return err->code;
    buf_printf(job_text(u->job), "the last %s is taken back\n", trash_whose(t));
    trash_say_last(&u->s, t, job_text(u->job));
    if ((t->snapshot ? plan_heads(u, t, err) : plan_snapshots(u, t, err)) < 0)
        return err->code;
    u->j.op = JOURNAL_UNDO;
    u->j.phase = t->snapshot ? JOURNAL_BEGUN : JOURNAL_COMMITTED;
    u->j.tag = u->tag;
    u->j.undone = arena_strdup(&u->arena, t->tag);
    u->j.old_current = u->s.rec.current;
    if (!u->j.undone || check_vm(u, err) < 0)
        return u->j.undone ? err->code : err_nomem(err);
    if (t->snapshot) { /* the only way back to these heads is not refused */
        bases_note(&u->s, u->j.snapshot);
        nvdimm_note(&u->s, " is not taken back: it stays as it is");
    }
    return 0;
}

/* ------------------------------------------------------- a revert, phases */

static bool of_heads(const struct undo *u)
{
    return !u->o.dry_run && u->j.disk_count > 0;
}

static int prepare_enter(void *ctx, struct qstill_error *err)
{
    struct undo *u = ctx;

    if (!of_heads(u))
        return 0;
    u->journaled = true;
    if (journal_save(u->s.vmfd, &u->j, err) < 0 || !u->was_on)
        return err->code;
    /* a QEMU that opens them writes to them, whatever becomes of this */
    return trash_forget(&u->s, u->j.undone, err);
}

static void prepare_undo(void *ctx, struct qstill_error *err)
{
    struct qstill_error ignored = {0};
    struct undo *u = ctx;

    if (!u->journaled || u->committed)
        return;
    if (u->started)
        start_kill(&u->s, u->pid);
    u->started = false;
    if (u->j.phase == JOURNAL_COMMITTED) { /* it may have been written */
        u->j.phase = JOURNAL_BEGUN;
        journal_save(u->s.vmfd, &u->j, &ignored);
    }
    revert_roll_back(&u->s, &u->j, job_text(u->job), err);
    u->journaled = false;
}

static int end_enter(void *ctx, struct qstill_error *err)
{
    struct undo *u = ctx;

    if (!of_heads(u) || !u->s.qmp)
        return 0;
    if (qmp_stop(u->s.qmp, 0, err) < 0)
        return err->code;
    return start_quit(&u->s, err);
}

static int start_enter(void *ctx, struct qstill_error *err)
{
    struct undo *u = ctx;
    struct start_options o;

    if (!of_heads(u) || !u->was_on)
        return 0;
    if (fill_start(u, &o, err) < 0)
        return err->code;
    if (start_vm(&u->s, &o, &u->pid, err) < 0)
        return err_hint(err,
                        "the VM is started again on the disks it had; if it "
                        "is off: qstill start %s",
                        u->vm);
    u->started = true;
    return 0;
}

static int commit_enter(void *ctx, struct qstill_error *err)
{
    struct undo *u = ctx;

    if (u->o.dry_run)
        return 0;
    u->j.phase = JOURNAL_COMMITTED;
    if (journal_save(u->s.vmfd, &u->j, err) < 0)
        return err->code;
    u->committed = true;
    u->s.rest_job = u->job;
    return undo_recover(&u->s, &u->j, NULL, err);
}

int undo_recover(struct session *s, struct journal *j, struct buf *text,
                 struct qstill_error *err)
{
    if (j->disk_count > 0)
        return revert_recover(s, j, text, err);
    return undo_delete(s, j, text, err);
}

/* --------------------------------------------------------------------- job */

static void undo_free(void *ctx)
{
    struct undo *u = ctx;

    if (u->session_open)
        session_close(&u->s);
    arena_fini(&u->arena);
    free(u);
}

static const struct job_phase undo_phases[] = {
    {"plan", plan_enter, NULL, NULL},
    {"prepare", prepare_enter, NULL, prepare_undo},
    {"end", end_enter, NULL, NULL},
    {"start", start_enter, NULL, NULL},
    {"commit", commit_enter, NULL, NULL},
    {NULL, NULL, NULL, NULL},
};
static const struct job_ops undo_ops = {undo_phases, undo_free};

QSTILL_PUBLIC int qstill_undo(struct qstill_store *store, const char *vm,
                              const struct qstill_undo_options *options,
                              struct qstill_job **out,
                              struct qstill_error *caller_err)
{
    struct qstill_error scratch, *err = err_door(caller_err, &scratch);
    struct undo *u;

    if (name_check("VM name", vm, err) < 0)
        return err->code;
    u = calloc(1, sizeof(*u));
    if (!u)
        return err_nomem(err);
    u->store = store;
    if (options_take(&u->o, sizeof(u->o), options, "undo", err) < 0) {
        undo_free(u);
        return err->code;
    }
    u->vm = arena_strdup(&u->arena, vm);
    if (!u->vm) {
        undo_free(u);
        return err_nomem(err);
    }
    if (job_new(&u->job, &undo_ops, u, err) < 0)
        return err->code;
    *out = u->job;
    return 0;
}
