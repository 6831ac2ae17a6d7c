/* SPDX-License-Identifier: MIT */
/* What QEMU could open, seen from here. */
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "launch_files.h"
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

/* A VM some part of which shares what it opens with writers (share-rw) or takes
 * no locks is not judged by locks at all. */
static bool takes_locks(const struct session *s)
{
    char **argv = s->rec.has_launch ? s->rec.launch.argv : NULL;

    for (; argv && *argv; argv++)
        if (launch_may_share(*argv))
            return false;
    return true;
}

int session_reach(const struct session *s, const char *path, const char *format,
                  unsigned how, struct qstill_error *err)
{
    struct reach reach;
    /* a launcher may give QEMU rights and files that we know nothing of */
    bool ours =
        (how & SESSION_REACH_START) && s->rec.has_launch && !s->rec.launcher;

    if (!ours && !sees_what_we_see(s))
        return 0;
    if (ours)
        reach_init_groups(&reach, s->rec.launch.uid, s->rec.launch.gid,
                          &s->rec.launch.groups);
    else if (s->pid <= 0 || !reach_init_process(&reach, s->pid))
        reach_init(&reach, geteuid(), getegid());
    reach.cwd = s->rec.has_launch ? s->rec.launch.cwd : NULL;
    reach.locks = (how & SESSION_REACH_LOCKS) && takes_locks(s);
    reach.own = s->pid;
    if (reach_chain(&reach, path, format, err) == QSTILL_E_PERMISSION &&
        !ours && !reach.other)
        err_clear(err); /* our rights, not QEMU's */
    return err->code;
}
