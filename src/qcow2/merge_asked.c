/* SPDX-License-Identifier: MIT */
#include "merge_asked.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "chain.h"
#include "merge.h"
#include "merge_names.h"

static bool is_in_list(const struct merge_asked *a, const struct merge_file *f)
{
    for (size_t i = 0; i < a->n; i++)
        if (a->v[i].is_child == f->is_child &&
            path_is_same_name(a->v[i].path, f->path) &&
            (f->id.ino == 0 || merge_id_same(&a->v[i].id, &f->id)))
            return true;
    return false;
}

static int add(struct merge_asked *a, const char *path,
               const struct merge_id *id, bool is_child,
               struct qstill_error *err)
{
    struct merge_file f = {.is_child = is_child}, *v;

    if (path_absolute(path, &f.path, err) < 0)
        return err->code;
    if (id)
        f.id = *id;
    if (is_in_list(a, &f)) {
        free(f.path);
        return 0;
    }
    v = realloc(a->v, (a->n + 1) * sizeof(*v));
    if (!v) {
        free(f.path);
        return err_nomem(err);
    }
    a->v = v;
    v[a->n++] = f;
    return 0;
}

int merge_asked_add(struct merge_asked *a, const char *path,
                    const struct merge_id *id, struct qstill_error *err)
{
    return add(a, path, id, false, err);
}

int merge_asked_add_child(struct merge_asked *a, const char *path,
                          struct qstill_error *err)
{
    return add(a, path, NULL, true, err);
}

static bool is_alone(const struct io *io, const char *path)
{
    CLEANUP(qcow2_info_fini) struct qcow2_info info = {0};
    struct qstill_error ignored = {0};

    return qcow2_info_read(io, AT_FDCWD, path, QCOW2_FORMAT_QCOW2, &info,
                           &ignored) == 0 &&
           !info.header.has_backing;
}

bool merge_asked_is_alone(const struct io *io, const struct merge_asked *a,
                          const char *path)
{
    for (size_t i = 0; i < a->n; i++)
        if (a->v[i].is_child && path_is_same_name(a->v[i].path, path))
            return is_alone(io, path);
    return false;
}

bool merge_asked_has_gone(const struct merge_asked *a, const char *path)
{
    if (merge_id_look(path, NULL, false, NULL) != MERGE_ABSENT)
        return false;
    for (size_t i = 0; i < a->n; i++)
        if (!a->v[i].is_child && path_is_same_name(a->v[i].path, path))
            return true;
    return false;
}

/* ---------------------------------------------------------------------- end */

static bool is_layer(const struct chain *c, const struct merge_file *f)
{
    struct merge_id now;

    if (merge_id_look(f->path, &f->id, false, &now) != MERGE_SAME)
        return false;
    for (size_t i = 1; i < c->n; i++)
        if (c->layers[i]->info.dev == now.dev &&
            c->layers[i]->info.ino == now.ino)
            return true;
    return false;
}

/* A chain that cannot be read now may be whole another time. */
static bool is_one_a_layer(const struct io *io, const struct merge_asked *a)
{
    CLEANUP(chain_closep) struct chain *c = NULL;
    struct qstill_error ignored = {0};

    if (chain_open_foreign(&c, io, a->top, QCOW2_FORMAT_QCOW2, &ignored) < 0)
        return merge_id_look(a->top, NULL, false, NULL) != MERGE_ABSENT;
    for (size_t i = 0; i < a->n; i++)
        if (!a->v[i].is_child && is_layer(c, &a->v[i]))
            return true;
    return false;
}

/* Whether some have gone, or need not be told of any more, and others have not.
 */
static bool is_between(const struct io *io, const struct merge_asked *a)
{
    bool gone = false, there = false;

    for (size_t i = 0; i < a->n; i++) {
        const struct merge_file *f = &a->v[i];
        enum merge_there is = merge_id_look(f->path, &f->id, false, NULL);

        if (f->is_child) {
            gone |= is_alone(io, f->path);
            continue;
        }
        gone |= is == MERGE_ABSENT;
        there |= is == MERGE_SAME;
    }
    return a->top && gone && there && is_one_a_layer(io, a);
}

int merge_journal_end(struct merge_journal *j, struct qstill_error *err)
{
    CLEANUP(merge_asked_fini) struct merge_asked a = {0};

    if (merge_journal_asked(j, &a, err) < 0)
        return err->code;
    return is_between(j->io, &a) ? merge_journal_clear(j, err)
                                 : merge_journal_remove(j, err);
}

static void end_idle(const struct io *io, int dirfd, const char *name)
{
    CLEANUP(merge_journal_fini) struct merge_journal j = MERGE_JOURNAL_INIT;
    CLEANUP(merge_record_fini) struct merge_record r = {0};
    struct qstill_error ignored = {0};
    struct stat st;
    bool whole;

    /* an empty one is about to be locked by whoever has just made it */
    if (fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) < 0 || st.st_size == 0)
        return;
    if (merge_journal_open(&j, io, dirfd, name, &ignored) == 0 &&
        merge_journal_read(&j, &r, &whole, &ignored) == 0 && !whole)
        merge_journal_end(&j, &ignored);
}

void merge_journal_end_idle(const struct io *io, int dirfd)
{
    CLEANUP(closedirp) DIR *d = NULL;
    int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct dirent *e;

    if (fd < 0)
        return;
    d = fdopendir(fd);
    if (!d)
        closep(&fd);
    while (d && (e = readdir(d)))
        if (strncmp(e->d_name, MERGE_JOURNAL, strlen(MERGE_JOURNAL)) == 0)
            end_idle(io, dirfd, e->d_name);
}
