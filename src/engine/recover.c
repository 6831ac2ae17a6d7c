/* SPDX-License-Identifier: MIT */
/*
 * create    published: heads and current in vm.json are set; else all of it is
 *           undone (unwind.h)
 * revert    committed: the old heads become hidden layers and go; else the new
 *           heads go and the old ones stay
 * delete    always goes on: the snapshot was gone with its directory's name
 * undo      of a revert: as a revert, but the heads it goes to stay in the
 *           trash when it does not come to its end; of a delete: goes on
 *
 * In front of all: a pivot (the head folded into a layer) is settled by asking
 * QEMU which file it has open; with QEMU gone it is the layer.
 */
#include "recover.h"

#include <stdio.h>
#include <string.h>

#include "base/publish.h"
#include "delete.h"
#include "head_zeroes.h"
#include "headlock.h"
#include "inplace.h"
#include "job.h"
#include "formats_mend.h"
#include "journal.h"
#include "layer_file.h"
#include "layers.h"
#include "lent.h"
#include "livechain.h"
#include "lock.h"
#include "name.h"
#include "protect.h"
#include "recover_plan.h"
#include "revert.h"
#include "session.h"
#include "settings.h"
#include "stream_fifo.h"
#include "thaw.h"
#include "trash.h"
#include "undo.h"
#include "unwind.h"

static void say(struct buf *text, const char *what, const char *which)
{
    if (text)
        buf_printf(text, "%s %s\n", what, which);
}

/* QEMU is gone. What it had folded is the head, whether or not it came to the
 * change; our own merge has removed the old head, or has not come so far. */
static int settle_off(struct session *s, struct vm_disk *d, struct journal *j,
                      struct qstill_error *err)
{
    if (layers_settle_merge(s, err) < 0)
        return err->code;
    if (j->pivot_from && j->pivot_to_format &&
        (j->pivot_live || access(j->pivot_from, F_OK) < 0) &&
        access(j->pivot_to, F_OK) == 0 &&
        (vmrecord_hide(&s->rec, d->name, j->pivot_from, "qcow2", err) < 0 ||
         livechain_set_head(s, d, j->pivot_to, j->pivot_to_format, err) < 0 ||
         vmrecord_save(s->vmfd, &s->rec, err) < 0))
        return err->code;
    journal_forget_pivot(j);
    return 0;
}

static int settle_pivot(struct session *s, struct journal *j,
                        struct qstill_error *err)
{
    struct vm_disk *d =
        j->pivot_disk ? vmrecord_disk(&s->rec, j->pivot_disk) : NULL;
    const char *live;

    if (!s->qmp)
        return d && j->pivot_to ? settle_off(s, d, j, err) : 0;
    if (livechain_settle(s, err) < 0 || session_refresh(s, err) < 0)
        return err->code;
    if (d && j->pivot_to && j->pivot_to_format) {
        live = session_live_path(s, d);
        if (live && session_same_file(live, j->pivot_to) &&
            (livechain_set_head(s, d, j->pivot_to, j->pivot_to_format, err) <
                 0 ||
             vmrecord_save(s->vmfd, &s->rec, err) < 0))
            return err->code;
    }
    journal_forget_pivot(j);
    return 0;
}

static int finish_create(struct session *s, struct journal *j, struct buf *text,
                         struct qstill_error *err)
{
    struct qstill_error unthawed = {0};

    for (size_t i = 0; i < j->disk_count; i++)
        if (vmrecord_set_head(&s->rec, j->disks[i].disk, j->disks[i].new_path,
                              j->disks[i].new_format, err) < 0)
            return err->code;
    if (trash_age(s, j->snapshot, err) < 0 ||
        vmrecord_set_current(&s->rec, j->snapshot, err) < 0 ||
        vmrecord_save(s->vmfd, &s->rec, err) < 0 ||
        unwind_resume(s, j, &unthawed, err) < 0)
        return err->code;
    unlinkat(s->vmfd, UNWIND_RESERVE_NAME, 0);
    protect_all(s);
    head_zeroes_keep(s);
    if (trash_end(s, text, err) == 0)
        *err = unthawed;
    return err->code;
}

static int recover_create(struct session *s, struct journal *j,
                          struct buf *text, struct qstill_error *err)
{
    if (tree_find(&s->tree, j->snapshot)) {
        say(text, "finished the creation of snapshot", j->snapshot);
        return finish_create(s, j, text, err);
    }
    say(text, "undid the creation of snapshot", j->snapshot);
    return unwind_create(s, j, text, err);
}

/* A guest that was stopped for a pivot runs again at once. */
static int recover_delete(struct session *s, struct journal *j,
                          struct buf *text, struct qstill_error *err)
{
    if (session_vm_is_paused(s) &&
        livechain_resume(s, journal_stopped_it(j), err) < 0)
        return err->code;
    return delete_finish(s, j, text, err);
}

static int recover_op(struct session *s, struct journal *j, struct buf *text,
                      struct qstill_error *err)
{
    if (session_connect(s, err) < 0 || headlock_moved(s, err) < 0 ||
        settle_pivot(s, j, err) < 0)
        return unwind_thaw(s, j, text, err);
    switch (j->op) {
    case JOURNAL_CREATE:
        return recover_create(s, j, text, err);
    case JOURNAL_REVERT:
        return revert_recover(s, j, text, err);
    case JOURNAL_DELETE:
        return recover_delete(s, j, text, err);
    case JOURNAL_UNDO:
        return undo_recover(s, j, text, err);
    }
    return 0;
}

/* QEMU may not answer before somebody reads what it has to write. */
static int recover_loaded(struct session *s, struct journal *j,
                          struct buf *text, struct qstill_error *err)
{
    struct stream_drain drain;

    if (stream_drain_start(&drain, s->vmfd, err) < 0)
        return err->code;
    recover_op(s, j, text, err);
    stream_drain_stop(&drain, err->code == 0);
    return err->code;
}

/* A process that died while it looked what QEMU can do. No verb waits for a
 * QEMU that does not answer because of that. */
static void mend_settings(struct session *s)
{
    struct qstill_error ignored = {0};

    if (!settings_are_kept(s->vmfd))
        return;
    session_connect(s, &ignored);
    session_disconnect(s);
}

int recover_session(struct session *s, struct buf *text,
                    struct qstill_error *err)
{
    struct journal j;

    if (!journal_exists(s->vmfd)) {
        mend_settings(s);
        thaw_retry(s);
        return 0;
    }
    if (journal_load(s->vmfd, &j, err) < 0)
        return err->code;
    if (!*j.snapshot || name_check("snapshot id", j.snapshot, err) == 0)
        recover_loaded(s, &j, text, err);
    journal_fini(&j);
    /* a thaw alone hinders nobody */
    if (err->code < 0 && s->rec.thaw.owed && !journal_exists(s->vmfd)) {
        store_note(s->store, "VM %s: %s", s->vm, err->message);
        err_clear(err);
    }
    if (err->code < 0) {
        err_wrap(err, "an earlier operation was interrupted and cannot be "
                      "finished yet");
        if (!err->hint[0])
            err_hint(err, "mend that, then run qstill recover %s", s->vm);
        return err->code;
    }
    store_note(s->store, "VM %s: an interrupted operation was recovered",
               s->vm);
    lent_take_back(s);
    /* What the verb goes on with is what it finds now. */
    session_disconnect(s);
    return session_reload(s, err);
}

/* A journal, or what a process left that was killed just before it wrote one,
 * or just after it removed it. */
static bool has_leftovers(int vmfd)
{
    struct qstill_error ignored = {0};
    char **names = NULL;
    size_t count = 0;
    bool any = journal_exists(vmfd);

    if (any || store_names(vmfd, &names, &count, &ignored) < 0)
        return any;
    for (size_t i = 0; i < count; i++)
        any = any || publish_is_aside(names[i]) ||
              strcmp(names[i], UNWIND_RESERVE_NAME) == 0 ||
              strcmp(names[i], SETTINGS_FILE) == 0 ||
              strcmp(names[i], INPLACE_PAGES) == 0 ||
              strcmp(names[i], INPLACE_STATE) == 0 ||
              strcmp(names[i], INPLACE_LOADING) == 0;
    store_names_free(names, count);
    return any;
}

static bool owes_thaw(int vmfd)
{
    struct vm_record rec = {.arena = ARENA_INIT};
    struct qstill_error ignored = {0};
    bool owed = vmrecord_load(vmfd, &rec, &ignored) == 0 && rec.thaw.owed;

    vmrecord_fini(&rec);
    return owed;
}

void recover_if_abandoned(struct qstill_store *store, const char *vm, int vmfd)
{
    struct qstill_error why = {0};
    struct lock_info holder;
    struct session s;

    if ((!has_leftovers(vmfd) && !owes_thaw(vmfd)) ||
        lock_holder(vmfd, &holder, &why) < 0 || holder.held)
        return;
    if (session_open(&s, store, vm, "recover", &why) < 0)
        store_note(store, "%s", why.message);
    else
        session_close(&s);
}

/* ------------------------------------------------------------ the public job
 */

struct recover_job {
    struct qstill_store *store;
    struct qstill_job *job;
    char **vms;
    size_t count, next;
    bool dry_run;
    struct qstill_error first; /* of several VMs: the others are looked at */
};

/* Snapshots whose parent is not there are roots from now on. */
static int settle_roots(struct session *s, bool dry_run, struct buf *text,
                        struct qstill_error *err)
{
    for (size_t i = 0; i < s->tree.count; i++) {
        const struct manifest *m = &s->tree.nodes[i];
        CLEANUP(closep) int fd = -1;

        if (!m->lost_parent)
            continue;
        buf_printf(text, "VM %s: snapshot %s, whose parent is gone, %s\n",
                   s->vm, m->name,
                   dry_run ? "will be a root" : "is a root now");
        if (!dry_run && (store_opendirat(s->snapsfd, m->id, &fd, err) < 0 ||
                         manifest_save(fd, m, s->vmfd, err) < 0))
            return err->code;
    }
    return 0;
}

/* No verb but this one connects for it alone. */
static void look_at_qemu(struct session *s, bool dry_run)
{
    struct qstill_error ignored = {0};

    if (!dry_run && session_try(s, &ignored) == 0)
        session_disconnect(s);
}

/* Layers that could not be merged when their snapshot went. */
static int merge_hidden(struct recover_job *r, const char *vm,
                        struct qstill_error *err)
{
    struct journal j = {
        .op = JOURNAL_DELETE, .phase = JOURNAL_COMMITTED, .snapshot = "none"};
    struct buf *text = job_text(r->job);
    struct session s;
    int rc = 0;

    if (session_open_for(&s, r->store, vm, r->dry_run ? NULL : "recover",
                         r->job, 0, err) < 0)
        return err->code;
    s.job = r->job;
    look_at_qemu(&s, r->dry_run);
    rc = formats_mend(&s, r->dry_run, text, err);
    for (size_t i = 0; i < s.rec.hidden_count && rc == 0; i++)
        rc = layer_check_hidden(&s, &s.rec.hidden[i], err);
    if (rc < 0 || settle_roots(&s, r->dry_run, text, err) < 0)
        rc = err->code;
    else if (s.rec.hidden_count == 0)
        buf_printf(text, "VM %s: nothing to recover\n", vm);
    else if (r->dry_run)
        buf_printf(text, "VM %s: %zu hidden layer(s) to be merged\n", vm,
                   s.rec.hidden_count);
    else
        rc = journal_save(s.vmfd, &j, err) < 0
                 ? err->code
                 : delete_finish(&s, &j, text, err);
    if (rc == 0)
        rc = thaw_check(&s, err);
    session_close(&s);
    return rc;
}

static int recover_vm(struct recover_job *r, const char *vm,
                      struct qstill_error *err)
{
    CLEANUP(journal_fini) struct journal j = {.arena = ARENA_INIT};
    struct buf *text = job_text(r->job);
    CLEANUP(closep) int vmfd = -1;
    struct session s;

    if (store_open_vm(r->store, vm, &vmfd, err) < 0)
        return err->code;
    if (!journal_exists(vmfd))
        return merge_hidden(r, vm, err);
    if (journal_load(vmfd, &j, err) < 0)
        return err->code;
    buf_printf(text, "VM %s: an interrupted %s\n", vm, journal_op_name(j.op));
    recover_plan(vmfd, &j, text);
    if (r->dry_run)
        return 0;
    if (session_open_for(&s, r->store, vm, "recover", r->job, 0, err) < 0)
        return err->code;
    buf_printf(text, "VM %s: recovered\n", vm);
    thaw_check(&s, err);
    session_close(&s);
    return err->code;
}

static int recover_step(void *ctx, bool *done, struct qstill_error *err)
{
    struct recover_job *r = ctx;
    const char *vm = r->next < r->count ? r->vms[r->next++] : NULL;

    if (vm && recover_vm(r, vm, err) < 0) {
        if (r->count == 1 || err->code == QSTILL_E_CANCELLED)
            return err->code;
        buf_printf(job_text(r->job), "VM %s: %s\n", vm, err->message);
        if (r->first.code == 0)
            r->first = *err;
        err_clear(err);
    }
    *done = r->next >= r->count;
    if (*done && r->first.code < 0)
        *err = r->first;
    return err->code;
}

static void recover_free(void *ctx)
{
    struct recover_job *r = ctx;

    store_names_free(r->vms, r->count);
    free(r);
}

static const struct job_phase recover_phases[] = {
    {"recover", NULL, recover_step, NULL},
    {NULL, NULL, NULL, NULL},
};
static const struct job_ops recover_ops = {recover_phases, recover_free};

static int list_vms(struct recover_job *r, const char *vm,
                    struct qstill_error *err)
{
    struct qstill_vm_list *list = NULL;

    if (!vm && qstill_vm_list(r->store, &list, err) < 0)
        return err->code;
    r->vms = calloc((list ? list->count : 1) + 1, sizeof(char *));
    if (!r->vms)
        err_nomem(err);
    for (size_t i = 0; err->code == 0 && i < (list ? list->count : 1); i++) {
        r->vms[i] = strdup(list ? list->vms[i].name : vm);
        if (r->vms[i])
            r->count++;
        else
            err_nomem(err);
    }
    qstill_vm_list_free(list);
    return err->code;
}

QSTILL_PUBLIC int qstill_recover(struct qstill_store *store, const char *vm,
                                 bool dry_run, struct qstill_job **out,
                                 struct qstill_error *caller_err)
{
    struct qstill_error scratch, *err = err_door(caller_err, &scratch);
    struct recover_job *r;

    if (vm && name_check("VM name", vm, err) < 0)
        return err->code;
    r = calloc(1, sizeof(*r));
    if (!r)
        return err_nomem(err);
    r->store = store;
    r->dry_run = dry_run;
    if (list_vms(r, vm, err) < 0) {
        recover_free(r);
        return err->code;
    }
    if (job_new(&r->job, &recover_ops, r, err) < 0)
        return err->code;
    *out = r->job;
    return 0;
}
