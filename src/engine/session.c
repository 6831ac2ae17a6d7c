/* SPDX-License-Identifier: MIT */
#include "session.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "graph_check.h"
#include "headlock.h"
#include "inplace.h"
#include "job.h"
#include "journal.h"
#include "launch_renew.h"
#include "lent.h"
#include "livechain.h"
#include "lock.h"
#include "opened.h"
#include "qmp/channel.h"
#include "qmp/graph.h"
#include "qstill-qmp.h"
#include "recover.h"
#include "settings.h"
#include "spare.h"
#include "start.h"
#include "stream_fifo.h"
#include "unwind.h"

/* What a process that was killed while it published a file left there. */
static void sweep(const struct session *s)
{
    store_sweep(s->vmfd);
    unlinkat(s->vmfd, UNWIND_RESERVE_NAME, 0);
    stream_fifo_remove(s->vmfd);
    inplace_forget(s);
    for (size_t i = 0; i < s->tree.count; i++) {
        struct qstill_error ignored = {0};
        CLEANUP(closep) int fd = -1;

        if (store_opendirat(s->snapsfd, s->tree.nodes[i].id, &fd, &ignored) ==
            0)
            store_sweep(fd);
    }
}

/* A session whose verb only reads holds no lock. */
int session_open(struct session *s, struct qstill_store *store, const char *vm,
                 const char *verb, struct qstill_error *err)
{
    return session_open_for(s, store, vm, verb, NULL, 0, err);
}

int session_open_for(struct session *s, struct qstill_store *store,
                     const char *vm, const char *verb, struct qstill_job *job,
                     uint64_t bwlimit, struct qstill_error *err)
{
    memset(s, 0, sizeof(*s));
    s->vmfd = s->snapsfd = s->lockfd = -1;
    s->store = store;
    s->first_job = s->rest_job = job;
    s->bwlimit = bwlimit;
    if (store_open_vm(store, vm, &s->vmfd, err) < 0)
        return err->code;
    if (!verb)
        recover_if_abandoned(store, vm, s->vmfd);
    s->vm = strdup(vm);
    if (!s->vm) {
        session_close(s);
        return err_nomem(err);
    }
    if (store_open_snapshots(s->vmfd, &s->snapsfd, err) < 0 ||
        (verb && lock_take(s->vmfd, verb, &s->lockfd, err) < 0) ||
        session_reload(s, err) < 0 ||
        (verb && recover_session(s, NULL, err) < 0) ||
        (job && job_cancelled(job) &&
         err_set(err, QSTILL_E_CANCELLED, "cancelled") < 0)) {
        err_wrap(err, "VM %s", vm);
        session_close(s);
        return err->code;
    }
    s->first_job = s->rest_job = NULL;
    if (verb)
        sweep(s);
    return 0;
}

void session_close(struct session *s)
{
    session_disconnect(s);
    if (s->lockfd >= 0) {
        spare_keep(s);
        lock_release(&s->lockfd);
    }
    tree_fini(&s->tree);
    vmrecord_fini(&s->rec);
    closep(&s->snapsfd);
    closep(&s->vmfd);
    s->lockfd = s->snapsfd = s->vmfd = -1;
    free(s->vm);
    s->vm = NULL;
}

int session_reload(struct session *s, struct qstill_error *err)
{
    struct vm_record rec = {.arena = ARENA_INIT};
    struct tree tree = {0};

    if (vmrecord_load(s->vmfd, &rec, err) < 0)
        return err->code;
    if (tree_load(s->vmfd, &tree, err) < 0) {
        vmrecord_fini(&rec);
        return err->code;
    }
    vmrecord_fini(&s->rec);
    tree_fini(&s->tree);
    s->rec = rec;
    s->tree = tree;
    return 0;
}

/* Once more when somebody answers, but no QMP: an event of the client before
 * us has been seen in front of the greeting. */
static int open_qmp(struct session *s, struct qstill_error *err)
{
    if (qstill_qmp_open(&s->qmp, s->rec.qmp, NULL, err) == 0)
        return 0;
    if (err->code != QSTILL_E_UNREACHABLE || channel_is_dead(s->rec.qmp))
        return err->code;
    clock_sleep_ms(50);
    return qstill_qmp_open(&s->qmp, s->rec.qmp, NULL, err);
}

int session_try(struct session *s, struct qstill_error *err)
{
    struct qstill_error why = {0};
    pid_t pid = 0;

    if (s->qmp)
        return 0;
    if (open_qmp(s, &why) < 0) {
        if (why.code == QSTILL_E_UNREACHABLE && channel_is_dead(s->rec.qmp)) {
            if (s->lockfd >= 0)
                settings_mend(s); /* they went with QEMU */
            return 0;
        }
        *err = why;
        return err->code;
    }
    err_clear(&why);
    if (qstill_qmp_peer_pid(s->qmp, &pid, &why) == 0)
        s->pid = pid;
    if (livechain_settle(s, err) < 0 || session_refresh(s, err) < 0) {
        session_disconnect(s);
        return err->code;
    }
    /* a migration that is under way is the journal's, and so is what QEMU was
     * lent for it */
    if (!journal_exists(s->vmfd)) {
        settings_mend(s);
        lent_take_back(s);
        launch_renew(s);
    }
    if (s->lockfd >= 0)
        start_trim_log(s);
    return 0;
}

int session_connect(struct session *s, struct qstill_error *err)
{
    if (session_try(s, err) < 0 || s->qmp)
        return err->code;
    return headlock_look(s, err);
}

void session_disconnect(struct session *s)
{
    headlock_release(s);
    qmp_disks_fini(&s->live);
    memset(&s->live, 0, sizeof(s->live));
    qstill_qmp_close(s->qmp);
    s->qmp = NULL;
    s->pid = 0;
}

int session_refresh(struct session *s, struct qstill_error *err)
{
    struct qmp_disks live = QMP_DISKS_INIT;

    if (qmp_status_read(s->qmp, &s->status, err) < 0 ||
        qmp_disks_read(s->qmp, &live, err) < 0)
        return err->code;
    qmp_disks_fini(&s->live);
    s->live = live;
    return 0;
}

static bool sleeps(const struct session *s)
{
    if (strcmp(s->status.state, "postmigrate") == 0)
        return true;
    for (size_t i = 0; i < s->live.count; i++)
        if (!s->live.items[i].active && !s->live.items[i].read_only)
            return strcmp(s->status.state, "paused") == 0 ||
                   strcmp(s->status.state, "prelaunch") == 0;
    return false;
}

int session_wake_images(struct session *s, struct qstill_error *err)
{
    return s->qmp && sleeps(s) ? qmp_blocks_activate(s->qmp, err) : 0;
}

int session_look_again(struct session *s, struct qstill_error *err)
{
    struct qstill_error lost = {0};

    if (s->qmp && session_refresh(s, &lost) == 0)
        return 0;
    if (s->qmp)
        session_disconnect(s);
    return session_connect(s, err);
}

static bool same_string(const char *a, const char *b)
{
    return a && b && *a && strcmp(a, b) == 0;
}

const struct qmp_disk *session_live_disk(const struct session *s,
                                         const struct vm_disk *d)
{
    for (size_t i = 0; i < s->live.count; i++) {
        const struct qmp_disk *q = &s->live.items[i];

        if (same_string(d->qdev, q->qdev) ||
            (!d->qdev && same_string(d->device, q->device)))
            return q;
    }
    return NULL;
}

char *session_resolve(struct arena *a, const struct launch_record *launch,
                      const char *path)
{
    if (strncmp(path, "file:", 5) == 0)
        path += 5;
    if (path[0] == '/' || !launch->cwd)
        return arena_strdup(a, path);
    return arena_printf(a, "%s/%s", launch->cwd, path);
}

const char *session_first_image(struct vm_record *rec, const struct vm_disk *d)
{
    return d->first_path
               ? d->first_path
               : session_resolve(&rec->arena, &rec->launch, d->attach_path);
}

bool session_same_file(const char *a, const char *b)
{
    struct stat x, y;

    if (strcmp(a, b) == 0)
        return true;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev &&
           x.st_ino == y.st_ino;
}

const char *session_live_path(struct session *s, const struct vm_disk *d)
{
    const struct qmp_disk *q = session_live_disk(s, d);
    const char *path = NULL;

    if (q)
        path = *q->protocol_path ? q->protocol_path : q->path;
    return path ? session_resolve(&s->rec.arena, &s->rec.launch, path) : NULL;
}

static int wrong_head(struct session *s, const struct vm_disk *d,
                      const char *live, struct qstill_error *err)
{
    const struct manifest *owner = tree_owner(&s->tree, live);

    if (owner) {
        err_set(err, QSTILL_E_PRECONDITION,
                "disk %s of VM %s runs on %s, the frozen layer of snapshot %s",
                d->name, s->vm, live, owner->name);
        return err_hint(err,
                        "stop the VM at once and start it with: qstill "
                        "start %s",
                        s->vm);
    }
    err_set(err, QSTILL_E_PRECONDITION,
            "disk %s of VM %s runs on %s, but its head is %s", d->name, s->vm,
            live, d->head_path);
    return err_hint(err, "somebody else changed the disk: stop the VM and "
                         "start it with qstill start, or detach and attach it");
}

/* A name says nothing about the file that QEMU has open: what another file put
 * in its place would become of the guest's disk at the next reopen. */
static int check_is_open(struct session *s, struct opened *opened,
                         const struct vm_disk *d, struct qstill_error *err)
{
    if (!opened->known || opened_has(opened, d->head_path))
        return 0;
    /* it may just have been opened anew while the list was read */
    opened_fini(opened);
    if (opened_read(opened, s->pid, err) < 0)
        return err->code;
    if (!opened->known || opened_has(opened, d->head_path))
        return 0;
    err_set(err, QSTILL_E_CORRUPT,
            "disk %s of VM %s: %s is not the file that QEMU has open", d->name,
            s->vm, d->head_path);
    return err_hint(err,
                    "bring the original file back; if it was removed, QEMU "
                    "still has it, among /proc/%d/fd: copy it before the VM "
                    "ends",
                    s->pid);
}

int session_check_heads(struct session *s, struct qstill_error *err)
{
    CLEANUP(opened_fini) struct opened opened = {0};

    if (opened_read(&opened, s->pid, err) < 0)
        return err->code;
    for (size_t i = 0; i < s->rec.disk_count; i++) {
        const struct vm_disk *d = &s->rec.disks[i];
        const char *live = session_live_path(s, d);

        if (!live) {
            err_set(err, QSTILL_E_PRECONDITION, "VM %s has no disk %s any more",
                    s->vm, d->name);
            return err_hint(err, "plug it in again, or detach and attach the "
                                 "VM");
        }
        if (!session_same_file(live, d->head_path))
            return wrong_head(s, d, live, err);
        if (check_is_open(s, &opened, d, err) < 0)
            return err->code;
    }
    return 0;
}

bool session_takes_part(const struct qmp_disk *q)
{
    return !q->read_only && *q->path;
}

static bool is_known(const struct session *s, const struct qmp_disk *q)
{
    for (size_t i = 0; i < s->rec.disk_count; i++)
        if (session_live_disk(s, &s->rec.disks[i]) == q)
            return true;
    return false;
}

/* One without a device is none of the guest's. */
int session_check_known(const struct session *s, struct qstill_error *err)
{
    for (size_t i = 0; i < s->live.count; i++) {
        const struct qmp_disk *q = &s->live.items[i];

        if (!session_takes_part(q) || !*q->qdev || is_known(s, q))
            continue;
        err_set(err, QSTILL_E_PRECONDITION,
                "disk %s of VM %s (%s) came after the VM was attached, and is "
                "in no snapshot",
                *q->qdev_id ? q->qdev_id : q->qdev, s->vm, q->path);
        return err_hint(err, "unplug it, or %sdetach and attach the VM with it",
                        s->tree.count > 0 ? "delete the snapshots, " : "");
    }
    return 0;
}

int session_check_shape(const struct qmp_disk *q, struct qstill_error *err)
{
    const char *disk = *q->qdev_id ? q->qdev_id : q->device;

    switch (q->shape) {
    case QMP_SHAPE_PLAIN:
        return 0;
    case QMP_SHAPE_STACKED:
        err_set(err, QSTILL_E_PRECONDITION,
                "disk %s: node '%s' is no image format right over the file %s",
                disk, q->odd, q->protocol_path);
        break;
    case QMP_SHAPE_PART:
        err_set(err, QSTILL_E_PRECONDITION,
                "disk %s: node '%s' shows a part of %s only, by an offset or a "
                "size",
                disk, q->odd, q->protocol_path);
        break;
    case QMP_SHAPE_ELSEWHERE:
        err_set(err, QSTILL_E_PRECONDITION,
                "disk %s: the image of node '%s' keeps its data in an external "
                "data file",
                disk, q->odd);
        break;
    }
    return err_hint(err, "an overlay of that file would show another disk: "
                         "give the VM the whole image, without nodes between");
}

/* Once a node on top was taken for the image, and no start can do with that. */
static int check_recorded(const struct session *s, const struct vm_disk *d,
                          struct qstill_error *err)
{
    if (!qmp_is_filter(d->attach_format))
        return 0;
    err_set(err, QSTILL_E_PRECONDITION,
            "disk %s was attached as '%s', which is no image format", d->name,
            d->attach_format);
    if (!s->qmp)
        return err_hint(err, "qstill recover %s mends that", s->vm);
    return err_hint(err,
                    "%sdetach the VM and attach it anew; or end it, then "
                    "qstill recover %s",
                    s->tree.count > 0 ? "delete the snapshots, " : "", s->vm);
}

int session_check_shapes(const struct session *s, struct qstill_error *err)
{
    for (size_t i = 0; i < s->rec.disk_count; i++) {
        const struct qmp_disk *q = session_live_disk(s, &s->rec.disks[i]);

        if (check_recorded(s, &s->rec.disks[i], err) < 0)
            return err->code;
        if (q && (session_check_shape(q, err) < 0 ||
                  graph_check_chain(&s->rec.launch, s->pid, q, err) < 0))
            return err->code;
    }
    return 0;
}

int session_check_bases(const struct session *s, struct qstill_error *err)
{
    for (size_t i = 0; s->pid > 0 && i < s->rec.disk_count; i++) {
        const struct qmp_disk *q = session_live_disk(s, &s->rec.disks[i]);

        if (q && graph_check_open(&s->rec.launch, s->pid, q, err) < 0)
            return err->code;
    }
    return 0;
}

/* As QEMU itself would look it up. */
static bool qemu_finds(int pid, const char *name, const char *head)
{
    char root[32], path[PATH_MAX];
    struct stat st;

    snprintf(root, sizeof(root), "/proc/%d/%s", pid,
             name[0] == '/' ? "root" : "cwd");
    if (stat(root, &st) < 0)
        return true;
    if (snprintf(path, sizeof(path), "%s/%s", root, name) >= (int)sizeof(path))
        return true;
    return session_same_file(path, head);
}

int session_check_names(struct session *s, struct qstill_error *err)
{
    for (size_t i = 0; s->pid > 0 && i < s->rec.disk_count; i++) {
        const struct vm_disk *d = &s->rec.disks[i];
        const struct qmp_disk *q = session_live_disk(s, d);

        /* another image than the head is session_check_heads's to tell */
        if (!q || strcmp(q->driver, "raw") != 0 || !*q->protocol_path ||
            !session_same_file(session_live_path(s, d), d->head_path) ||
            qemu_finds(s->pid, q->protocol_path, d->head_path))
            continue;
        err_set(err, QSTILL_E_PRECONDITION,
                "QEMU cannot open %s again, the raw image of disk %s: it is "
                "not where QEMU's working directory or root is now",
                q->protocol_path, d->name);
        return err_hint(err, "start the VM with absolute image paths "
                             "(-daemonize changes to /)");
    }
    return 0;
}

bool session_vm_is_paused(const struct session *s)
{
    return s->qmp && !s->status.running;
}
