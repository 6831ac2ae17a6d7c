/* SPDX-License-Identifier: MIT */
#include "headlock.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "opened.h"
#include "qcow2/lock.h"
#include "session.h"

#define END_WAIT_MS 2000

/* Whether some disk is said to have locking=off (or "auto": no harm). */
static bool may_be_unlocked(const struct session *s)
{
    char **argv = s->rec.has_launch ? s->rec.launch.argv : NULL;

    while (argv && *argv && !strstr(*argv, "locking"))
        argv++;
    return argv && *argv;
}

static int explain(const struct session *s, const struct vm_disk *d, int pid,
                   struct qstill_error *err)
{
    char who[64];

    opened_describe(pid, who, sizeof(who));
    err_wrap(err, "disk %s", d->name);
    return err_hint(err,
                    "end %s; if that is VM %s itself, its QMP socket %s is "
                    "gone: attach it again if it has another one, or shut its "
                    "guest down from inside, then qstill start %s",
                    who, s->vm, s->rec.qmp, s->vm);
}

/* -1 for one that cannot be opened: others have more to say about that. */
static int open_head(const struct vm_disk *d)
{
    return open(d->head_path,
                O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
}

static int look_opened(const struct vm_disk *d, int except,
                       struct qstill_error *err)
{
    if (opened_by(d->head_path, except) <= 0)
        return 0;
    return err_set(err, QSTILL_E_BUSY,
                   "%s is in use: another process has it open", d->head_path);
}

/* A QEMU to which the VM has moved, and which waits for `cont`, holds no lock
 * from QEMU 10.0 on, and has the files open for reading only: but for its
 * command line it could be a backup. */
static int look_incoming(const struct session *s, const struct vm_disk **which,
                         struct qstill_error *err)
{
    for (int pid = 0; (pid = opened_next(pid, "incoming")) > 0;) {
        CLEANUP(opened_fini) struct opened o = {0};

        if (opened_read(&o, pid, err) < 0)
            return err->code;
        for (size_t i = 0; i < s->rec.disk_count; i++) {
            *which = &s->rec.disks[i];
            if (opened_has(&o, (*which)->head_path))
                return err_set(err, QSTILL_E_BUSY,
                               "%s is in use: a QEMU that was started to take "
                               "a VM over (-incoming) has it open",
                               (*which)->head_path);
        }
    }
    return 0;
}

static int look(const struct session *s, const struct vm_disk **which,
                struct qstill_error *err)
{
    bool unlocked = may_be_unlocked(s);

    for (size_t i = 0; i < s->rec.disk_count; i++) {
        const struct vm_disk *d = &s->rec.disks[i];
        CLEANUP(closep) int fd = open_head(d);

        *which = d;
        if (fd >= 0 &&
            image_lock_look(fd, d->head_path, IMAGE_LOCK_READ, err) < 0)
            return err->code;
        if (unlocked && look_opened(d, s->pid, err) < 0)
            return err->code;
    }
    return s->qmp ? 0 : look_incoming(s, which, err);
}

int headlock_look(const struct session *s, struct qstill_error *err)
{
    double deadline = clock_ms() + (s->lockfd >= 0 ? END_WAIT_MS : 0);
    const struct vm_disk *which = NULL;

    while (look(s, &which, err) < 0) {
        if (clock_ms() >= deadline)
            return explain(s, which, opened_by(which->head_path, 0), err);
        err_clear(err);
        clock_sleep_ms(5);
    }
    return 0;
}

int headlock_moved(const struct session *s, struct qstill_error *err)
{
    const struct vm_disk *which = NULL;

    if (!s->qmp || strcmp(s->status.state, "postmigrate") != 0)
        return 0;
    look(s, &which, err);
    /* one that waits for `cont` has taken no lock yet, from QEMU 10.0 on */
    for (size_t i = 0; s->pid > 0 && err->code == 0 && i < s->rec.disk_count;
         i++) {
        which = &s->rec.disks[i];
        look_opened(which, s->pid, err);
    }
    if (err->code == 0)
        return 0;
    err_wrap(err, "VM %s was migrated: disk %s", s->vm, which->name);
    return err_hint(err, "attach the VM where it runs now");
}

int headlock_take(struct session *s, struct qstill_error *err)
{
    headlock_release(s);
    s->held = calloc(s->rec.disk_count + 1, sizeof(*s->held));
    if (!s->held)
        return err_nomem(err);
    for (size_t i = 0; i < s->rec.disk_count; i++) {
        const struct vm_disk *d = &s->rec.disks[i];
        int fd = open_head(d);

        if (fd < 0)
            continue;
        s->held[s->held_count++] = fd;
        if (image_lock(fd, d->head_path, IMAGE_LOCK_READ, err) < 0)
            return explain(s, d, opened_by(d->head_path, 0), err);
    }
    return 0;
}

void headlock_release(struct session *s)
{
    while (s->held_count > 0)
        closep(&s->held[--s->held_count]);
    free(s->held);
    s->held = NULL;
}
