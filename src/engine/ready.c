/* SPDX-License-Identifier: MIT */
#include "ready.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "headlock.h"
#include "layer_file.h"
#include "layer_name.h"
#include "qcow2/info.h"
#include "qcow2/layout.h"
#include "qmp/job.h"
#include "qmp/migrate.h"
#include "qmp/monitor.h"
#include "session.h"

bool ready_has_halted(const struct session *s)
{
    static const char *const halted[] = {"guest-panicked", "internal-error",
                                         "io-error",       "shutdown",
                                         "suspended",      "watchdog"};

    for (size_t i = 0; s->qmp && i < ARRAY_LEN(halted); i++)
        if (strcmp(s->status.state, halted[i]) == 0)
            return true;
    return false;
}

int ready_state(const struct session *s, bool memory, struct qstill_error *err)
{
    static const char *const good[] = {"paused", "prelaunch"};
    const char *state = s->status.state;
    bool halted = ready_has_halted(s);

    if (s->status.running || (halted && !memory))
        return 0;
    for (size_t i = 0; i < ARRAY_LEN(good); i++)
        if (strcmp(state, good[i]) == 0)
            return 0;
    err_set(err, QSTILL_E_PRECONDITION, "VM %s is in state %s", s->vm, state);
    return err_hint(err, halted ? "resume it first (cont), or take its disks "
                                  "alone, without --memory"
                                : "resume it first (cont)");
}

int ready_settled(const struct session *s, struct qstill_error *err)
{
    CLEANUP(qmp_migration_fini) struct qmp_migration m = QMP_MIGRATION_INIT;

    if (qmp_migration_read(s->qmp, &m, err) < 0)
        return err->code;
    if (!qmp_migration_is_on(m.state))
        return headlock_moved(s, err);
    err_set(err, QSTILL_E_PRECONDITION, READY_MIGRATING);
    return err_hint(err, "wait until it is over");
}

int ready_images(const struct session *s, struct qstill_error *err)
{
    bool has = false;

    if (strcmp(s->status.state, "postmigrate") != 0)
        return 0;
    if (qmp_has_command(s->qmp, "blockdev-set-active", &has, err) < 0 || has)
        return err->code;
    err_set(err, QSTILL_E_PRECONDITION,
            "VM %s is in state postmigrate: QEMU cannot write to its images",
            s->vm);
    return err_hint(err, "resume it (cont), or end it");
}

int ready_head(const struct vm_disk *d, struct qstill_error *err)
{
    CLEANUP(qcow2_info_fini) struct qcow2_info info = {0};
    struct stat st;

    if (stat(d->head_path, &st) < 0)
        err_errno(err, errno, "disk %s: head %s", d->name, d->head_path);
    else if (layer_is_qcow2(d->head_format) &&
             layer_info(d->head_path, d->head_format, &info, err) < 0)
        err_wrap(err, "disk %s: head", d->name);
    return err->code < 0 ? err_hint(err, "bring the file back from a backup")
                         : 0;
}

/* ----------------------------------------------------------------- folders */

static const char *remedy(int errno_value)
{
    switch (errno_value) {
    case EPERM:
        return "it is immutable, or append-only: chattr -i -a DIR";
    case EROFS:
        return "mount it for writing";
    case EACCES:
        return "run qstill as a user who may write there";
    default:
        return "files must be made there";
    }
}

static int refused(const char *what, const char *dir, int errno_value,
                   struct qstill_error *err)
{
    err_errno(err, errno_value, "cannot make files in %s%s", what, dir);
    return err_hint(err, "%s", remedy(errno_value));
}

static bool is_no_room(int errno_value)
{
    return errno_value == ENOSPC || errno_value == EDQUOT;
}

/* A file without a name shows what really is allowed, and leaves no trace.
 * Where the filesystem has none, its words are believed. */
static int try_file(int dirfd, uint64_t room)
{
    CLEANUP(closep)
    int fd = openat(dirfd, ".", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600);

    if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == ENOENT))
        return faccessat(dirfd, ".", W_OK | X_OK, AT_EACCESS) < 0 ? errno : 0;
    if (fd < 0)
        return errno;
    if (room == 0 || fallocate(fd, 0, 0, (off_t)room) == 0 ||
        !is_no_room(errno))
        return 0;
    return errno;
}

static int probe(int dirfd, const char *what, const char *dir, uint64_t room,
                 struct qstill_error *err)
{
    int why = try_file(dirfd, room);

    if (why == 0 || (is_no_room(why) && room == 0))
        return 0;
    if (!is_no_room(why))
        return refused(what, dir, why, err);
    err_set(err, QSTILL_E_NO_SPACE, "no space in %s%s: %llu bytes are needed",
            what, dir, (unsigned long long)room);
    return err_hint(err, "make room there");
}

static int folder_of(const char *path, uint64_t room, struct qstill_error *err)
{
    CLEANUP(freep) char *dir = strdup(path);
    CLEANUP(closep) int fd = -1;
    char *slash = dir ? strrchr(dir, '/') : NULL;

    if (!slash)
        return err_nomem(err);
    slash[slash == dir ? 1 : 0] = '\0';
    fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 ? refused("", dir, errno, err)
                  : probe(fd, "", dir, room, err);
}

/* Of absolute paths. */
static bool same_folder(const char *a, const char *b)
{
    size_t len = (size_t)(strrchr(a, '/') - a);

    return len == (size_t)(strrchr(b, '/') - b) && strncmp(a, b, len) == 0;
}

static bool seen_before(struct ready_seen *seen, const char *path)
{
    for (size_t i = 0; i < seen->count; i++)
        if (same_folder(seen->paths[i], path))
            return true;
    if (seen->count < ARRAY_LEN(seen->paths))
        seen->paths[seen->count++] = path;
    return false;
}

int ready_beside(struct ready_seen *seen, const char *path,
                 struct qstill_error *err)
{
    return seen_before(seen, path) ? 0 : folder_of(path, 0, err);
}

int ready_folders(struct session *s, const char *disk_dir, uint64_t room,
                  struct qstill_error *err)
{
    size_t n = s->rec.disk_count;
    const char **paths = arena_array(&s->rec.arena, n + 1, sizeof(*paths));
    struct ready_seen seen = {0};

    if (!paths)
        return err_nomem(err);
    for (size_t i = 0; i < n; i++)
        if (layer_new_path(s, &s->rec.disks[i], disk_dir, "new", &paths[i],
                           err) < 0)
            return err->code;
    for (size_t i = 0; i < n; i++) {
        uint64_t together = room;

        for (size_t k = i + 1; k < n; k++)
            together += same_folder(paths[i], paths[k]) ? room : 0;
        if (!seen_before(&seen, paths[i]) &&
            folder_of(paths[i], together, err) < 0)
            return err->code;
    }
    return 0;
}

int ready_names(const struct session *s, struct qstill_error *err)
{
    for (size_t i = 0; i < s->rec.disk_count; i++) {
        const struct vm_disk *d = &s->rec.disks[i];
        size_t len = strlen(d->head_path);

        if (len <= QCOW2_MAX_BACKING_NAME)
            continue;
        err_set(err, QSTILL_E_PRECONDITION,
                "disk %s: no overlay can stand on its image: the name of that "
                "has %zu bytes with its folders, qcow2 holds %u",
                d->name, len, QCOW2_MAX_BACKING_NAME);
        return err_hint(err, "let the VM have it by a shorter way (another "
                             "folder, a bind mount)");
    }
    return 0;
}

int ready_store(const struct session *s, uint64_t room,
                struct qstill_error *err)
{
    if (probe(s->vmfd, "store ", s->store->dir, room, err) < 0)
        return err->code;
    return probe(s->snapsfd, "store ", s->store->dir, 0, err);
}

/* -------------------------------------------------------------------- jobs */

int ready_jobs(const struct session *s, struct qstill_error *err)
{
    struct qmp_block_job job;
    bool any = false;

    if (qmp_block_job_any(s->qmp, &job, &any, err) < 0 || !any)
        return err->code;
    err_set(err, QSTILL_E_BUSY, "VM %s has a block job: %s (%s)", s->vm, job.id,
            job.type);
    return err_hint(err,
                    "wait until it is over, or end it with QMP's "
                    "block-job-cancel %s",
                    job.id);
}
