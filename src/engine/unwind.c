/* SPDX-License-Identifier: MIT */
#include "unwind.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "journal.h"
#include "layer_file.h"
#include "layers.h"
#include "livechain.h"
#include "migerror.h"
#include "qcow2/lock.h"
#include "qstill-qmp.h"
#include "qmp/migrate.h"
#include "qmp/monitor.h"
#include "session.h"
#include "settings.h"
#include "stream_fifo.h"
#include "thaw.h"

#define CANCEL_WAIT_MS 10000
#define PATIENCE_MS    600000

void unwind_tmp_name(const char *id, char out[UNWIND_TMP_LEN])
{
    snprintf(out, UNWIND_TMP_LEN, ".%.64s.tmp", id);
}

static int cancel_migration(struct session *s, struct qstill_error *err)
{
    double deadline = clock_ms() + CANCEL_WAIT_MS;
    struct qstill_error ignored = {0};
    bool busy = true;

    while (busy) {
        CLEANUP(qmp_migration_fini)
        struct qmp_migration m = QMP_MIGRATION_INIT;

        if (qmp_migration_read(s->qmp, &m, err) < 0)
            return err->code;
        busy = qmp_migration_is_on(m.state);
        if (busy && clock_ms() > deadline) {
            err_set(err, QSTILL_E_BUSY,
                    "a migration of VM %s (%s) does not end, though it was "
                    "cancelled",
                    s->vm, m.status);
            return err_hint(err,
                            "see what its destination waits for; once QEMU's "
                            "query-migrate says that it is over: qstill "
                            "recover %s",
                            s->vm);
        }
        if (busy) {
            /* see memcap.c: at its end it is left to end by itself */
            if (strcmp(m.status, "device") != 0 ||
                clock_ms() > deadline - CANCEL_WAIT_MS / 2.0)
                qmp_migrate_cancel(s->qmp, &ignored);
            clock_sleep_ms(20);
        }
    }
    return 0;
}

/* A migration that a process which died had started. Without kept settings
 * there was none: what is under way is the user's. */
static int end_migration(struct session *s, struct qstill_error *err)
{
    struct qstill_error ignored = {0};

    if (!settings_are_kept(s->vmfd) && !stream_fifo_exists(s->vmfd))
        return 0;
    if ((stream_fifo_exists(s->vmfd) ? stream_run_out(s, err)
                                     : cancel_migration(s, err)) < 0)
        return err->code;
    migerror_clear(s);
    qmp_closefd(s->qmp, STREAM_FD_NAME, &ignored);
    settings_mend(s);
    return 0;
}

/* Keeps the first error, and goes on. */
static void note_error(struct qstill_error *first, struct qstill_error *now)
{
    if (now->code < 0 && first->code == 0)
        *first = *now;
    now->code = 0;
}

/* Each step is tried though one before it failed: a guest is not to stay
 * frozen because a migration does not end. The first failure is told. */
int unwind_resume(struct session *s, struct journal *j,
                  struct qstill_error *unthawed, struct qstill_error *err)
{
    struct qstill_error now = {0}, first = {0};

    err_clear(unthawed);
    if (!s->qmp)
        return 0;
    end_migration(s, &now);
    note_error(&first, &now);
    /* of a guest that runs too: `cont` gets images back that a migration had
     * inactivated */
    if (session_refresh(s, &now) == 0)
        livechain_resume(s, journal_stopped_it(j), &now);
    note_error(&first, &now);
    /* whatever became of QMP: the agent has a socket of its own */
    if (thaw_journaled(s, j, first.code < 0, unthawed) < 0) {
        if (first.code < 0)
            err_hint(&first, "%s", unthawed->hint);
        else
            thaw_owe(s, j, &first);
    }
    if (first.code < 0)
        *err = first;
    return first.code;
}

int unwind_await(struct session *s, const struct journal *j,
                 struct qstill_error *err)
{
    double deadline = clock_ms() + PATIENCE_MS;
    struct qstill_error now = {0};

    if (!journal_stopped_it(j))
        return err->code;
    store_note(s->store,
               "QEMU of VM %s does not answer: waiting for it, since the guest "
               "may stand still then",
               s->vm);
    while (clock_ms() < deadline && qstill_qmp_pump(s->qmp, &now) == 0) {
        if (session_refresh(s, &now) == 0 &&
            livechain_resume(s, true, &now) == 0) {
            err_clear(err);
            return 0;
        }
        err_clear(&now);
        clock_sleep_ms(100);
    }
    return err_hint(err,
                    "VM %s may stand still when its QEMU answers again: "
                    "qstill recover %s lets it run on",
                    s->vm, s->vm);
}

/* The new head cannot go: it stays, on its frozen layer, which nobody names. */
static int adopt(struct session *s, const struct journal_disk *jd,
                 struct buf *text, struct qstill_error *err)
{
    if (vmrecord_hide(&s->rec, jd->disk, jd->old_path, jd->old_format, err) <
            0 ||
        vmrecord_set_head(&s->rec, jd->disk, jd->new_path, jd->new_format,
                          err) < 0 ||
        vmrecord_save(s->vmfd, &s->rec, err) < 0)
        return err->code;
    if (text)
        buf_printf(text, "disk %s stays on %s for now\n", jd->disk,
                   jd->new_path);
    return 0;
}

static int fold_back_live(struct session *s, struct journal *j,
                          const struct journal_disk *jd, struct buf *text,
                          struct qstill_error *err)
{
    struct vm_disk *d = vmrecord_disk(&s->rec, jd->disk);
    const char *live = d ? session_live_path(s, d) : NULL;
    CLEANUP(qmp_graph_fini) struct qmp_graph g = QMP_GRAPH_INIT;
    struct qstill_error second = {0};

    if (!live || !session_same_file(live, jd->new_path))
        return layer_remove(jd->new_path, err);
    if (qmp_graph_read(s->qmp, &g, err) < 0 ||
        vmrecord_set_head(&s->rec, jd->disk, jd->new_path, jd->new_format,
                          err) < 0)
        return err->code;
    if (livechain_commit_head(s, &g, d, jd->old_path, jd->old_format, j, err) <
        0) {
        adopt(s, jd, text, &second);
        return err->code;
    }
    return layer_remove(jd->new_path, err);
}

/* The record may have adopted the new head: an undo that QEMU's end cut. */
static int give_back(struct session *s, const struct journal_disk *jd,
                     struct qstill_error *err)
{
    const struct vm_disk *d = vmrecord_disk(&s->rec, jd->disk);

    if (!d || strcmp(d->head_path, jd->new_path) != 0)
        return 0;
    vmrecord_unhide(&s->rec, jd->old_path);
    if (vmrecord_set_head(&s->rec, jd->disk, jd->old_path, jd->old_format,
                          err) < 0)
        return err->code;
    return vmrecord_save(s->vmfd, &s->rec, err);
}

/* Whether nothing was written into the new head; BUSY while a QEMU that is
 * ending still has it open. */
static int untouched(const struct journal *j, const struct journal_disk *jd,
                     bool *yes, struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;

    *yes = true;
    if (j->phase < JOURNAL_SWITCHING)
        return 0;
    fd = open(jd->new_path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return err_errno(err, errno, "cannot open %s", jd->new_path);
    if (image_lock(fd, jd->new_path, IMAGE_LOCK_READ, err) < 0)
        return err->code;
    return layer_is_empty(jd->new_path, jd->new_format, yes, err);
}

/* By a pivot that has been settled: the file is an old head, and may be stale.
 */
static bool is_folded(const struct session *s, const struct journal_disk *jd)
{
    for (size_t i = 0; i < s->rec.hidden_count; i++)
        if (strcmp(s->rec.hidden[i].path, jd->new_path) == 0)
            return true;
    return false;
}

/* QEMU is gone. A guest may have written into the new head before it went. */
static int fold_back_off(struct session *s, struct journal *j,
                         const struct journal_disk *jd, struct buf *text,
                         struct qstill_error *err)
{
    bool empty;

    if (access(jd->new_path, F_OK) < 0)
        return give_back(s, jd, err);
    if (is_folded(s, jd))
        return 0; /* what is hidden is merged away at the end */
    if (untouched(j, jd, &empty, err) < 0)
        return err->code;
    if (!empty)
        return adopt(s, jd, text, err);
    if (give_back(s, jd, err) < 0)
        return err->code;
    return layer_remove(jd->new_path, err);
}

int unwind_thaw(struct session *s, struct journal *j, struct buf *text,
                struct qstill_error *err)
{
    struct qstill_error second = {0};
    bool owed = j->freezing;

    if (thaw_journaled(s, j, true, &second) < 0)
        return err_hint(err, "%s", second.hint);
    if (!owed || j->freezing)
        return err->code;
    if (text)
        buf_printf(text, "thawed the guest of VM %s\n", s->vm);
    /* whoever freezes it from now on is somebody else */
    journal_save(s->vmfd, j, &second);
    return err->code;
}

int unwind_create(struct session *s, struct journal *j, struct buf *text,
                  struct qstill_error *err)
{
    struct qstill_error now = {0}, first = {0}, unthawed = {0};
    char tmp[UNWIND_TMP_LEN];

    unwind_tmp_name(j->snapshot, tmp);
    store_remove_tree(s->snapsfd, tmp, &now);
    note_error(&first, &now);
    unlinkat(s->vmfd, UNWIND_RESERVE_NAME, 0);
    /* the connection may be what failed */
    if (session_look_again(s, &now) < 0) {
        *err = now;
        unwind_thaw(s, j, text, err);
        return err_wrap(err, "undoing a snapshot");
    }
    unwind_resume(s, j, &unthawed, &now);
    note_error(&first, &now);
    if (session_look_again(s, &now) < 0) {
        *err = first.code < 0 ? first : now;
        return err->code;
    }
    for (size_t i = 0; i < j->disk_count; i++) {
        if (s->qmp)
            fold_back_live(s, j, &j->disks[i], text, &now);
        else
            fold_back_off(s, j, &j->disks[i], text, &now);
        /* a folder that is not there, and no head that ever was in it */
        if (now.code == QSTILL_E_NOT_FOUND && j->phase < JOURNAL_SWITCHING)
            err_clear(&now);
        note_error(&first, &now);
    }
    if (s->rec.hidden_count > 0 && first.code == 0)
        layers_collapse(s, j, text, &now);
    note_error(&first, &now);
    if (first.code == 0)
        journal_remove(s->vmfd, &first);
    *err = first.code < 0 ? first : unthawed;
    return err->code;
}
