/* SPDX-License-Identifier: MIT */
/*
 * Dead merges whose journals stand beside the images. Those of many chains, and
 * of many users, may be in one directory, and one that cannot go on is no
 * reason to leave the others as they are. A merge that begins looks for those
 * alone that are about its own images: the rest is left to its owners, and that
 * it cannot be read is no hindrance.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "merge_impl.h"

static bool is_dropped(const struct merge_request *q, const struct image *img)
{
    struct stat st;

    for (size_t i = 0; i < q->drop_count; i++)
        if (stat(q->drop[i], &st) == 0 && st.st_dev == img->info.dev &&
            st.st_ino == img->info.ino)
            return true;
    return false;
}

/* A layer, or an overlay that takes in what it reads from one that goes. */
static bool is_touched(const struct merge_request *q, const struct chain *c,
                       const struct merge_file *f)
{
    struct stat st;

    if (!f->path)
        return false;
    if (lstat(f->path, &st) < 0)
        return errno != ENOENT;
    for (size_t i = 0; i < c->n; i++) {
        const struct qcow2_info *info = &c->layers[i]->info;

        if ((info->dev == st.st_dev && info->ino == st.st_ino) ||
            (is_dropped(q, c->layers[i]) && children_may_be(c, i, i, f->path)))
            return true;
    }
    return false;
}

static bool names_touched(const struct merge_request *q, const struct chain *c,
                          const struct merge_record *r)
{
    bool yes = is_touched(q, c, &r->target) || is_touched(q, c, &r->result) ||
               is_touched(q, c, &r->upper);

    for (size_t i = 0; i < r->gone_count && !yes; i++)
        yes = is_touched(q, c, &r->gone[i]);
    for (size_t i = 0; i < r->repoint_count && !yes; i++)
        yes = is_touched(q, c, &r->repoint[i].file);
    return yes;
}

/* ---------------------------------------------- one that cannot be read */

/* Layers down to the last that is to go: what the merge reads or changes. */
static size_t layers_at_work(const struct merge_request *q,
                             const struct chain *c)
{
    size_t n = c->n;

    while (n > 1 && !is_dropped(q, c->layers[n - 1]))
        n--;
    return n;
}

/* A merge opens for writing what it changes, and is refused when it cannot. */
static bool may_have_written(const struct chain *c, size_t n, uid_t who)
{
    if (who == 0)
        return true;
    for (size_t i = 0; i < n; i++) {
        struct stat st;

        if (fstat(c->layers[i]->fd, &st) < 0 || st.st_uid == who ||
            (st.st_mode & (S_IWGRP | S_IWOTH)))
            return true;
    }
    return false;
}

static bool has_one_of(const struct chain *other, const struct chain *c,
                       size_t n)
{
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < other->n; k++)
            if (c->layers[i]->info.dev == other->layers[k]->info.dev &&
                c->layers[i]->info.ino == other->layers[k]->info.ino)
                return true;
    return false;
}

/* The chain of the top that it is named after, if that can be read. */
static struct chain *chain_of_journal(const struct io *io, const char *dir,
                                      const char *name)
{
    CLEANUP(closedirp) DIR *d = opendir(dir);
    struct dirent *e;

    while (d && (e = readdir(d))) {
        CLEANUP(freep) char *its = merge_journal_name(e->d_name), *path = NULL;
        struct qstill_error ignored = {0};
        struct chain *c = NULL;

        if (!its || strcmp(its, name) != 0)
            continue;
        if (asprintf(&path, "%s/%s", dir, e->d_name) < 0)
            path = NULL;
        if (path)
            chain_open_foreign(&c, io, path, QCOW2_FORMAT_QCOW2, &ignored);
        return c;
    }
    return NULL;
}

static bool may_concern(const struct io *io, const struct merge_request *q,
                        const char *dir, int dirfd, const char *name)
{
    CLEANUP(chain_closep) struct chain *c = NULL, *other = NULL;
    struct qstill_error ignored = {0};
    struct stat st;
    size_t n;

    if (fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return errno != ENOENT;
    if (chain_open_foreign(&c, io, q->top, QCOW2_FORMAT_QCOW2, &ignored) < 0)
        return true;
    other = chain_of_journal(io, dir, name);
    if (other && !has_one_of(other, c, c->n))
        return false;
    n = layers_at_work(q, c);
    return (other && has_one_of(other, c, n)) ||
           may_have_written(c, n, st.st_uid);
}

/* -------------------------------------------------------------------- any */

/* Whether a journal is about images of the merge. Another user's is believed,
 * too: what it can do by a lie is to keep the merge waiting, or not to. */
static bool concerns(const struct io *io, const struct merge_request *q,
                     const char *dir, int dirfd, const char *name)
{
    CLEANUP(merge_journal_fini) struct merge_journal j = MERGE_JOURNAL_INIT;
    CLEANUP(merge_record_fini) struct merge_record r = {0};
    CLEANUP(chain_closep) struct chain *c = NULL;
    struct qstill_error err = {0};
    bool whole;

    if (merge_journal_look(&j, io, dirfd, name, &err) < 0 ||
        merge_journal_read(&j, &r, &whole, &err) < 0)
        return err.code != QSTILL_E_NOT_FOUND &&
               may_concern(io, q, dir, dirfd, name);
    if (!whole) /* nothing had begun */
        return false;
    if (chain_open_foreign(&c, io, q->top, QCOW2_FORMAT_QCOW2, &err) < 0)
        return true;
    return names_touched(q, c, &r);
}

/* The journal is that of the merge that is asked for. */
static int read_asked(const struct io *io, int dirfd, const char *name,
                      struct merge_asked *asked)
{
    CLEANUP(merge_journal_fini) struct merge_journal j = MERGE_JOURNAL_INIT;
    struct qstill_error ignored = {0};

    return merge_journal_open(&j, io, dirfd, name, &ignored) < 0
               ? 0
               : merge_journal_asked(&j, asked, &ignored);
}

/* `before`, `own`, the name of its journal, and `asked` may be NULL. */
static int recover_all(const struct io *io, const char *dir,
                       const struct merge_request *before, const char *own,
                       const struct merge_recovery *how, bool *did,
                       struct merge_asked *asked, struct qstill_error *err)
{
    CLEANUP(closedirp) DIR *d = opendir(dir);
    struct qstill_error first = {0};
    struct dirent *e;

    *did = false;
    if (!d)
        return err_errno(err, errno, "cannot look into %s", dir);
    while ((e = readdir(d))) {
        struct qstill_error why = {0};
        bool one = false, is_own;

        if (strncmp(e->d_name, MERGE_JOURNAL, strlen(MERGE_JOURNAL)) != 0)
            continue;
        is_own = own && strcmp(e->d_name, own) == 0;
        if (before && !is_own &&
            !concerns(io, before, dir, dirfd(d), e->d_name))
            continue;
        if (is_own && read_asked(io, dirfd(d), e->d_name, asked) < 0)
            return err_nomem(err);
        if (merge_recover(io, dirfd(d), e->d_name, how, &one, &why) == 0) {
            *did |= one;
        } else if (why.code == QSTILL_E_CANCELLED) {
            *err = why;
            return err->code;
        } else if (why.code != QSTILL_E_BUSY && !first.code) {
            first = why;
        }
    }
    if (first.code)
        *err = first;
    return first.code;
}

int merge_recover_dir(const struct io *io, const char *dir, bool *did,
                      struct qstill_error *err)
{
    return recover_all(io, dir, NULL, NULL, NULL, did, NULL, err);
}

int merge_recover_before(const struct io *io,
                         const struct merge_request *request,
                         const struct merge_recovery *how, bool *did,
                         struct merge_asked *asked, struct qstill_error *err)
{
    CLEANUP(freep) char *dir = path_dir(request->top);
    CLEANUP(freep) char *own = merge_journal_name(request->top);

    if (!dir || !own)
        return err_nomem(err);
    return recover_all(io, dir[0] ? dir : ".", request, own, how, did, asked,
                       err);
}

int merge_look_at_asked(const struct io *io, const char *top,
                        struct merge_asked *asked, struct qstill_error *err)
{
    CLEANUP(freep) char *name = merge_journal_name(top);
    CLEANUP(closep) int dirfd = -1;
    const char *base;

    if (!name)
        return err_nomem(err);
    if (path_open_dir(top, &dirfd, &base, err) < 0) /* the plan will say so */
        return err_clear(err);
    return read_asked(io, dirfd, name, asked) < 0 ? err_nomem(err) : 0;
}
