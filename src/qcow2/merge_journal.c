/* SPDX-License-Identifier: MIT */
/* The journal's file; what stands in it is merge_journal_text.c's. */
#include "merge_journal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/sum.h"

#define MAX_JOURNAL ((size_t)16 << 20) /* 4096 files with long names */

void merge_journal_fini(struct merge_journal *j)
{
    closep(&j->fd);
    closep(&j->dirfd);
    free(j->name);
    *j = (struct merge_journal)MERGE_JOURNAL_INIT;
}

static int take(struct merge_journal *j, const struct io *io, int dirfd,
                const char *name, struct qstill_error *err)
{
    j->io = io;
    j->dirfd = fcntl(dirfd, F_DUPFD_CLOEXEC, 0);
    if (j->dirfd < 0)
        return err_errno(err, errno, "cannot keep the journal's directory");
    j->name = strdup(name);
    return j->name ? 0 : err_nomem(err);
}

/* False: another process has it. */
static bool lock(int fd)
{
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1};

    return fcntl(fd, F_OFD_SETLK, &l) == 0 ||
           (errno != EAGAIN && errno != EACCES);
}

static int foreign(struct qstill_error *err)
{
    return err_hint(err,
                    "run the merge as the user it belongs to; or look into it, "
                    "then remove it, or make it a file of yours alone (chown, "
                    "chmod 600)");
}

static bool is_ours(const struct stat *st)
{
    return (st->st_uid == geteuid() || st->st_uid == 0) &&
           !(st->st_mode & (S_IWGRP | S_IWOTH));
}

/* A journal says which files to rename and to remove, anywhere; the directory
 * may be another user's. So it must be our own or root's; and have one name
 * where others give names, for they could give one to some file of root's. (In
 * a directory of our own it may be part of a copy by links.) */
static int check_origin(const struct merge_journal *j, struct qstill_error *err)
{
    struct stat st, dir;

    if (fstat(j->fd, &st) < 0 || fstat(j->dirfd, &dir) < 0)
        return err_errno(err, errno, "cannot stat %s", j->name);
    if (st.st_nlink == 0) /* recovered by another process just now */
        return err_set(err, QSTILL_E_NOT_FOUND, "%s is gone", j->name);
    if (is_ours(&st) && (st.st_nlink == 1 || is_ours(&dir)))
        return 0;
    err_set(err, QSTILL_E_PRECONDITION,
            "%s, the journal of an unfinished merge, may be another user's "
            "work (owner %u, mode %03o, %u names)",
            j->name, st.st_uid, st.st_mode & 07777, (unsigned)st.st_nlink);
    return foreign(err);
}

int merge_journal_open(struct merge_journal *j, const struct io *io, int dirfd,
                       const char *name, struct qstill_error *err)
{
    if (take(j, io, dirfd, name, err) < 0)
        return err->code;
    if (io_openat(io, dirfd, name, O_RDWR, 0, &j->fd, err) < 0)
        return err->code == QSTILL_E_PRECONDITION ||
                       err->code == QSTILL_E_PERMISSION
                   ? foreign(err)
                   : err->code;
    if (!lock(j->fd))
        return err_set(err, QSTILL_E_BUSY, "a merge is under way (%s)", name);
    return check_origin(j, err);
}

int merge_journal_look(struct merge_journal *j, const struct io *io, int dirfd,
                       const char *name, struct qstill_error *err)
{
    return take(j, io, dirfd, name, err) < 0
               ? err->code
               : io_openat(io, dirfd, name, O_RDONLY, 0, &j->fd, err);
}

static int under_way(const char *name, struct qstill_error *err)
{
    return err_set(err, QSTILL_E_BUSY,
                   "another merge of this chain is under way (%s)", name);
}

/* One that stands there: nobody's, and without a record. */
static int take_idle(struct merge_journal *j, const struct io *io, int dirfd,
                     const char *name, struct qstill_error *err)
{
    CLEANUP(merge_record_fini) struct merge_record r = {0};
    bool whole = true;

    if (merge_journal_open(j, io, dirfd, name, err) < 0)
        return err->code == QSTILL_E_NOT_FOUND ? under_way(name, err)
                                               : err->code;
    if (merge_journal_read(j, &r, &whole, err) < 0)
        return err->code;
    return whole ? under_way(name, err) : merge_journal_clear(j, err);
}

int merge_journal_begin(struct merge_journal *j, const struct io *io, int dirfd,
                        const char *name, struct qstill_error *err)
{
    struct stat st;

    if (take(j, io, dirfd, name, err) < 0)
        return err->code;
    if (io_openat(io, dirfd, name, O_RDWR | O_CREAT | O_EXCL, 0600, &j->fd,
                  err) < 0) {
        if (err->code != QSTILL_E_BUSY)
            return err->code;
        merge_journal_fini(j);
        return take_idle(j, io, dirfd, name, err);
    }
    /* whoever recovers may have found it before it was locked */
    return !lock(j->fd) || fstat(j->fd, &st) < 0 || st.st_nlink == 0
               ? under_way(name, err)
               : 0;
}

/* Of an open directory, as it is called now. */
static char *dir_name(int dirfd, struct qstill_error *err)
{
    char link[64], path[PATH_MAX];
    char *r;
    ssize_t n;

    snprintf(link, sizeof(link), "/proc/self/fd/%d", dirfd);
    n = readlink(link, path, sizeof(path) - 1);
    if (n < 0) {
        err_errno(err, errno, "cannot tell the journal's directory");
        return NULL;
    }
    path[n] = '\0';
    r = strdup(path);
    if (!r)
        err_nomem(err);
    return r;
}

char *merge_journal_path(int dirfd, const char *name)
{
    struct qstill_error ignored = {0};
    CLEANUP(freep) char *dir = dir_name(dirfd, &ignored);
    char *path;

    return dir && asprintf(&path, "%s/%s", dir, name) >= 0 ? path : NULL;
}

static int read_all(struct merge_journal *j, uint8_t **out, size_t *got,
                    struct qstill_error *err)
{
    struct stat st;

    if (fstat(j->fd, &st) < 0)
        return err_errno(err, errno, "cannot stat %s", j->name);
    if ((uint64_t)st.st_size > MAX_JOURNAL)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the journal of a merge is not understood");
    *out = malloc((size_t)st.st_size + 1);
    if (!*out)
        return err_nomem(err);
    if (io_read_upto(j->io, j->fd, *out, (size_t)st.st_size, 0, got, err) < 0)
        return err_wrap(err, "%s", j->name);
    return 0;
}

int merge_journal_read(struct merge_journal *j, struct merge_record *r,
                       bool *whole, struct qstill_error *err)
{
    CLEANUP(freep) char *dir = dir_name(j->dirfd, err);
    CLEANUP(freep) uint8_t *data = NULL;
    size_t got;

    if (!dir || read_all(j, &data, &got, err) < 0 ||
        merge_record_parse(r, dir, data, got, &j->start, &j->len, err) < 0)
        return err->code;
    *whole = j->len > j->start;
    return 0;
}

int merge_journal_asked(struct merge_journal *j, struct merge_asked *a,
                        struct qstill_error *err)
{
    CLEANUP(freep) char *dir = dir_name(j->dirfd, err);
    CLEANUP(freep) uint8_t *data = NULL;
    size_t got;

    if (!dir || read_all(j, &data, &got, err) < 0)
        return err->code;
    return merge_asked_parse(a, dir, data, got, &j->start, err);
}

int merge_journal_write(struct merge_journal *j, const struct merge_record *r,
                        struct qstill_error *err)
{
    CLEANUP(freep) char *dir = dir_name(j->dirfd, err);
    CLEANUP(buf_fini) struct buf text = BUF_INIT;

    if (!dir || merge_record_emit(r, dir, &text, err) < 0)
        return err->code;
    if (io_write_full(j->io, j->fd, text.data, text.len, j->len, err) < 0 ||
        io_sync(j->io, j->fd, j->name, err) < 0 ||
        io_sync(j->io, j->dirfd, "the journal's directory", err) < 0)
        return err_wrap(err, "journal");
    j->len += text.len;
    return 0;
}

int merge_journal_made(struct merge_journal *j, const struct merge_id *id,
                       struct qstill_error *err)
{
    char text[128];
    int n =
        snprintf(text, sizeof(text), "made %" PRIu64 " %" PRIu64 " %" PRId64,
                 id->dev, id->ino, id->born_ns);

    n += snprintf(text + n, sizeof(text) - (size_t)n, " %016" PRIx64 "\n",
                  sum_bytes(text, (size_t)n, 0));
    if (io_write_full(j->io, j->fd, text, (size_t)n, j->len, err) < 0 ||
        io_datasync(j->io, j->fd, j->name, err) < 0)
        return err_wrap(err, "journal");
    return 0;
}

/* What stands there already is written as it is, so that none of it is lost. */
int merge_journal_ask(struct merge_journal *j, const struct merge_asked *a,
                      struct qstill_error *err)
{
    CLEANUP(freep) char *dir = dir_name(j->dirfd, err);
    CLEANUP(buf_fini) struct buf text = BUF_INIT;

    if (!dir || merge_asked_emit(a, dir, &text, err) < 0)
        return err->code;
    if (io_write_full(j->io, j->fd, text.data, text.len, 0, err) < 0)
        return err_wrap(err, "journal");
    j->start = j->len = text.len;
    return 0;
}

int merge_journal_clear(struct merge_journal *j, struct qstill_error *err)
{
    struct stat st;

    if (fstat(j->fd, &st) < 0)
        return err_errno(err, errno, "cannot stat %s", j->name);
    j->len = j->start;
    if ((uint64_t)st.st_size == j->start)
        return 0;
    if (io_truncate(j->io, j->fd, j->start, j->name, err) < 0 ||
        io_sync(j->io, j->fd, j->name, err) < 0)
        return err_wrap(err, "journal");
    return 0;
}

int merge_journal_remove(struct merge_journal *j, struct qstill_error *err)
{
    return io_unlink(j->io, j->dirfd, j->name, err);
}
