/* SPDX-License-Identifier: MIT */
/* What QEMU could open, seen from here. */
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "reach.h"
#include "session.h"

static bool is_same(const char *a, const char *b)
{
    struct stat x, y;

    return stat(a, &x) < 0 || stat(b, &y) < 0 ||
           (x.st_dev == y.st_dev && x.st_ino == y.st_ino);
}

/* Whether the names of files mean the same to QEMU; of a launcher's nobody
 * knows while it is off. */
static bool sees_what_we_see(const struct session *s)
{
    char ns[64], root[64];

    if (s->pid <= 0)
        return !s->rec.launcher;
    snprintf(ns, sizeof(ns), "/proc/%d/ns/mnt", s->pid);
    snprintf(root, sizeof(root), "/proc/%d/root", s->pid);
    return is_same(ns, "/proc/self/ns/mnt") && is_same(root, "/");
}

int session_reach(const struct session *s, const char *path, const char *format,
                  bool start, struct qstill_error *err)
{
    struct reach reach;

    /* a launcher may give QEMU rights and files that we know nothing of */
    if (start && s->rec.has_launch && !s->rec.launcher) {
        reach_init(&reach, s->rec.launch.uid, s->rec.launch.gid);
        reach.cwd = s->rec.launch.cwd;
        return reach_chain(&reach, path, format, err);
    }
    if (!sees_what_we_see(s))
        return 0;
    if (s->pid <= 0 || !reach_init_process(&reach, s->pid))
        reach_init(&reach, geteuid(), getegid());
    reach.cwd = s->rec.has_launch ? s->rec.launch.cwd : NULL;
    if (reach_chain(&reach, path, format, err) == QSTILL_E_PERMISSION &&
        !reach.other)
        err_clear(err); /* our rights, not QEMU's */
    return err->code;
}
