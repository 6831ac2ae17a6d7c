/* SPDX-License-Identifier: MIT */
/*
 * The phase of a revert that works on the running process. The guest stands
 * still from inplace_stop() on; all that can be done before is.
 *
 * Happy path: nodes opened, guest stopped, what will be overwritten kept, heads
 * exchanged, pages, devices. Failures: everything back (revert_end.c); with
 * --restore auto the revert goes on in a new process, and with inplace, too,
 * where the memory of before cannot be brought back: it is lost in any case,
 * and the snapshot's need not be.
 */
#include <errno.h>
#include <unistd.h>

#include "heads.h"
#include "job.h"
#include "qmp/monitor.h"
#include "revert_impl.h"

/* How often somebody else may resume the VM before it is given up. */
#define RESUMES_MAX 5

static int open_memory(struct revert *r, const struct manifest *m,
                       struct qstill_error *err)
{
    if (revert_open_set(r, err) < 0)
        return err->code;
    return inplace_prepare(&r->inplace, &r->s, m, r->set, err);
}

/* Again, now that the guest can no longer select another bus, nor begin to
 * acknowledge one. Nothing has been overwritten. */
static int check_unplug(struct revert *r, struct qstill_error *err)
{
    bool gone;

    if (qmp_unplug_check(r->s.qmp, &r->unplug, true, err) < 0) {
        r->unplugging = err->code == QSTILL_E_PRECONDITION;
        return err->code;
    }
    if (qmp_was_unplugged(r->s.qmp, &gone, err) < 0)
        return err->code;
    return gone && r->way == WAY_INPLACE
               ? err_set(err, QSTILL_E_PRECONDITION,
                         "a device was unplugged meanwhile")
               : 0;
}

static int begin(struct revert *r, struct qstill_error *err)
{
    const struct manifest *m = tree_find(&r->s.tree, r->id);
    bool memory = r->way == WAY_INPLACE, before;

    if ((memory && open_memory(r, m, err) < 0) ||
        heads_open(&r->s, &r->j, r->tag, err) < 0 ||
        qmp_unplug_find(r->s.qmp, &r->unplug, err) < 0)
        return err->code;
    revert_lap(r, "open");
    if (qmp_was_resumed(r->s.qmp, &before, err) < 0 ||
        qmp_stop(r->s.qmp, 0, err) < 0 || check_unplug(r, err) < 0)
        return err->code;
    revert_lap(r, "stop");
    if (memory && inplace_keep(&r->inplace, m, err) < 0)
        return err->code;
    revert_lap(r, "save");
    if (heads_put(&r->s, &r->j, HEADS_NEW, r->tag, err) < 0 ||
        (memory && media_put(&r->s, &m->media, err) < 0))
        return err->code;
    revert_lap(r, "disks");
    return memory ? inplace_pages_start(&r->inplace, err) : 0;
}

/* A new process would not do better with these. */
static bool is_final(const struct revert *r, const struct qstill_error *err)
{
    return r->spoiled || err->code == QSTILL_E_CORRUPT ||
           err->code == QSTILL_E_CANCELLED;
}

/* The running process is what it was, or, where even that has failed, is
 * ended: the snapshot's takes its place. */
static void leave(struct revert *r)
{
    struct qstill_error why = {0};
    int pid = r->s.pid;

    if (start_has_ended(pid, 0)) {
        session_disconnect(&r->s);
    } else if (r->lost || session_look_again(&r->s, &why) < 0 || !r->s.qmp ||
               revert_leave_process(&r->s, &r->j, job_text(r->job), &why) < 0) {
        if (why.code < 0)
            store_note(r->store, "%s", why.message);
        start_kill(&r->s, pid);
    }
    revert_forget_process(&r->s, &r->j);
}

/* Whether the running process can be what it was: then it is, on its old heads,
 * with its memory. */
static bool is_back(struct revert *r, struct qstill_error *why)
{
    if (!start_has_ended(r->s.pid, 0) && session_look_again(&r->s, why) == 0 &&
        r->s.qmp)
        return revert_leave_process(&r->s, &r->j, job_text(r->job), why) == 0;
    if (why->code == 0)
        err_set(why, QSTILL_E_UNREACHABLE, "QEMU has ended");
    return false;
}

/* Whether the revert is to go on in a new process: it was left open, or the
 * memory of before is lost. */
static bool goes_on(struct revert *r, const struct qstill_error *err)
{
    struct qstill_error why = {0};

    if (is_final(r, err))
        return false;
    if (r->way == WAY_DISK)
        return r->unplugging;
    if (r->wanted == WAY_AUTO)
        return true;
    if (!inplace_has_kept(&r->s) || is_back(r, &why))
        return false;
    store_note(r->store, "%s", why.message);
    r->lost = true;
    r->wanted = WAY_AUTO;
    return true;
}

/* Another way instead, or the error, after which all is undone. */
static int give_up(struct revert *r, struct qstill_error *err)
{
    struct qstill_error why = *err, second = {0};
    enum way way = r->way;

    if (!goes_on(r, err))
        return err->code;
    inplace_fini(&r->inplace);
    if (start_has_ended(r->s.pid, 0)) /* nothing can be asked any more */
        session_disconnect(&r->s);
    if (revert_plan_process(r, &second) < 0) {
        store_note(r->store, "nor can a new process be started: %s",
                   second.message);
        r->in_process = true;
        r->way = way;
        return err->code;
    }
    store_note(r->store, "restore %s failed: %s; restore %s is next",
               way == WAY_DISK ? "in the running process" : "inplace",
               why.message,
               r->way == WAY_DISK ? "in a new one" : revert_way_name(r->way));
    leave(r);
    r->j.inplace = r->j.reset = false;
    err_clear(err);
    return journal_save(r->s.vmfd, &r->j, err);
}

int revert_inplace_enter(void *ctx, struct qstill_error *err)
{
    struct revert *r = ctx;

    if (r->o.dry_run || !r->in_process)
        return 0;
    return begin(r, err) < 0 ? give_up(r, err) : 0;
}

/* New heads that hold nothing again. */
static int heads_anew(struct revert *r, struct qstill_error *err)
{
    if (heads_put(&r->s, &r->j, HEADS_OLD, r->tag, err) < 0 ||
        heads_sweep(&r->s, &r->j, err) < 0)
        return err->code;
    for (size_t i = 0; i < r->j.disk_count; i++)
        if (unlink(r->j.disks[i].new_path) < 0)
            return err_errno(err, errno, "cannot remove %s",
                             r->j.disks[i].new_path);
    if (revert_make_heads(r, err) < 0 ||
        heads_open(&r->s, &r->j, r->tag, err) < 0)
        return err->code;
    return heads_put(&r->s, &r->j, HEADS_NEW, r->tag, err);
}

/* A guest that somebody else has started meanwhile ran with memory of two
 * times: it is stopped, what it wrote to the disks is dropped, and its pages
 * are compared again: then it is not *done. */
static int pages_again(struct revert *r, bool *done, struct qstill_error *err)
{
    bool resumed;

    if (qmp_was_resumed(r->s.qmp, &resumed, err) < 0 || !resumed)
        return err->code;
    *done = false;
    r->spoiled = true;
    if (qmp_stop(r->s.qmp, 0, err) < 0)
        return err->code;
    if (++r->resumes > RESUMES_MAX) {
        err_set(err, QSTILL_E_BUSY,
                "VM %s was resumed by somebody else, again and again, while "
                "its memory was written back",
                r->vm);
        return err_hint(err, "keep others away from the VM's monitor");
    }
    store_note(r->store,
               "VM %s was resumed by somebody else while its memory was "
               "written back: once more",
               r->vm);
    if (heads_anew(r, err) < 0)
        return err->code;
    r->spoiled = false;
    pageback_close(r->inplace.pages);
    r->inplace.pages = NULL;
    return inplace_pages_start(&r->inplace, err);
}

/* Somebody may have one unplugged meanwhile. The load does not notice when the
 * device has no state. */
static int load(struct revert *r, struct qstill_error *err)
{
    bool gone;

    if (qmp_unplug_check(r->s.qmp, &r->unplug, true, err) < 0 ||
        inplace_load(&r->inplace, err) < 0 ||
        qmp_was_unplugged(r->s.qmp, &gone, err) < 0)
        return err->code;
    return gone ? err_set(err, QSTILL_E_FAILED,
                          "a device was unplugged while the memory was written "
                          "back")
                : 0;
}

static int pages_and_devices(struct revert *r, bool *done,
                             struct qstill_error *err)
{
    uint64_t bytes_done, bytes_total;

    if (inplace_pages_step(&r->inplace, done, &bytes_done, &bytes_total, err) <
        0)
        return err->code;
    job_measure(r->job, bytes_done, bytes_total);
    if (!*done)
        return job_wait_on(r->job, pageback_fd(r->inplace.pages), err);
    if (job_wait_on(r->job, -1, err) < 0 || pages_again(r, done, err) < 0 ||
        !*done)
        return err->code;
    revert_lap(r, "pages");
    if (load(r, err) < 0 || pages_again(r, done, err) < 0 || !*done)
        return err->code;
    revert_lap(r, "devices");
    buf_printf(job_text(r->job), "%llu of %llu pages written back\n",
               (unsigned long long)r->inplace.result.written_pages,
               (unsigned long long)r->inplace.result.compared_bytes /
                   RAMSET_PAGE);
    return 0;
}

int revert_inplace_step(void *ctx, bool *done, struct qstill_error *err)
{
    struct revert *r = ctx;

    *done = true;
    if (r->o.dry_run || !r->inplace.pages)
        return 0;
    if (pages_and_devices(r, done, err) == 0)
        return 0;
    *done = true;
    return give_up(r, err);
}
