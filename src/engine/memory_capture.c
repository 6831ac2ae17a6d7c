/* SPDX-License-Identifier: MIT */
/*
 * The capture of a VMM of one's own.
 *
 * The happy path:
 *   open     DIR.partial, locked; the capture, in the first mode that fits
 *   arm      the RAM is protected while the VM runs
 *   switch   pause, device state, instant, resume
 *   memory   the rest is copied, while the VM runs
 *   publish  one rename
 * Failures: the VM is resumed, the files go, then their directory.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/options.h"
#include "base/publish.h"
#include "job.h"
#include "memory.h"
#include "memstate/capture.h"
#include "memstate/cow.h"
#include "memstate/regions.h"
#include "store.h"

enum how { HOW_AUTO, HOW_COW, HOW_PAUSED };

struct capturing {
    struct qstill_job *job;
    struct arena arena;
    struct qstill_vmm vmm;
    struct qstill_memory_options o;
    enum how how;
    const char *name; /* of the directory, in its parent */
    const char *partial;
    int parent;
    int dirfd; /* of DIR.partial, locked by us, empty; -1: not ours */
    int given; /* the caller's userfaultfd, until the capture has it */
    struct capture_source *sources;
    size_t count;
    struct capture *cap;
    bool paused;
    bool published;
    double since_ms;
    char reason[256];
    struct qstill_memory_result result;
};

/* ------------------------------------------------------------------- open */

/* Whoever had the lock before us may have given the directory its final name
 * meanwhile: what is in it then is not ours. */
static bool is_still_there(const struct capturing *c, int fd)
{
    struct stat by_name, ours;

    return fstatat(c->parent, c->partial, &by_name, AT_SYMLINK_NOFOLLOW) == 0 &&
           fstat(fd, &ours) == 0 && by_name.st_ino == ours.st_ino &&
           by_name.st_dev == ours.st_dev;
}

/* Nothing but regular files with the names of a file set. */
static bool is_of_a_capture(int dirfd, const char *name)
{
    struct stat st;

    return ramset_is_file_name(name) &&
           fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
           S_ISREG(st.st_mode);
}

static int check_ours(const struct capturing *c, int fd, char *const *names,
                      size_t count, struct qstill_error *err)
{
    for (size_t i = 0; i < count; i++) {
        if (is_of_a_capture(fd, names[i]))
            continue;
        err_set(err, QSTILL_E_BUSY, "%s is no left capture: it has %.100s",
                c->partial, names[i]);
        return err_hint(err, "move it away, or capture under another name");
    }
    return 0;
}

static int empty_partial(const struct capturing *c, int fd,
                         struct qstill_error *err)
{
    char **names = NULL;
    size_t count = 0;
    int r = store_names(fd, &names, &count, err);

    if (r == 0)
        r = check_ours(c, fd, names, count, err);
    for (size_t i = 0; i < count && r == 0; i++)
        if (unlinkat(fd, names[i], 0) < 0 && errno != ENOENT)
            r = err_errno(err, errno, "cannot remove %s of %s", names[i],
                          c->partial);
    store_names_free(names, count);
    return r;
}

/* What a process left that died at work goes; one that lives has the lock, and
 * what is somebody else's stays. */
static int make_partial(struct capturing *c, struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;

    if (faccessat(c->parent, c->name, F_OK, AT_SYMLINK_NOFOLLOW) == 0)
        return err_set(err, QSTILL_E_BUSY, "%s exists already", c->name);
    if (mkdirat(c->parent, c->partial, 0700) < 0 && errno != EEXIST)
        return err_errno(err, errno, "cannot make %s", c->partial);
    fd = openat(c->parent, c->partial,
                O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return err_errno(err, errno, "cannot open %s", c->partial);
    if (flock(fd, LOCK_EX | LOCK_NB) < 0 || !is_still_there(c, fd))
        return err_set(err, QSTILL_E_BUSY, "another capture is writing %s",
                       c->partial);
    if (empty_partial(c, fd, err) < 0)
        return err->code;
    c->dirfd = take_fd(&fd);
    return 0;
}

static int open_cow(struct capturing *c, const struct capture_options *co,
                    struct qstill_error *err)
{
    struct capture_cow_options cow = CAPTURE_COW_OPTIONS_INIT;

    cow.uffd = c->given;
    c->given = -1;
    cow.copiers = c->o.copiers;
    cow.pool_bytes = c->o.pool_bytes;
    cow.gives_back = c->o.gives_back;
    return capture_cow_open(&c->cap, c->o.pid, c->sources, c->count, &cow, co,
                            err);
}

/* What cannot be read in any mode. Where the mappings may not be read the copy
 * will tell. */
static int check_mapped(const struct capturing *c, struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf maps = BUF_INIT;
    struct qstill_error ignored = {0};
    struct region r;

    if (regions_read(c->o.pid, &maps, &ignored) < 0)
        return 0;
    for (size_t i = 0; i < c->count; i++) {
        const struct capture_source *s = &c->sources[i];

        for (uint64_t at = s->hva; at - s->hva < s->size; at = r.end) {
            if (regions_find(&maps, at, &r) && r.readable)
                continue;
            err_set(err, QSTILL_E_PRECONDITION,
                    "region %s: there is no memory to be read at 0x%llx", s->id,
                    (unsigned long long)at);
            return err_hint(err, "give regions that are mapped, and readable, "
                                 "from end to end");
        }
    }
    return 0;
}

static int open_capture(struct capturing *c, struct qstill_error *err)
{
    struct capture_options co = {
        .dirfd = c->dirfd, .bwlimit = c->o.bwlimit, .foreign = true};

    if (check_mapped(c, err) < 0)
        return err->code;
    c->result.mode = "cow";
    if (c->how != HOW_PAUSED) {
        if (open_cow(c, &co, err) == 0)
            return 0;
        if (c->how == HOW_COW || (err->code != QSTILL_E_PRECONDITION &&
                                  err->code != QSTILL_E_PERMISSION))
            return err->code;
        snprintf(c->reason, sizeof(c->reason), "%.255s", err->message);
        err_clear(err);
    }
    c->result.mode = "paused";
    return capture_copy_open(&c->cap, c->o.pid, c->sources, c->count, &co, err);
}

static int open_enter(void *ctx, struct qstill_error *err)
{
    struct capturing *c = ctx;

    if (make_partial(c, err) < 0)
        return err->code;
    return open_capture(c, err);
}

static void remove_files(struct capturing *c, struct qstill_error *err)
{
    capture_close(c->cap);
    c->cap = NULL;
    if (c->dirfd < 0 || c->published)
        return;
    /* By name only while we hold its lock. */
    store_remove_tree(c->parent, c->partial, err);
    closep(&c->dirfd);
    c->dirfd = -1;
}

static void open_undo(void *ctx, struct qstill_error *err)
{
    remove_files(ctx, err);
}

static int failed_early(struct capturing *c, struct qstill_error *err)
{
    struct capture_result ignored;

    if (capture_finish(c->cap, &ignored, err) < 0)
        return err->code;
    return err_set(err, QSTILL_E_FAILED, "the capture ended early");
}

static int arm_step(void *ctx, bool *done, struct qstill_error *err)
{
    struct capturing *c = ctx;
    struct capture_status st;

    capture_poll(c->cap, &st);
    *done = st.ready;
    if (st.complete && !st.ready)
        return failed_early(c, err);
    return *done ? 0 : job_wait_on(c->job, capture_fd(c->cap), err);
}

/* ----------------------------------------------------------------- switch */

static int save_state(struct capturing *c, struct qstill_error *err)
{
    CLEANUP(closep) int fd = memfd_create("qstill-state", MFD_CLOEXEC);

    if (fd < 0)
        return err_errno(err, errno, "no memfd");
    if (c->vmm.save && memory_called(c->vmm.save(c->vmm.user, fd, err),
                                     "saving the device state", err) < 0)
        return err->code;
    return capture_device_state(c->cap, fd, err);
}

static int switch_enter(void *ctx, struct qstill_error *err)
{
    struct capturing *c = ctx;

    c->since_ms = clock_ms();
    if (memory_called(c->vmm.pause(c->vmm.user, err), "pausing the VM", err) <
        0)
        return err->code;
    c->paused = true;
    if (save_state(c, err) < 0)
        return err->code;
    return capture_instant(c->cap, err);
}

static int check_pause(const struct capturing *c, double ms,
                       struct qstill_error *err)
{
    if (!c->o.max_pause_ms || ms <= c->o.max_pause_ms)
        return 0;
    return err_set(err, QSTILL_E_PRECONDITION,
                   "the pause would have been over %u ms (mode %s, %.0f ms)",
                   c->o.max_pause_ms, c->result.mode, ms);
}

static int resume(struct capturing *c, struct qstill_error *err)
{
    if (!c->paused)
        return 0;
    c->paused = false;
    return memory_called(c->vmm.resume(c->vmm.user, err), "resuming the VM",
                         err);
}

static int switch_step(void *ctx, bool *done, struct qstill_error *err)
{
    struct capturing *c = ctx;
    struct capture_status st;

    capture_poll(c->cap, &st);
    job_measure(c->job, st.bytes_done, st.bytes_total);
    if (st.complete && !st.instant_taken)
        return failed_early(c, err);
    if (!st.instant_taken) {
        if (c->o.max_pause_ms == 0)
            return job_wait_on(c->job, capture_fd(c->cap), err);
        clock_sleep_ms(1);
        return check_pause(c, clock_ms() - c->since_ms, err);
    }
    if (resume(c, err) < 0)
        return err->code;
    c->result.pause_ms = clock_ms() - c->since_ms;
    capture_resumed(c->cap);
    *done = true;
    return check_pause(c, c->result.pause_ms, err);
}

static void switch_undo(void *ctx, struct qstill_error *err)
{
    struct capturing *c = ctx;

    /* Until its thread has ended it serves, so the VM may run at once. */
    if (c->cap)
        capture_cancel(c->cap);
    resume(c, err);
    remove_files(c, err);
}

/* -------------------------------------------------------- memory, publish */

static int memory_step(void *ctx, bool *done, struct qstill_error *err)
{
    struct capturing *c = ctx;
    struct capture_result got;
    struct capture_status st;

    capture_poll(c->cap, &st);
    job_measure(c->job, st.bytes_done, st.bytes_total);
    *done = st.complete;
    if (!st.complete) {
        clock_sleep_ms(2); /* progress makes no fd readable */
        return 0;
    }
    if (capture_finish(c->cap, &got, err) < 0)
        return err->code;
    c->result.longest_stall_ms = got.longest_stall_ms;
    c->result.faults = got.faults;
    c->result.memory_bytes = got.memory_bytes;
    c->result.written_bytes = got.written_bytes;
    c->result.size_bytes = got.disk_bytes;
    return 0;
}

static int publish_enter(void *ctx, struct qstill_error *err)
{
    struct capturing *c = ctx;

    if (publish_rename(c->parent, c->partial, c->name, PUBLISH_NEW, err) < 0)
        return err->code;
    c->published = true;
    c->result.mode_reason = c->reason;
    return 0;
}

/* -------------------------------------------------------------------- job */

static void capturing_free(void *ctx)
{
    struct capturing *c = ctx;

    capture_close(c->cap);
    closep(&c->dirfd);
    closep(&c->parent);
    closep(&c->given);
    arena_fini(&c->arena);
    free(c);
}

static const struct job_phase capture_phases[] = {
    {"open", open_enter, NULL, open_undo},
    {"arm", NULL, arm_step, NULL},
    {"switch", switch_enter, switch_step, switch_undo},
    {"memory", NULL, memory_step, NULL},
    {"publish", publish_enter, NULL, NULL},
    {NULL, NULL, NULL, NULL},
};
static const struct job_ops capture_ops = {capture_phases, capturing_free};

static int take_dir(struct capturing *c, const char *dir,
                    struct qstill_error *err)
{
    const char *slash = strrchr(dir, '/');
    const char *name = slash ? slash + 1 : dir;
    const char *parent = !slash         ? "."
                         : slash == dir ? "/"
                                        : arena_printf(&c->arena, "%.*s",
                                                       (int)(slash - dir), dir);

    if (!*name || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return err_set(err, QSTILL_E_USAGE, "'%.200s' names no new directory",
                       dir);
    c->name = arena_strdup(&c->arena, name);
    c->partial = arena_printf(&c->arena, "%s.partial", name);
    if (!parent || !c->name || !c->partial)
        return err_nomem(err);
    return memory_open_dir(parent, &c->parent, err);
}

static int take_mode(struct capturing *c, struct qstill_error *err)
{
    static const char *const names[] = {"auto", "cow", "paused"};

    for (unsigned i = 0; i < ARRAY_LEN(names); i++)
        if (strcmp(c->o.mode ? c->o.mode : "auto", names[i]) == 0) {
            c->how = (enum how)i;
            return 0;
        }
    err_set(err, QSTILL_E_USAGE, "unknown mode '%.32s'", c->o.mode);
    return err_hint(err, "known are auto, cow, paused");
}

static int take_regions(struct capturing *c,
                        const struct qstill_region *regions, size_t count,
                        struct qstill_error *err)
{
    struct qstill_region *list = NULL;

    if (memory_take_regions(&c->arena, regions, count, &list, err) < 0)
        return err->code;
    c->sources = arena_array(&c->arena, count, sizeof(*c->sources));
    if (!c->sources)
        return err_nomem(err);
    for (size_t i = 0; i < count; i++)
        c->sources[i] =
            (struct capture_source){list[i].id, (uintptr_t)list[i].address,
                                    list[i].length, list[i].page_size};
    c->count = count;
    return 0;
}

static int take_options(struct capturing *c, const struct qstill_vmm *vmm,
                        const struct qstill_memory_options *options,
                        struct qstill_error *err)
{
    if (options_take(&c->o, sizeof(c->o), options, "capture", err) < 0)
        return err->code;
    if (c->o.has_userfaultfd && c->o.userfaultfd < 0)
        return err_set(err, QSTILL_E_USAGE, "userfaultfd %d is no descriptor",
                       c->o.userfaultfd);
    if (options_take(&c->vmm, sizeof(c->vmm), vmm, "VMM", err) < 0)
        return err->code;
    if (!c->vmm.pause || !c->vmm.resume)
        return err_set(err, QSTILL_E_USAGE,
                       "a VMM without pause and resume cannot be captured");
    if (c->o.pid == 0)
        c->o.pid = getpid();
    return take_mode(c, err);
}

/* What is handed over is ours whatever becomes of the call, also where the
 * options are refused; -1 where there is nothing, or no size to tell. */
static int given_userfaultfd(const struct qstill_memory_options *o)
{
    if (!o || o->size > OPTIONS_MAX ||
        o->size < offsetof(struct qstill_memory_options, userfaultfd) +
                      sizeof(o->userfaultfd) ||
        !o->has_userfaultfd)
        return -1;
    return o->userfaultfd;
}

QSTILL_PUBLIC int
qstill_memory_capture(const char *dir, const struct qstill_region *regions,
                      size_t count, const struct qstill_vmm *vmm,
                      const struct qstill_memory_options *options,
                      struct qstill_job **out, struct qstill_error *caller_err)
{
    struct qstill_error scratch, *err = err_door(caller_err, &scratch);
    CLEANUP(closep) int given = given_userfaultfd(options);
    struct capturing *c = calloc(1, sizeof(*c));

    if (!c)
        return err_nomem(err);
    c->parent = c->dirfd = -1;
    c->given = take_fd(&given);
    if (take_options(c, vmm, options, err) < 0 ||
        take_regions(c, regions, count, err) < 0 || take_dir(c, dir, err) < 0) {
        capturing_free(c);
        return err->code;
    }
    if (job_new(&c->job, &capture_ops, c, err) < 0)
        return err->code;
    *out = c->job;
    return 0;
}

QSTILL_PUBLIC const struct qstill_memory_result *
qstill_memory_result(const struct qstill_job *job)
{
    const struct capturing *c = job_ctx(job, &capture_ops);

    return c && c->published ? &c->result : NULL;
}
