/* SPDX-License-Identifier: MIT */
#include "launch_renew.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/file.h"
#include "base/publish.h"
#include "launch_args.h"
#include "launch_disk.h"
#include "session.h"
#include "start.h"

#define ASKED_MAX (4l << 20) /* more than the kernel starts */

static bool same_words(char *const *a, char *const *b)
{
    size_t i = 0;

    if (!a || !b)
        return a == b;
    while (a[i] && b[i] && strcmp(a[i], b[i]) == 0)
        i++;
    return !a[i] && !b[i];
}

static bool is_same(const struct launch_record *a,
                    const struct launch_record *b)
{
    return same_words(a->argv, b->argv) && same_words(a->env, b->env) &&
           strcmp(a->cwd, b->cwd) == 0;
}

static bool same_limits(const struct limits *a, const struct limits *b)
{
    if (a->n != b->n)
        return false;
    for (size_t i = 0; i < a->n; i++)
        if (a->v[i].resource != b->v[i].resource ||
            a->v[i].soft != b->v[i].soft || a->v[i].hard != b->v[i].hard)
            return false;
    return true;
}

/* An image that the command line opens once. */
static bool opens(const struct launch_args *args, const char *cwd,
                  const char *path)
{
    struct qstill_error ignored = {0};
    struct disk_place place;
    size_t places = 0;

    return launch_disk_find(args, cwd, path, &place, &places, &ignored) == 0 &&
           places == 1;
}

struct image {
    const char *path, *format;
};

/* What QEMU may have been started on: the present head, or, when there were
 * snapshots since, a layer below it. */
static struct image opened_by(struct session *s, const struct vm_disk *d,
                              const struct launch_args *args, const char *cwd)
{
    if (opens(args, cwd, d->head_path))
        return (struct image){d->head_path, d->head_format};
    for (size_t i = 0; i < s->tree.count; i++) {
        const struct manifest_disk *m =
            manifest_disk(&s->tree.nodes[i], d->name);

        if (m && opens(args, cwd, m->path))
            return (struct image){m->path, m->format};
    }
    for (size_t i = 0; i < s->rec.hidden_count; i++) {
        const struct vm_hidden *h = &s->rec.hidden[i];

        if (strcmp(h->disk, d->name) == 0 && opens(args, cwd, h->path))
            return (struct image){h->path, h->format};
    }
    if (opens(args, cwd, d->attach_path))
        return (struct image){d->attach_path, d->attach_format};
    return (struct image){NULL, NULL};
}

static bool was_opened(struct session *s, const struct vm_disk *d)
{
    CLEANUP(launch_args_fini) struct launch_args args = {0};
    struct qstill_error ignored = {0};

    return launch_args_parse(&args, s->rec.launch.argv, &ignored) == 0 &&
           opens(&args, s->rec.launch.cwd, d->attach_path);
}

/* *images: one of each disk. A disk that neither command line opens was
 * plugged in. NULL when all is well, or the disk that is missing. */
static const struct vm_disk *find_images(struct session *s,
                                         const struct launch_record *now,
                                         struct image *images,
                                         struct qstill_error *err)
{
    CLEANUP(launch_args_fini) struct launch_args args = {0};

    if (launch_args_parse(&args, now->argv, err) < 0)
        return NULL;
    for (size_t i = 0; i < s->rec.disk_count; i++) {
        const struct vm_disk *d = &s->rec.disks[i];

        images[i] = opened_by(s, d, &args, now->cwd);
        if (!images[i].path && s->rec.has_launch && was_opened(s, d))
            return d;
    }
    return NULL;
}

/* Whatever a VM is started on later: where its disks came from stays. */
static int keep_first_images(struct session *s, struct qstill_error *err)
{
    for (size_t i = 0; i < s->rec.disk_count; i++) {
        struct vm_disk *d = &s->rec.disks[i];

        d->first_path = session_first_image(&s->rec, d);
        if (!d->first_path)
            return err_nomem(err);
    }
    return 0;
}

/* What was read of it before is all there was: it has not ended meanwhile. */
static bool is_alive(pid_t pid)
{
    CLEANUP(launch_record_fini) struct launch_record again = {0};
    struct qstill_error ignored = {0};

    return launch_read(pid, &again, &ignored) == 0;
}

static int take(struct session *s, const struct launch_record *now,
                struct qstill_error *err)
{
    struct image *images =
        arena_array(&s->rec.arena, s->rec.disk_count + 1, sizeof(*images));
    const struct vm_disk *missing;

    if (!images)
        return err_nomem(err);
    missing = find_images(s, now, images, err);
    if (missing)
        err_set(err, QSTILL_E_PRECONDITION, "does not open disk %s",
                missing->name);
    if (err->code < 0 || keep_first_images(s, err) < 0 ||
        vmrecord_set_launch(&s->rec, now, err) < 0)
        return err->code;
    for (size_t i = 0; i < s->rec.disk_count; i++)
        if (images[i].path) {
            s->rec.disks[i].attach_path = images[i].path;
            s->rec.disks[i].attach_format = images[i].format;
        }
    return 0;
}

/* ------------------------------------------------------- what a launcher did
 */

int launch_note(struct session *s, enum launch_words what, char *const *argv,
                struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf words = BUF_INIT;

    if (buf_append(&words, what == LAUNCH_ASKED ? "?" : "=", 2) < 0)
        return err_nomem(err);
    for (size_t i = 0; argv && argv[i]; i++)
        if (buf_append(&words, argv[i], strlen(argv[i]) + 1) < 0)
            return err_nomem(err);
    return publish_bytes(s->vmfd, STORE_ASKED, words.data, words.len, err);
}

void launch_note_started(struct session *s)
{
    CLEANUP(launch_record_fini) struct launch_record now = {0};
    struct qstill_error ignored = {0};

    if (s->pid > 0 && launch_read(s->pid, &now, &ignored) == 0)
        launch_note(s, LAUNCH_STARTED, now.argv, &ignored);
}

/* Whether the process is what a launcher last started; when it died in between,
 * whether it has all words that it was asked to start, in their order: it may
 * have added some. None: it knows better than we. */
static bool was_launched(struct session *s, char *const *argv)
{
    CLEANUP(closep) int fd = -1;
    CLEANUP(freep) char *words = NULL;
    struct qstill_error ignored = {0};
    struct stat st;
    size_t got = 0, i = 0;
    bool exactly;

    if (file_openat(s->vmfd, STORE_ASKED, O_RDONLY, 0, &fd, &ignored) < 0)
        return false; /* never */
    if (fstat(fd, &st) < 0 || st.st_size > ASKED_MAX)
        return true;
    words = malloc((size_t)st.st_size + 1);
    if (!words ||
        file_read_upto(fd, words, (size_t)st.st_size, 0, &got, &ignored) < 0)
        return true;
    words[got] = '\0';
    exactly = words[0] == '=';
    for (const char *w = words + strlen(words) + 1; w < words + got;
         w += strlen(w) + 1) {
        while (!exactly && argv[i] && strcmp(argv[i], w) != 0)
            i++;
        if (!argv[i] || strcmp(argv[i], w) != 0)
            return false;
        i++;
    }
    return !exactly || !argv[i];
}

/* What no snapshot is bound to, and nothing is lost by. */
static void save(struct session *s)
{
    struct qstill_error ignored = {0};

    if (s->lockfd >= 0)
        vmrecord_save(s->vmfd, &s->rec, &ignored);
}

void launch_renew(struct session *s)
{
    CLEANUP(launch_record_fini) struct launch_record now = {0};
    struct qstill_error err = {0};
    struct launch_record *was = &s->rec.launch;
    bool same, kept;

    if (s->pid <= 0 || !s->rec.has_launch)
        return;
    /* first: of a process that ends meanwhile the environment reads as empty,
     * and then its command line does, too */
    same = start_was_ours(s->pid);
    if (launch_read(s->pid, &now, &err) < 0)
        return;
    same = same || is_same(was, &now) ||
           (s->rec.launcher && was_launched(s, now.argv));
    kept = same_limits(&was->limits, &now.limits) &&
           confine_is_same(&was->confine, &now.confine) &&
           groups_are_same(&was->groups, &now.groups);
    if ((same && kept) || !is_alive(s->pid))
        return;
    if (now.uid != was->uid || now.gid != was->gid)
        err_set(&err, QSTILL_E_PRECONDITION, "runs as another user");
    else if (!same)
        take(s, &now, &err);
    if (err.code == 0) {
        was->limits = now.limits;
        was->confine = now.confine;
        was->groups = now.groups;
        save(s);
    } else {
        store_note(s->store,
                   "VM %s runs with another command line than the one that is "
                   "known, and %s: a new process would be started with the "
                   "old one; detach and attach the VM to change that",
                   s->vm, err.message);
    }
}
