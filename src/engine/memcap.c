/* SPDX-License-Identifier: MIT */
/*
 * cow         the RAM is write-protected while the guest runs; instant: device
 *             state into a memfd, what was written since protected again
 * paused      instant: device state into a memfd, then the copy; the guest
 *             waits until the copy is done
 * background  instant: `migrate` with background-snapshot; the first page in
 *             the stream says that it is taken
 * precopy     `migrate` first; QEMU stops the guest when little is left and
 *             waits (pre-switchover) for us to switch the disks
 */
#include "memcap_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "devices.h"
#include "lent.h"
#include "memstate/cow.h"
#include "memstate/uffd.h"
#include "migerror.h"
#include "qmp/monitor.h"
#include "qstill-qmp.h"
#include "session.h"
#include "stream_fifo.h"
#include "vmram.h"

#define UNLIMITED      (INT64_MAX / 4) /* bytes per second */
#define CANCEL_WAIT_MS 10000
#define CAPTURE_END_MS 3000

static bool is_stream(const struct memcap *m)
{
    return m->mode == MODE_BACKGROUND || m->mode == MODE_PRECOPY;
}

/* ---------------------------------------------------------------- settings */

static int save_settings(struct memcap *m, uint64_t bwlimit,
                         struct qstill_error *err)
{
    struct qmp_parameter p = {"max-bandwidth",
                              bwlimit ? (int64_t)bwlimit : UNLIMITED};

    if (settings_keep(m->s, &m->was, err) < 0)
        return err->code;
    m->settings_saved = true;
    if (settings_enable(m->s, &m->was,
                        m->mode == MODE_BACKGROUND ? "background-snapshot"
                                                   : "pause-before-switchover",
                        err) < 0)
        return err_wrap(err, "preparing QEMU's migration");
    if (settings_clear_tls(m->s, &m->was, err) < 0)
        return err->code;
    return qmp_migrate_set_parameters(m->s->qmp, &p, 1, err);
}

void memcap_restore_settings(struct memcap *m)
{
    if (!m->settings_saved || !m->s->qmp)
        return;
    m->settings_saved = false;
    settings_put_back(m->s, &m->was);
}

/* ----------------------------------------------------------------- prepare */

static int make_pipe(struct memcap *m, int *reader, struct qstill_error *err)
{
    int fds[2];

    if (m->mode == MODE_BACKGROUND)
        return stream_fifo_make(m->s->vmfd, reader, &m->pipefd, err);
    if (pipe2(fds, O_CLOEXEC) < 0)
        return err_errno(err, errno, "no pipe");
    *reader = fds[0];
    m->pipefd = fds[1];
    return 0;
}

/* TCG's migration misses a write now and then (memstate/stream_amend.h). */
static int look_behind_tcg(struct memcap *m, struct capture_options *o,
                           struct qstill_error *err)
{
    CLEANUP(qmp_machine_fini) struct qmp_machine machine = QMP_MACHINE_INIT;
    struct qstill_error why = {0};

    if (m->mode != MODE_PRECOPY)
        return 0;
    if (qmp_machine_read(m->s->qmp, &machine, err) < 0)
        return err->code;
    if (machine.kvm)
        return 0;
    if (vmram_find(m->s, VMRAM_READ, &m->ram, &m->sources, &m->source_count,
                   &why) < 0) {
        store_note(m->s->store,
                   "VM %s: what QEMU's TCG may miss in a migration cannot be "
                   "seen: %s",
                   m->s->vm, why.message);
        return 0;
    }
    o->pid = m->s->pid;
    o->ram = m->sources;
    o->ram_count = m->source_count;
    return 0;
}

static int open_stream(struct memcap *m, struct capture_options *o,
                       uint64_t bwlimit, struct qstill_error *err)
{
    int reader;

    if (look_behind_tcg(m, o, err) < 0 || save_settings(m, bwlimit, err) < 0 ||
        make_pipe(m, &reader, err) < 0 ||
        capture_stream_open(&m->cap, reader,
                            m->mode == MODE_BACKGROUND ? CAPTURE_BACKGROUND
                                                       : CAPTURE_PRECOPY,
                            o, err) < 0 ||
        qmp_getfd(m->s->qmp, STREAM_FD_NAME, m->pipefd, err) < 0)
        return err->code;
    /* QEMU has its copy: ours must go, or the stream would never end. */
    closep(&m->pipefd);
    m->pipefd = -1;
    return 0;
}

/* A file for the device state, handed to QEMU while the guest still runs. */
static int give_fdset(struct memcap *m, struct qstill_error *err)
{
    m->devfd = memfd_create("qstill-devices", MFD_CLOEXEC);
    if (m->devfd < 0)
        return err_errno(err, errno, "no memfd");
    return devices_give(m->s->qmp, m->devfd, &m->fdset, err);
}

static void take_fdset_back(struct memcap *m)
{
    struct qstill_error ignored = {0};

    if (m->fdset >= 0 && m->s->qmp)
        qmp_remove_fd(m->s->qmp, m->fdset, &ignored);
    m->fdset = -1;
}

/* A QEMU that is not root, or the root of a user namespace only, may make no
 * userfaultfd that sees KVM's faults; by the device, which root can open, it
 * may. It has it for as long as that takes. */
static int open_cow(struct memcap *m, const struct capture_options *o,
                    struct qstill_error *err)
{
    struct capture_cow_options cow = CAPTURE_COW_OPTIONS_INIT;
    CLEANUP(closep) int device = -1;
    struct qstill_error ignored = {0};
    int64_t fdset = -1;
    int r;

    cow.gives_back = m->gives_back;
    if (!uffd_may(m->s->pid))
        device = uffd_open_device();
    if (device >= 0 && qmp_lend_fd(m->s->qmp, device, LENT_USERFAULTFD, &fdset,
                                   &cow.device_fd, err) < 0)
        return err->code;
    r = capture_cow_open(&m->cap, m->s->pid, m->sources, m->source_count, &cow,
                         o, err);
    if (fdset >= 0)
        qmp_remove_fd(m->s->qmp, fdset, &ignored);
    return r;
}

static int open_copy(struct memcap *m, const struct capture_options *o,
                     struct qstill_error *err)
{
    if (vmram_find(m->s, VMRAM_READ, &m->ram, &m->sources, &m->source_count,
                   err) < 0)
        return err->code;
    if (m->mode == MODE_COW) {
        if (open_cow(m, o, err) < 0)
            return err->code;
    } else if (capture_copy_open(&m->cap, m->s->pid, m->sources,
                                 m->source_count, o, err) < 0) {
        return err->code;
    }
    return give_fdset(m, err);
}

int memcap_prepare(struct memcap *m, struct session *s,
                   const struct mode_report *modes, enum mode mode, int dirfd,
                   uint64_t bwlimit, struct qstill_error *err)
{
    struct capture_options o = {
        .io = io_real(), .dirfd = dirfd, .bwlimit = bwlimit};

    m->s = s;
    m->mode = mode;
    m->devfd = m->pipefd = -1;
    m->fdset = -1;
    m->gives_back = modes->balloon;
    return is_stream(m) ? open_stream(m, &o, bwlimit, err)
                        : open_copy(m, &o, err);
}

static int failed(struct memcap *m, struct qstill_error *err)
{
    err_wrap(err, "capturing the memory");
    if (err->code == QSTILL_E_NO_SPACE && !err->hint[0])
        err_hint(err, "free some space in %s, or take another --store",
                 m->s->store->dir);
    return err->code;
}

/* A capture that ended early says why. */
static int capture_failed(struct memcap *m, struct qstill_error *err)
{
    struct capture_result ignored;

    if (capture_finish(m->cap, &ignored, err) < 0)
        return failed(m, err);
    return err_set(err, QSTILL_E_FAILED, "the memory's stream ended early");
}

int memcap_migration_failed(struct memcap *m, const struct qmp_migration *mig,
                            struct qstill_error *err)
{
    double deadline = clock_ms() + CAPTURE_END_MS;
    struct capture_status st;

    m->migrating = false;
    /* Our own end of the pipe may be the reason: a full disk, say. It says so
     * when its writes are over, a little after QEMU saw the pipe close. */
    capture_poll(m->cap, &st);
    while (!st.complete && clock_ms() < deadline) {
        clock_sleep_ms(5);
        capture_poll(m->cap, &st);
    }
    if (st.complete && capture_failed(m, err) < 0 &&
        err->code != QSTILL_E_CORRUPT)
        return err->code;
    return err_set(err, QSTILL_E_FAILED, "QEMU's migration ended as %s%s%s",
                   mig->status, *mig->error ? ": " : "", mig->error);
}

int memcap_check_amended(struct memcap *m, struct qstill_error *err)
{
    return m->source_count > 0 ? vmram_check(m->s, &m->ram, err) : 0;
}

int memcap_ready(struct memcap *m, bool *ready, struct qstill_error *err)
{
    struct capture_status st;

    capture_poll(m->cap, &st);
    if (st.complete && !st.ready)
        return capture_failed(m, err);
    *ready = st.ready || is_stream(m);
    return 0;
}

/* ----------------------------------------------------------------- instant */

static int save_devices(struct memcap *m, struct qstill_error *err)
{
    if (qmp_save_devices(m->s->qmp, m->fdset, err) < 0)
        return err->code;
    return capture_device_state(m->cap, m->devfd, err);
}

void memcap_resumed(struct memcap *m)
{
    capture_resumed(m->cap);
    take_fdset_back(m);
}

int memcap_instant(struct memcap *m, struct qstill_error *err)
{
    if (m->mode == MODE_PRECOPY) {
        /* No device is plugged in while a migration is under way. */
        if (memcap_check_amended(m, err) < 0)
            return err->code;
        m->continued = true;
        return qmp_migrate_continue(m->s->qmp, err);
    }
    if (m->mode == MODE_BACKGROUND) {
        if (qmp_migrate_start(m->s->qmp, STREAM_FD_NAME, err) < 0)
            return err->code;
        m->migrating = true;
        return 0;
    }
    if (save_devices(m, err) < 0)
        return err_wrap(err, "saving the device state");
    /* Memory that was plugged in since we looked would be missing. It is asked
     * when the device state is saved, and while the capture takes its instant:
     * it knows by then which it is, and the pause is no longer. */
    if (capture_instant(m->cap, err) < 0)
        return err->code;
    return vmram_check(m->s, &m->ram, err);
}

/* QEMU says that a migration is over a little after the stream ended. */
static int migration_over(struct memcap *m, bool *over,
                          struct qstill_error *err)
{
    CLEANUP(qmp_migration_fini) struct qmp_migration mig = QMP_MIGRATION_INIT;

    *over = false;
    if (qmp_migration_read(m->s->qmp, &mig, err) < 0)
        return err->code;
    if (m->mode == MODE_BACKGROUND && mig.state != QMP_MIGRATION_ACTIVE)
        stream_settle(m->s->pid);
    if (mig.state == QMP_MIGRATION_FAILED ||
        mig.state == QMP_MIGRATION_CANCELLED)
        return memcap_migration_failed(m, &mig, err);
    if (mig.state == QMP_MIGRATION_COMPLETED) {
        m->migrating = false;
        *over = true;
    }
    return 0;
}

int memcap_instant_taken(struct memcap *m, bool *taken,
                         struct qstill_error *err)
{
    struct capture_status st;
    bool over;

    capture_poll(m->cap, &st);
    if (m->mode == MODE_PRECOPY)
        return st.complete ? migration_over(m, taken, err)
                           : migration_over(m, &over, err);
    *taken = st.instant_taken;
    if (st.complete && !st.instant_taken)
        return capture_failed(m, err);
    /* 10.0 re-applies the old run state from a queued bottom half: one more
     * turn of its main loop, so that our `cont` comes after it. */
    if (*taken && m->mode == MODE_BACKGROUND)
        return session_refresh(m->s, err);
    return m->migrating && !*taken ? migration_over(m, &over, err) : 0;
}

void memcap_progress(struct memcap *m, uint64_t *bytes_done,
                     uint64_t *bytes_total)
{
    struct capture_status st;

    capture_poll(m->cap, &st);
    *bytes_done = st.bytes_done;
    *bytes_total = st.bytes_total;
}

int memcap_step(struct memcap *m, bool *done, uint64_t *bytes_done,
                uint64_t *bytes_total, struct qstill_error *err)
{
    struct capture_status st;
    bool over = true;

    capture_poll(m->cap, &st);
    *bytes_done = st.bytes_done;
    *bytes_total = st.bytes_total;
    if (st.complete && m->migrating && migration_over(m, &over, err) < 0)
        return err->code;
    *done = st.complete && over;
    return 0;
}

int memcap_finish(struct memcap *m, struct capture_result *out,
                  struct qstill_error *err)
{
    take_fdset_back(m); /* of a VM that stays paused, which is never resumed */
    if (capture_finish(m->cap, out, err) < 0)
        return failed(m, err);
    if (out->amended_pages)
        store_note(m->s->store,
                   "VM %s: %llu pages that QEMU's migration had missed were "
                   "taken from its memory",
                   m->s->vm, (unsigned long long)out->amended_pages);
    stream_fifo_remove(m->s->vmfd); /* QEMU has closed it */
    return 0;
}

/* ------------------------------------------------------------------- abort */

static void cancel_migration(struct memcap *m)
{
    double deadline = clock_ms() + CANCEL_WAIT_MS;
    struct qstill_error ignored = {0};
    bool over = false;

    if (m->mode == MODE_BACKGROUND) {
        stream_run_out(m->s, &ignored);
        m->migrating = false;
        return;
    }
    /* 7.2 inactivates the images at the end. Cancelled just before, it starts
     * the guest on inactive images, and aborts at the guest's next write. But
     * nobody reads any more: it ends by itself. */
    if (!m->continued)
        qmp_migrate_cancel(m->s->qmp, &ignored);
    while (m->migrating && clock_ms() < deadline) {
        if (m->continued && clock_ms() > deadline - CANCEL_WAIT_MS / 2.0)
            qmp_migrate_cancel(m->s->qmp, &ignored);
        ignored.code = 0;
        if (migration_over(m, &over, &ignored) < 0 || over)
            break;
        clock_sleep_ms(10);
    }
    m->migrating = false;
}

void memcap_abort(struct memcap *m)
{
    struct qstill_error ignored = {0};

    if (!m->s)
        return;
    if (m->cap)
        capture_cancel(m->cap);
    if (m->s->qmp && m->migrating)
        cancel_migration(m);
    if (m->s->qmp && m->precopied)
        migerror_clear(m->s);
    if (m->s->qmp && is_stream(m))
        qmp_closefd(m->s->qmp, STREAM_FD_NAME, &ignored);
    take_fdset_back(m);
    memcap_restore_settings(m);
    closep(&m->pipefd); /* a capture waits for the end of its pipe */
    m->pipefd = -1;
    capture_close(m->cap);
    m->cap = NULL;
    stream_fifo_remove(m->s->vmfd);
}

void memcap_fini(struct memcap *m)
{
    if (!m->s)
        return;
    capture_close(m->cap);
    free(m->sources);
    qmp_ram_fini(&m->ram);
    settings_fini(&m->was);
    closep(&m->devfd);
    closep(&m->pipefd);
    memset(m, 0, sizeof(*m));
}
