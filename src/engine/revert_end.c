/* SPDX-License-Identifier: MIT */
/* How a revert ends: rolled forward or back, by itself or by recovery. */
#include "revert.h"

#include <string.h>

#include "base/clock.h"
#include "delete.h"
#include "heads.h"
#include "layer_file.h"
#include "layers.h"
#include "livechain.h"
#include "nvdimm.h"
#include "qmp/monitor.h"
#include "revert_impl.h"
#include "start.h"
#include "thaw.h"
#include "trash.h"

#define RESET_WAIT_MS 5000
#define END_WAIT_MS   10000

/* ------------------------------------------------------ the running process */

/* Is the QEMU behind the socket still the one that was worked on? */
static bool same_process(const struct session *s, const struct journal *j)
{
    return s->qmp && (uint64_t)s->pid == j->pid &&
           start_time_of(s->pid) == j->pid_start;
}

static bool runs_on_new(struct session *s, const struct journal *j)
{
    for (size_t i = 0; i < j->disk_count; i++) {
        const struct vm_disk *d = vmrecord_disk(&s->rec, j->disks[i].disk);
        const char *live = d ? session_live_path(s, d) : NULL;

        if (live && session_same_file(live, j->disks[i].new_path))
            return true;
    }
    return false;
}

/* Somebody let the guest run on while nobody was looking: on its old heads
 * nothing had been overwritten yet. */
static int undo_memory(struct session *s, const struct journal *j, bool on_new,
                       struct buf *text, struct qstill_error *err)
{
    struct qstill_error why = {0};
    uint64_t pages = 0;

    if (s->status.running && !on_new)
        return 0;
    if (qmp_stop(s->qmp, 0, err) < 0)
        return err->code;
    if (media_put(s, &j->media, &why) < 0)
        buf_printf(text, "VM %s: %s\n", s->vm, why.message);
    if (inplace_undo(s, &pages, err) < 0)
        return err->code;
    buf_printf(text, "VM %s has its memory of before (%llu pages put back)\n",
               s->vm, (unsigned long long)pages);
    return 0;
}

int revert_leave_process(struct session *s, struct journal *j, struct buf *text,
                         struct qstill_error *err)
{
    char tag[ID_LEN + 1];
    bool on_new;

    if (id_new(tag, err) < 0 || inplace_settle(s, err) < 0 ||
        session_refresh(s, err) < 0)
        return err->code;
    on_new = runs_on_new(s, j);
    if (on_new && (qmp_stop(s->qmp, 0, err) < 0 ||
                   heads_put(s, j, HEADS_OLD, tag, err) < 0))
        return err->code;
    if (heads_verify(s, j, HEADS_OLD, err) < 0)
        return err->code;
    if (inplace_has_kept(s) && undo_memory(s, j, on_new, text, err) < 0)
        return err->code;
    inplace_forget(s);
    j->load_count = 0;
    return heads_sweep(s, j, err);
}

void revert_forget_process(struct session *s, struct journal *j)
{
    struct qstill_error why = {0};
    uint64_t pages = 0;

    if (!inplace_has_kept(s))
        j->load_count = 0; /* nothing was overwritten */
    if (nvdimm_put_back(s, j, &pages, &why) < 0)
        store_note(s->store, "VM %s: %s", s->vm, why.message);
    else if (pages > 0)
        store_note(s->store,
                   "VM %s: %llu pages of an nvdimm are what they were", s->vm,
                   (unsigned long long)pages);
    inplace_forget(s);
}

/* Its memory is neither of before nor the snapshot's: the guest boots from its
 * old disks, as after a power cut. */
static int reboot_old(struct session *s, struct journal *j, struct buf *text,
                      struct qstill_error *err)
{
    char tag[ID_LEN + 1];

    if (id_new(tag, err) < 0 || qmp_stop(s->qmp, 0, err) < 0 ||
        heads_put(s, j, HEADS_OLD, tag, err) < 0 ||
        qmp_system_reset(s->qmp, err) < 0)
        return err->code;
    buf_printf(text, "VM %s boots from its old disks: its memory is lost\n",
               s->vm);
    revert_forget_process(s, j);
    return heads_sweep(s, j, err);
}

/* A QEMU that is being killed closes its sockets before it is gone. */
static bool has_ended(const struct session *s, const struct qstill_error *why)
{
    return start_has_ended(s->pid,
                           why->code == QSTILL_E_UNREACHABLE ? END_WAIT_MS : 0);
}

/* The process lives, but not its socket: what its disks are on cannot be asked,
 * and the files that it may have open are not to go. */
static int check_gone(const struct journal *j, struct qstill_error *err)
{
    int pid = (int)j->pid;

    if (start_time_of(pid) == 0 || start_time_of(pid) != j->pid_start ||
        start_has_ended(pid, END_WAIT_MS))
        return 0;
    err_set(err, QSTILL_E_UNREACHABLE,
            "QEMU still runs (process %d), but nobody answers at its QMP "
            "socket",
            pid);
    return err_hint(err, "end that process, or give it its socket again");
}

/* Another process than the journal's, or one whose id cannot be told. Nobody
 * but the revert knows of the new heads, so it is not to stay on them. */
static int leave_other(struct session *s, struct journal *j, struct buf *text,
                       struct qstill_error *err)
{
    if (!s->qmp && check_gone(j, err) < 0)
        return err->code;
    if (s->qmp && runs_on_new(s, j))
        return reboot_old(s, j, text, err);
    if (s->qmp) /* its guest runs on what is there */
        inplace_forget(s);
    else
        revert_forget_process(s, j);
    return 0;
}

/* One whose devices are not what they were is of no use to anybody, if another
 * can be started. What does not answer may only be slow. */
static bool end_useless(struct session *s, int failed, struct buf *text)
{
    struct start_options again = {0};
    struct qstill_error why = {0};
    int pid = s->pid;

    if (failed == QSTILL_E_UNREACHABLE || !s->store->launch ||
        start_check(s, &again, &why) < 0)
        return false;
    buf_printf(text, "VM %s: QEMU (process %d) is ended: its memory is lost\n",
               s->vm, pid);
    start_kill(s, pid);
    return start_has_ended(pid, END_WAIT_MS);
}

/* Leaves a process that runs on its old heads, or none. */
static int undo_in_process(struct session *s, struct journal *j,
                           struct buf *text, struct qstill_error *err)
{
    struct qstill_error why = {0};

    if (s->qmp && has_ended(s, &why))
        session_disconnect(s);
    if (!same_process(s, j))
        return leave_other(s, j, text, err);
    if (revert_leave_process(s, j, text, &why) == 0)
        return 0;
    buf_printf(text, "VM %s: %s\n", s->vm, why.message);
    if (!has_ended(s, &why) && reboot_old(s, j, text, &why) == 0)
        return 0;
    if (!has_ended(s, &why) && !end_useless(s, why.code, text)) {
        *err = why;
        return err->code;
    }
    session_disconnect(s);
    revert_forget_process(s, j);
    return 0;
}

int revert_run(struct session *s, const struct journal *j,
               struct qstill_error *err)
{
    static const char *const reset[] = {"RESET", NULL};
    struct qmp_event event;
    bool found;

    /* "prelaunch": it was reset, and has not run since. */
    if (j->reset && !s->status.running &&
        strcmp(s->status.state, "prelaunch") != 0) {
        if (qmp_system_reset(s->qmp, err) < 0 ||
            qmp_wait_event(s->qmp, reset, RESET_WAIT_MS, &event, &found, err) <
                0 ||
            session_refresh(s, err) < 0)
            return err_wrap(err, "resetting the guest");
    }
    if (j->was_running)
        return livechain_resume(s, true, err);
    return session_refresh(s, err) < 0 ? err->code
                                       : session_wake_images(s, err);
}

void revert_roll_back(struct session *s, struct journal *j, struct buf *text,
                      struct qstill_error *err)
{
    struct start_options again = {0};
    struct qstill_error why = {0}, ignored = {0};
    int pid;

    if (session_look_again(s, err) < 0 ||
        (j->inplace && undo_in_process(s, j, text, err) < 0)) {
        if (!err->hint[0])
            err_hint(err, "qstill recover %s tries again", s->vm);
        buf_printf(text, "VM %s: this is left to qstill recover %s\n", s->vm,
                   s->vm);
        return;
    }
    if (j->undone && trash_identify(s))
        vmrecord_save(s->vmfd, &s->rec, &ignored);
    /* what an undo goes to was there before it, and stays in the trash */
    for (size_t i = 0; !j->undone && i < j->disk_count; i++)
        layer_remove(j->disks[i].new_path, err);
    /* the journal goes when the guest runs: somebody must come back for it */
    if (s->qmp && livechain_resume(s, j->was_running, err) < 0)
        return;
    if (err->code == 0)
        journal_remove(s->vmfd, err);
    if (s->qmp || !j->was_running)
        return;
    if (start_vm(s, &again, &pid, &why) == 0)
        buf_printf(text, "VM %s was started again on its old disks\n", s->vm);
    else
        buf_printf(text,
                   "VM %s is off, with its old disks; start it with qstill "
                   "start %s (%s)\n",
                   s->vm, s->vm, why.message);
}

/* A guest that was frozen when its memory was taken wakes up frozen: a thaw is
 * owed before it runs. What was owed of the guest before is not any more. With
 * no agent recorded (--force) nobody could ever pay: it is told only. */
static void owe_thaw(struct session *s, const struct journal *j)
{
    bool there = s->qmp && (j->pid == 0 || same_process(s, j));

    s->rec.thaw = (struct vm_thaw){0};
    if (j->freezing && there && s->rec.agent)
        s->rec.thaw = (struct vm_thaw){true, j->pid, j->pid_start};
}

/* Of one that was left paused it stays owed, and *unthawed is clear. */
static int thaw(struct session *s, struct journal *j,
                struct qstill_error *unthawed, struct qstill_error *err)
{
    if (!s->rec.thaw.owed || !j->was_running ||
        thaw_journaled(s, j, false, unthawed) < 0)
        return 0;
    s->rec.thaw = (struct vm_thaw){0};
    return vmrecord_save(s->vmfd, &s->rec, err);
}

/* Whoever stops it later, or has it reset, is somebody else; or a merge, which
 * says so. */
static int run_once(struct session *s, struct journal *j,
                    struct qstill_error *err)
{
    if (j->resumed)
        return 0;
    if (revert_run(s, j, err) < 0 || !j->was_running)
        return err->code;
    j->resumed = true;
    j->reset = false;
    return journal_save(s->vmfd, j, err);
}

/* Once: a new head may have been folded into a layer below it since, and its
 * file may be gone. */
static int set_new_heads(struct session *s, const struct journal *j,
                         struct qstill_error *err)
{
    for (size_t i = 0; i < j->disk_count; i++) {
        const struct journal_disk *jd = &j->disks[i];
        const struct vm_disk *d = vmrecord_disk(&s->rec, jd->disk);

        if (d && strcmp(d->head_path, jd->old_path) == 0 &&
            vmrecord_set_head(&s->rec, jd->disk, jd->new_path, jd->new_format,
                              err) < 0)
            return err->code;
    }
    return 0;
}

int revert_finish(struct session *s, struct journal *j, struct buf *text,
                  struct qstill_error *err)
{
    struct vm_trash *back = trash_find(s, j->undone);
    struct qstill_error ran = {0}, unthawed = {0};
    /* once it is dropped, what this leaves is in the record already */
    bool redo = back && !back->redo;

    /* before it could expire: its files are the heads now */
    if (back)
        vmrecord_drop_trash(&s->rec, back);
    if (vmrecord_set_mapped(&s->rec, j->mapped, err) < 0 ||
        (j->undone ? trash_age_undo : trash_age)(s, j->tag, err) < 0 ||
        trash_put_heads(s, j, redo, err) < 0)
        return err->code;
    if (set_new_heads(s, j, err) < 0)
        return err->code;
    owe_thaw(s, j);
    /* an undo's may be no snapshot: "" in the journal, null in vm.json */
    if (vmrecord_set_current(&s->rec, *j->snapshot ? j->snapshot : NULL, err) <
            0 ||
        vmrecord_save(s->vmfd, &s->rec, err) < 0)
        return err->code;
    if (s->qmp)
        run_once(s, j, &ran);
    /* the guest may run all the same, and is not to stay frozen then */
    if (thaw(s, j, &unthawed, err) < 0 || ran.code < 0) {
        if (ran.code < 0)
            *err = ran;
        return err->code;
    }
    if (j->inplace)
        inplace_forget(s);
    if (j->inplace && same_process(s, j) && heads_sweep(s, j, err) < 0)
        return err->code;
    if (trash_expire(s, err) < 0 || delete_remove_gone(s, err) < 0 ||
        delete_rest(s, j, text, err) < 0 || unthawed.code == 0)
        return err->code;
    *err = unthawed;
    return err_wrap(err, "VM %s is reverted, but its guest is still frozen",
                    s->vm);
}

static void say(struct buf *out, const char *what, const struct journal *j)
{
    if (j->undone)
        buf_printf(out, "%s the undo of a revert\n", what);
    else
        buf_printf(out, "%s the revert to snapshot %s\n", what, j->snapshot);
}

/* Its guest has not run: nothing is lost with it. It may be so new that it
 * does not answer yet. */
static int leave_new_process(struct session *s, struct journal *j,
                             struct qstill_error *err)
{
    if (s->qmp && runs_on_new(s, j) && start_quit(s, err) < 0)
        return err->code;
    return j->tag ? start_end_strays(s, j->tag, err) : 0;
}

/* The journal says that it was done, but a disk that failed then had the
 * command take it for failed, and undo it: nobody else puts QEMU on its old
 * heads. */
static bool was_undone(struct session *s, const struct journal *j)
{
    for (size_t i = 0; i < j->disk_count; i++) {
        const struct vm_disk *d = vmrecord_disk(&s->rec, j->disks[i].disk);
        const char *live = d && s->qmp ? session_live_path(s, d) : NULL;

        if (!live || strcmp(d->head_path, j->disks[i].old_path) != 0 ||
            !session_same_file(live, j->disks[i].old_path))
            return false;
    }
    return j->disk_count > 0;
}

int revert_recover(struct session *s, struct journal *j, struct buf *text,
                   struct qstill_error *err)
{
    struct buf scratch = BUF_INIT;
    struct buf *out = text ? text : &scratch;

    if (j->phase == JOURNAL_COMMITTED && !was_undone(s, j)) {
        say(out, "finished", j);
        revert_finish(s, j, out, err);
    } else {
        say(out, "undid", j);
        if (j->inplace || leave_new_process(s, j, err) == 0)
            revert_roll_back(s, j, out, err);
        nvdimm_tell_mixed(s, j);
    }
    buf_fini(&scratch);
    return err->code;
}
