/* SPDX-License-Identifier: MIT */
/*
 * The content of a held lock is one line: PID START HOST BOOT VERB, where
 * START is the process's start time in ticks since the boot BOOT. It is
 * emptied at a clean release.
 *
 * Taking it: open, OFD lock, look who is written there, write ourselves.
 * - the kernel says it is held: BUSY;
 * - free, and empty or of this host: ours, whoever died with it;
 * - free, and of another host: BUSY. Either that host died, or the filesystem
 *   does not carry locks between hosts: a person has to look.
 * - the file was unlinked meanwhile (detach): again from the start.
 * A file system without room for the line keeps nobody from undoing what was
 * begun there: the kernel's lock counts, others are told that its owner is not
 * known, and another host that does not see the lock is not kept out. (What is
 * new does not begin: its journal needs room.)
 */
#include "lock.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"
#include "hostinfo.h"
#include "store.h"

#define LOCK_NAME STORE_LOCK
/* A killed command's child holds the lock until it has become QEMU; a new
 * owner writes its line a moment after it has the lock. */
#define HEIR_WAIT_MS 2000

/* 20 (pid) + 20 (start) + 64 (host) + 36 (boot id) + 31 (verb) + 5 */
enum { LOCK_TEXT_MAX = 256, LOCK_BOOT_MAX = 40, LOCK_TRIES = 8 };

struct owner {
    long long pid;
    unsigned long long start;
    char host[LOCK_HOST_MAX];
    char boot[LOCK_BOOT_MAX];
    char verb[LOCK_VERB_MAX];
};

/* False: nobody, or a line that was not written whole. */
static bool owner_parse(const char *text, struct owner *o)
{
    size_t n = strlen(text);
    char pid[24], *end;

    if (n == 0 || text[n - 1] != '\n' ||
        sscanf(text, "%23s %llu %64s %39s %31s", pid, &o->start, o->host,
               o->boot, o->verb) != 5)
        return false;
    o->pid = strtoll(pid, &end, 10);
    return *end == '\0' && o->pid > 0 && o->pid <= INT_MAX;
}

static int owner_read(int fd, struct owner *o, bool *any,
                      struct qstill_error *err)
{
    char text[LOCK_TEXT_MAX + 1];
    size_t n;

    if (file_read_upto(fd, text, LOCK_TEXT_MAX, 0, &n, err) < 0)
        return err_wrap(err, "lock");
    text[n] = '\0';
    *any = owner_parse(text, o);
    return 0;
}

/* Field 22 of /proc/PID/stat; the name before it may hold anything. */
static unsigned long long start_time(pid_t pid)
{
    CLEANUP(closep) int fd = -1;
    char path[40], text[1024], *s;
    ssize_t n;
    int field;

    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
    if (n <= 0)
        return 0;
    text[n] = '\0';
    s = strrchr(text, ')');
    for (field = 2; s && field < 22; field++) {
        s = strchr(s, ' ');
        s = s ? s + 1 : NULL;
    }
    return s ? strtoull(s, NULL, 10) : 0;
}

static int owner_write(int fd, const struct hostinfo *host, const char *verb,
                       struct qstill_error *err)
{
    char text[LOCK_TEXT_MAX];
    int n = snprintf(text, sizeof(text), "%d %llu %.64s %.39s %.31s\n",
                     (int)getpid(), start_time(getpid()),
                     *host->hostname ? host->hostname : "localhost",
                     host->boot_id, verb);

    if (ftruncate(fd, 0) < 0)
        return err_errno(err, errno, "cannot write the lock");
    if (file_write_full(fd, text, (size_t)n, 0, err) < 0) {
        if (err->code != QSTILL_E_NO_SPACE || ftruncate(fd, 0) < 0)
            return err_wrap(err, "lock");
        return err_clear(err);
    }
    /* Other hosts of a network filesystem see it from now on. */
    return file_sync(fd, "the lock", err);
}

static void describe_since(int fd, char *out, size_t len)
{
    struct stat st;
    struct tm tm;

    if (fstat(fd, &st) < 0 || !localtime_r(&st.st_mtime, &tm) ||
        strftime(out, len, "%Y-%m-%d %H:%M:%S", &tm) == 0)
        snprintf(out, len, "unknown");
}

static int busy(int fd, const struct hostinfo *host, struct qstill_error *err)
{
    struct owner o;
    char since[32];
    bool any, here;

    if (owner_read(fd, &o, &any, err) < 0)
        return err->code;
    if (!any) {
        err_set(err, QSTILL_E_BUSY,
                "VM is locked by another qstill that does not say who it is");
        return err_hint(err, "try again when it is done");
    }
    describe_since(fd, since, sizeof(since));
    here = strcmp(o.host, host->hostname) == 0;
    err_set(err, QSTILL_E_BUSY,
            "VM is locked by process %lld%s%s (qstill %s, since %s)", o.pid,
            here ? "" : " on host ", here ? "" : o.host, o.verb, since);
    return err_hint(err, "try again when it is done");
}

static int check_left(int fd, const struct hostinfo *host,
                      struct qstill_error *err)
{
    struct owner o;
    char since[32];
    bool any;

    if (owner_read(fd, &o, &any, err) < 0)
        return err->code;
    /* Either says "this host": names change, and containers have their own. */
    if (!any || strcmp(o.boot, host->boot_id) == 0 ||
        strcmp(o.host, host->hostname) == 0)
        return 0;
    describe_since(fd, since, sizeof(since));
    err_set(err, QSTILL_E_BUSY,
            "VM is locked by process %lld on host %s (qstill %s, since %s), "
            "which did "
            "not release it",
            o.pid, o.host, o.verb, since);
    return err_hint(err,
                    "when no qstill runs on %s any more, remove the file "
                    "\"lock\" in the VM's directory of the store",
                    o.host);
}

/* Whether `fd` is still what the name leads to. */
static bool is_current(int vmdirfd, int fd)
{
    struct stat a, b;

    return fstat(fd, &a) == 0 &&
           fstatat(vmdirfd, LOCK_NAME, &b, AT_SYMLINK_NOFOLLOW) == 0 &&
           a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

/* Whether who is written there is a process of this boot that has ended, or
 * nobody: the owner is about to write its line, or has just emptied it. */
static bool owner_is_unknown(int fd, const struct hostinfo *host)
{
    struct qstill_error ignored = {0};
    struct owner o;
    bool any;

    if (owner_read(fd, &o, &any, &ignored) < 0)
        return false;
    return !any || (strcmp(o.boot, host->boot_id) == 0 &&
                    strcmp(o.host, host->hostname) == 0 &&
                    start_time((pid_t)o.pid) != o.start);
}

static int try_lock(int fd, const struct hostinfo *host,
                    struct qstill_error *err)
{
    struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    double deadline = clock_ms() + HEIR_WAIT_MS;
    int rc;

    while ((rc = fcntl(fd, F_OFD_SETLK, &fl)) < 0 &&
           (errno == EAGAIN || errno == EACCES) && clock_ms() < deadline &&
           owner_is_unknown(fd, host))
        clock_sleep_ms(5);
    if (rc == 0)
        return 0;
    if (errno == EAGAIN || errno == EACCES)
        return busy(fd, host, err);
    return err_errno(err, errno, "cannot lock the VM");
}

int lock_take(int vmdirfd, const char *verb, int *lockfd,
              struct qstill_error *err)
{
    struct hostinfo host = {0};
    int tries;

    if (hostinfo_read_names(&host, err) < 0)
        return err->code;
    for (tries = 0; tries < LOCK_TRIES; tries++) {
        CLEANUP(closep) int fd = -1;

        if (file_openat(vmdirfd, LOCK_NAME, O_RDWR | O_CREAT, 0600, &fd, err) <
                0 ||
            try_lock(fd, &host, err) < 0)
            return err->code;
        if (!is_current(vmdirfd, fd))
            continue;
        if (check_left(fd, &host, err) < 0 ||
            owner_write(fd, &host, verb, err) < 0)
            return err->code;
        *lockfd = take_fd(&fd);
        return 0;
    }
    return err_set(err, QSTILL_E_BUSY,
                   "the lock of the VM is being removed again and again");
}

void lock_release(int *lockfd)
{
    int fd = take_fd(lockfd);

    if (fd < 0)
        return;
    /* A failure is no matter on this host: the kernel's lock goes with fd. */
    if (ftruncate(fd, 0) == 0)
        fdatasync(fd);
    close(fd);
}

int lock_holder(int vmdirfd, struct lock_info *out, struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;
    struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    struct lock_info info = {0};
    struct qstill_error scratch = {0};
    struct owner o;
    struct stat st;
    bool any;

    if (file_openat(vmdirfd, LOCK_NAME, O_RDONLY, 0, &fd, &scratch) < 0) {
        if (scratch.code == QSTILL_E_NOT_FOUND) {
            *out = info;
            return 0;
        }
        *err = scratch;
        return err->code;
    }
    if (fcntl(fd, F_OFD_GETLK, &fl) < 0)
        return err_errno(err, errno, "cannot ask for the lock of the VM");
    if (fl.l_type != F_UNLCK) {
        info.held = true;
        if (owner_read(fd, &o, &any, err) < 0 || fstat(fd, &st) < 0)
            return err_wrap(err, "lock");
        if (any) {
            info.pid = (pid_t)o.pid;
            memcpy(info.host, o.host, sizeof(info.host));
            memcpy(info.verb, o.verb, sizeof(info.verb));
            info.since = st.st_mtime;
        }
    }
    *out = info;
    return 0;
}

/* Whoever takes it, or lets it go, writes to it. */
void lock_look(int vmdirfd, struct lock_look *out)
{
    CLEANUP(closep) int fd = -1;
    struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    struct qstill_error ignored = {0};
    struct stat st;

    *out = (struct lock_look){0};
    if (file_openat(vmdirfd, LOCK_NAME, O_RDONLY, 0, &fd, &ignored) < 0 ||
        fcntl(fd, F_OFD_GETLK, &fl) < 0 || fstat(fd, &st) < 0)
        return;
    out->held = fl.l_type != F_UNLCK;
    out->ino = st.st_ino;
    out->changed = st.st_mtim;
}

static bool is_unwritten(const struct lock_look *before,
                         const struct lock_look *after)
{
    return before->ino == after->ino &&
           before->changed.tv_sec == after->changed.tv_sec &&
           before->changed.tv_nsec == after->changed.tv_nsec;
}

bool lock_was_free(const struct lock_look *before,
                   const struct lock_look *after)
{
    return !before->held && !after->held && is_unwritten(before, after);
}

bool lock_was_one(const struct lock_look *before, const struct lock_look *after)
{
    return before->held && after->held && is_unwritten(before, after);
}

int lock_say_busy(int vmdirfd, struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;
    struct hostinfo host = {0};

    if (hostinfo_read_names(&host, err) < 0 ||
        file_openat(vmdirfd, LOCK_NAME, O_RDONLY, 0, &fd, err) < 0)
        return err->code;
    return busy(fd, &host, err);
}
