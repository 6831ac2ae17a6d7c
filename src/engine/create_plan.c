/* SPDX-License-Identifier: MIT */
/* The phases of a create while the guest runs as ever: what is to be done, and
 * all that can be made ready for it. */
#include "create_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "bases.h"
#include "headlock.h"
#include "headuse.h"
#include "job.h"
#include "layer_file.h"
#include "layer_name.h"
#include "nvdimm.h"
#include "plugged.h"
#include "preflight.h"
#include "ready.h"
#include "start.h"
#include "unwind.h"

/* -------------------------------------------------------------------- plan */

static int check_name_free(struct create *c, struct qstill_error *err)
{
    if (tree_taken(&c->s.tree, c->name)) {
        err_set(err, QSTILL_E_BUSY, "a snapshot named %s exists already",
                c->name);
        return err_hint(err, "take another name, or delete that one");
    }
    return 0;
}

/* The memory comes back all the same, in the process that has these devices. */
static void note_devices(struct create *c)
{
    int (*const checks[])(struct session *, struct qstill_error *) = {
        preflight_plugged, plugged_check_now, plugged_check_taken_out};

    for (size_t i = 0; i < ARRAY_LEN(checks); i++) {
        struct qstill_error why = {0};

        if (checks[i](&c->s, &why) == QSTILL_E_PRECONDITION)
            store_note(c->store,
                       "%s: a revert to the memory of this snapshot needs this "
                       "process, or one with the same devices",
                       why.message);
    }
}

static int plan_memory(struct create *c, struct qstill_error *err)
{
    if (!c->s.qmp) {
        err_set(err, QSTILL_E_UNREACHABLE,
                "VM %s does not run, so it has no memory to capture", c->vm);
        return err_hint(err, "start it, or leave --memory out");
    }
    if (modes_probe_cow_first(&c->s, &c->modes, err) < 0 ||
        (c->wanted == MODE_BACKGROUND &&
         modes_probe_rest(&c->s, &c->modes, err) < 0))
        return err->code;
    return modes_choose(&c->modes, c->wanted, !c->was_running, &c->mode, c->why,
                        sizeof(c->why), err);
}

static int plan_live(struct create *c, struct qstill_error *err)
{
    c->was_running = c->s.status.running;
    if (ready_state(&c->s, c->o.memory, err) < 0 ||
        ready_settled(&c->s, err) < 0 || session_check_heads(&c->s, err) < 0 ||
        session_check_known(&c->s, err) < 0 ||
        session_check_shapes(&c->s, err) < 0 ||
        session_check_bases(&c->s, err) < 0 ||
        session_check_names(&c->s, err) < 0 ||
        session_wake_images(&c->s, err) < 0)
        return err->code;
    if (c->o.quiesce && !c->was_running) {
        store_note(c->store, "VM %s is paused: it is not quiesced", c->vm);
        c->o.quiesce = false;
    }
    return 0;
}

/* Its memory is captured frozen, and whoever reverts to it must know. */
static void look_whether_frozen(struct create *c)
{
    if (!c->o.memory || c->o.quiesce || !c->was_running || !c->s.rec.agent)
        return;
    c->found_frozen = c->s.rec.thaw.owed || quiesce_is_frozen(&c->s);
    if (c->found_frozen)
        store_note(c->store,
                   "the guest of VM %s is, or may be, frozen already: a revert "
                   "to the snapshot thaws it",
                   c->vm);
}

static int plan_off(struct create *c, struct qstill_error *err)
{
    if (c->o.quiesce)
        return err_set(err, QSTILL_E_UNREACHABLE,
                       "VM %s does not run, so it cannot be quiesced", c->vm);
    for (size_t i = 0; i < c->s.rec.disk_count; i++)
        if (ready_head(&c->s.rec.disks[i], err) < 0)
            return err->code;
    if (session_check_shapes(&c->s, err) < 0)
        return err->code;
    return headuse_check(&c->s, err) < 0 ? err->code
                                         : headlock_take(&c->s, err);
}

static int describe(struct create *c, struct qstill_error *err)
{
    struct buf *text = job_text(c->job);

    if (c->o.memory)
        buf_printf(text, "memory: mode %s%s%s\n", mode_name(c->mode),
                   c->why[0] ? " because " : "", c->why);
    for (size_t i = 0; i < c->s.rec.disk_count; i++) {
        const struct vm_disk *d = &c->s.rec.disks[i];
        const char *path = NULL;

        if (layer_new_path(&c->s, d, c->disk_dir, c->id, &path, err) < 0)
            return err->code;
        buf_printf(text, "disk %s: %s is frozen, new head %s\n", d->name,
                   d->head_path, path);
    }
    return 0;
}

int create_plan_enter(void *ctx, struct qstill_error *err)
{
    struct create *c = ctx;

    if (session_open_for(&c->s, c->store, c->vm, "create", c->job, 0, err) < 0)
        return err->code;
    c->session_open = true;
    if (check_name_free(c, err) < 0 || preflight_below(&c->s, err) < 0 ||
        session_connect(&c->s, err) < 0)
        return err->code;
    if ((c->s.qmp ? plan_live(c, err) : plan_off(c, err)) < 0)
        return err->code;
    bases_note(&c->s, c->s.rec.current);
    if (ready_names(&c->s, err) < 0 ||
        ready_store(&c->s, UNWIND_RESERVE, err) < 0 ||
        ready_folders(&c->s, c->disk_dir, READY_HEAD_ROOM, err) < 0)
        return err->code;
    if (c->o.quiesce && quiesce_check(&c->s, err) < 0)
        return err->code;
    look_whether_frozen(c);
    if (c->s.rec.disk_count == 0 && !c->o.memory)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "VM %s has no disk to snapshot", c->vm);
    if (c->o.memory) {
        if (plan_memory(c, err) < 0)
            return err->code;
        note_devices(c);
    } else {
        nvdimm_note(&c->s, NVDIMM_NO_MEMORY);
        if (c->s.qmp)
            modes_note_pmem(&c->s);
    }
    if (id_new(c->id, err) < 0)
        return err->code;
    clock_stamp(c->stamp, &c->stamp_ns);
    return describe(c, err);
}

/* ----------------------------------------------------------------- prepare */

static int fill_journal(struct create *c, struct qstill_error *err)
{
    struct session *s = &c->s;

    c->j.op = JOURNAL_CREATE;
    c->j.phase = JOURNAL_BEGUN;
    c->j.snapshot = c->id;
    c->j.old_current = s->rec.current;
    c->j.was_running = c->was_running;
    c->j.pid = (uint64_t)s->pid;
    c->j.pid_start = start_time_of(s->pid);
    c->quiesce.pid = s->pid;
    c->quiesce.pid_start = c->j.pid_start;
    c->j.disks =
        arena_array(&c->arena, s->rec.disk_count + 1, sizeof(*c->j.disks));
    if (!c->j.disks)
        return err_nomem(err);
    for (size_t i = 0; i < s->rec.disk_count; i++) {
        const struct vm_disk *d = &s->rec.disks[i];
        const char *path = NULL;

        if (layer_new_path(s, d, c->disk_dir, c->id, &path, err) < 0)
            return err->code;
        c->j.disks[i] = (struct journal_disk){
            d->name, d->head_path, d->head_format,
            arena_strdup(&c->arena, path), OVERLAY_FORMAT};
        if (!c->j.disks[i].new_path)
            return err_nomem(err);
    }
    c->j.disk_count = s->rec.disk_count;
    return 0;
}

static int make_reserve(struct create *c, struct qstill_error *err)
{
    CLEANUP(closep)
    int fd = openat(c->s.vmfd, UNWIND_RESERVE_NAME,
                    O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

    if (fd < 0)
        return err_errno(err, errno, "cannot write into store %s",
                         c->store->dir);
    if (fallocate(fd, 0, 0, UNWIND_RESERVE) < 0 && errno != EOPNOTSUPP)
        return err_errno(err, errno, "store %s", c->store->dir);
    return 0;
}

/* What nobody could foresee, the injection into QEMU above all, shows only
 * now. Not the mode's fault are: no space, QEMU is gone, cancelled, ... */
static bool is_of_the_mode(const struct create *c, int code)
{
    if (code == QSTILL_E_BUSY || code == QSTILL_E_FAILED)
        return c->mode == MODE_COW;
    return code == QSTILL_E_PRECONDITION || code == QSTILL_E_PERMISSION;
}

/* `auto` then takes the next one. */
static int prepare_memory(struct create *c, int memfd, struct qstill_error *err)
{
    while (memcap_prepare(&c->mem, &c->s, &c->modes, c->mode, memfd,
                          c->o.bwlimit, err) < 0) {
        if (c->wanted != MODE_COUNT || !is_of_the_mode(c, err->code))
            return err->code;
        snprintf(c->modes.reason[c->mode], sizeof(c->modes.reason[c->mode]),
                 "%.255s", err->message);
        memcap_abort(&c->mem);
        memcap_fini(&c->mem);
        err_clear(err);
        if (modes_probe_rest(&c->s, &c->modes, err) < 0 ||
            modes_choose(&c->modes, c->wanted, !c->was_running, &c->mode,
                         c->why, sizeof(c->why), err) < 0)
            return err->code;
    }
    return 0;
}

static int make_tmp(struct create *c, struct qstill_error *err)
{
    CLEANUP(closep) int tmpfd = -1, memfd = -1;
    char tmp[UNWIND_TMP_LEN];

    unwind_tmp_name(c->id, tmp);
    if (store_mkdirat(c->s.snapsfd, tmp, err) < 0)
        return err->code;
    if (!c->o.memory)
        return 0;
    if (store_opendirat(c->s.snapsfd, tmp, &tmpfd, err) < 0 ||
        store_mkdirat(tmpfd, STORE_MEMORY, err) < 0 ||
        store_opendirat(tmpfd, STORE_MEMORY, &memfd, err) < 0)
        return err->code;
    return prepare_memory(c, memfd, err);
}

/* A disk may have been resized since the VM was attached, and may be at any
 * time: an overlay of another size would cut it off. What QEMU says now counts,
 * and create_manifest_ask() looks whether it still did at the switch. */
static int look_at_sizes(struct create *c, struct qstill_error *err)
{
    size_t n = c->s.rec.disk_count;

    c->sizes = arena_array(&c->arena, n + 1, sizeof(*c->sizes));
    if (!c->sizes)
        return err_nomem(err);
    for (size_t i = 0; i < n; i++)
        if (layer_virtual_size(c->s.rec.disks[i].head_path,
                               c->s.rec.disks[i].head_format, &c->sizes[i],
                               err) < 0)
            return err->code;
    if (c->s.qmp && session_refresh(&c->s, err) < 0)
        return err->code;
    for (size_t i = 0; i < n; i++) {
        struct vm_disk *d = &c->s.rec.disks[i];
        const struct qmp_disk *q = session_live_disk(&c->s, d);

        d->virtual_size = q ? q->virtual_size : c->sizes[i];
        if (d->virtual_size > 0)
            continue;
        err_set(err, QSTILL_E_PRECONDITION,
                "how large disk %s is cannot be told while VM %s is off: its "
                "format is %s",
                d->name, c->vm, d->head_format);
        return err_hint(err, "start the VM first");
    }
    return 0;
}

static int make_overlays(struct create *c, struct qstill_error *err)
{
    if (look_at_sizes(c, err) < 0)
        return err->code;
    for (size_t i = 0; i < c->s.rec.disk_count; i++) {
        const struct vm_disk *d = &c->s.rec.disks[i];
        const char *path;

        if (layer_create(&c->s, d, d->virtual_size, d->head_path,
                         d->head_format, c->disk_dir, c->id, &path, err) < 0)
            return err_wrap(err, "overlay of disk %s", d->name);
    }
    return 0;
}

int create_prepare_enter(void *ctx, struct qstill_error *err)
{
    struct create *c = ctx;

    if (c->o.dry_run)
        return 0;
    if (fill_journal(c, err) < 0)
        return err->code;
    c->journaled = true;
    if (journal_save(c->s.vmfd, &c->j, err) < 0 || make_reserve(c, err) < 0 ||
        make_overlays(c, err) < 0 || make_tmp(c, err) < 0)
        return err->code;
    /* From here on heads may be switched; synced now, not in the pause. */
    c->j.phase = JOURNAL_SWITCHING;
    return journal_save(c->s.vmfd, &c->j, err);
}

/* `stop` flushes all images: what it finds is what was written since. */
static void sync_heads(const struct create *c)
{
    for (size_t i = 0; i < c->s.rec.disk_count; i++) {
        CLEANUP(closep)
        int fd = open(c->s.rec.disks[i].head_path,
                      O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);

        if (fd >= 0)
            fdatasync(fd);
    }
}

int create_prepare_step(void *ctx, bool *done, struct qstill_error *err)
{
    struct create *c = ctx;

    *done = true;
    if (c->o.dry_run || !c->o.memory)
        return 0;
    if (memcap_ready(&c->mem, done, err) < 0)
        return err->code;
    if (!*done)
        return job_wait_on(c->job, capture_fd(c->mem.cap), err);
    sync_heads(c);
    return 0;
}

void create_prepare_undo(void *ctx, struct qstill_error *err)
{
    struct create *c = ctx;

    memcap_abort(&c->mem);
    if (c->published || !c->journaled)
        return;
    unwind_create(&c->s, &c->j, job_text(c->job), err);
    c->journaled = journal_exists(c->s.vmfd);
}
