/* SPDX-License-Identifier: MIT */
#include "children.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "children_impl.h"
#include "merge.h"
#include "merge_names.h"

/* A directory with more entries is no place of images. */
#define MAX_ENTRIES 1000000u

void children_fini(struct children *ch)
{
    for (size_t i = 0; i < ch->n; i++)
        free(ch->v[i].path);
    free(ch->v);
    *ch = (struct children){0};
}

/* What a file is, without a word on whether it concerns us. */
static int read_entry(const struct search *s, int fd, struct seen_file *e,
                      struct qstill_error *err)
{
    if (fstat(fd, &e->st) < 0)
        return err_errno(err, errno, "cannot stat %s", e->path);
    e->settled = seen_is_settled(&e->st);
    if (stored_names_read(s->io, fd, &e->names, err) < 0)
        return err_wrap(err, "%s", e->path);
    return 0;
}

static int visit_names(struct search *s, const char *path,
                       const struct stored_names *names, bool fixed,
                       struct qstill_error *err)
{
    CLEANUP(freep) char *backing = NULL;
    struct overlay o = {.path = path, .fixed = true};

    if (names->data_untold && s->v->visit(s->v->user, &o, err) < 0)
        return err->code;
    for (size_t i = 0; i < names->data_count; i++) {
        o.name = names->data[i];
        if (s->v->visit(s->v->user, &o, err) < 0)
            return err->code;
    }
    if (!names->backing)
        return 0;
    if (chain_resolve(path, names->backing, &backing, err) < 0) {
        if (err->code != QSTILL_E_PRECONDITION)
            return err->code;
        err_clear(err);
    }
    o = (struct overlay){path, names->backing, backing, fixed};
    return s->v->visit(s->v->user, &o, err);
}

static int visit(struct search *s, const struct seen_file *e,
                 struct qstill_error *err)
{
    return visit_names(s, e->path, &e->names, stored_names_is_qed(&e->names),
                       err);
}

/* The file itself may have another name than the one it goes by. */
static int look_at(struct search *s, const char *path, const char *real,
                   struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;
    struct seen_file e = {.path = strdup(path)};
    int r;

    if (!e.path)
        return err_nomem(err);
    r = io_openat(s->io, AT_FDCWD, real, O_RDONLY, 0, &fd, err);
    if (r == 0)
        r = read_entry(s, fd, &e, err);
    if (r == 0)
        r = s->judge(s, &e, err);
    seen_file_fini(&e);
    return r;
}

/* Gone meanwhile; a link, or no regular file; another user's, or the journal of
 * a merge of theirs. */
static bool is_nothing(const struct search *s, int dirfd, const char *name,
                       const struct qstill_error *why)
{
    struct stat st;

    if (why->code != QSTILL_E_PERMISSION)
        return why->code == QSTILL_E_NOT_FOUND ||
               why->code == QSTILL_E_PRECONDITION;
    return strncmp(name, MERGE_JOURNAL, strlen(MERGE_JOURNAL)) == 0 ||
           (fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
            cannot_stand_on(s, &st));
}

/* A file of a directory; `e` has its path. One that cannot be looked into may
 * be an overlay: then nothing is merged. */
static int look_at_new(struct search *s, int dirfd, const char *name,
                       struct seen_file *e, struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;

    if (io_openat(s->io, dirfd, name, O_RDONLY, 0, &fd, err) < 0) {
        if (is_nothing(s, dirfd, name, err))
            return err_clear(err);
        err_wrap(err, "it may stand on a layer that goes: %s", e->path);
        return err_hint(err, "make it readable, or move it elsewhere");
    }
    if (read_entry(s, fd, e, err) < 0 || s->judge(s, e, err) < 0)
        return err->code;
    return s->seen ? seen_put(s->seen, e, err) : 0;
}

static int look_at_entry(struct search *s, int dirfd, const char *dir,
                         const char *name, struct qstill_error *err)
{
    struct seen_file e = {0};
    const struct seen_file *old;
    int r = 0;

    if (asprintf(&e.path, "%s%s", dir, name) < 0) {
        e.path = NULL;
        return err_nomem(err);
    }
    old = seen_find(s->seen, e.path);
    if (!s->v || !s->v->knows || !s->v->knows(s->v->user, e.path))
        r = old && seen_is_as_it_was(old, dirfd, name)
                ? s->judge(s, old, err)
                : look_at_new(s, dirfd, name, &e, err);
    seen_file_fini(&e);
    return r;
}

int names_behind_link(const struct search *s, const char *path,
                      const char *real, struct stored_names *names,
                      struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;

    if (io_openat(s->io, AT_FDCWD, real, O_RDONLY, 0, &fd, err) < 0 ||
        stored_names_read(s->io, fd, names, err) < 0)
        return err_wrap(err, "it may stand on a layer that goes: %s", path);
    return 0;
}

/* One into its own folder is a second name of what is visited there. */
static int visit_link(struct search *s, const char *path, const char *real,
                      struct qstill_error *err)
{
    const char *slash = strrchr(path, '/'), *end = strrchr(real, '/');
    CLEANUP(freep)
    char *dir = strndup(path, slash ? (size_t)(slash - path) + 1 : 0);
    CLEANUP(freep) char *home = dir ? realpath(*dir ? dir : ".", NULL) : NULL;
    CLEANUP(stored_names_fini) struct stored_names names = {0};

    if (home && strlen(home) == (size_t)(end - real) &&
        strncmp(home, real, strlen(home)) == 0)
        return 0;
    return names_behind_link(s, path, real, &names, err) < 0
               ? err->code
               : visit_names(s, path, &names, true, err);
}

/* QEMU opens an image by a link, too, and takes the name of its backing file
 * from where the link stands: no merge could give it a name that is right there
 * and where the image is. Asked last, when the overlays are known. */
static int look_at_link(struct search *s, int dirfd, const char *dir,
                        const char *name, struct qstill_error *err)
{
    CLEANUP(freep) char *path = NULL, *real = NULL;
    struct stat st;

    if (fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) < 0 ||
        !S_ISLNK(st.st_mode))
        return 0;
    if (asprintf(&path, "%s%s", dir, name) < 0) {
        path = NULL;
        return err_nomem(err);
    }
    if (fstatat(dirfd, name, &st, 0) < 0 ||
        (S_ISREG(st.st_mode) && !(real = realpath(path, NULL)))) {
        if (errno == ENOENT || errno == ENOTDIR || errno == ELOOP)
            return 0; /* it leads nowhere */
        return err_errno(err, errno, "it may stand on a layer that goes: %s",
                         path);
    }
    if (!real)
        return 0;
    return s->v ? visit_link(s, path, real, err)
                : judge_link(s, path, real, &st, err);
}

/* The files, or the links, of a directory; `dir` ends with a slash, or is
 * empty. */
static int look_into(struct search *s, const char *dir, bool links,
                     struct qstill_error *err)
{
    CLEANUP(closedirp) DIR *d = opendir(dir[0] ? dir : ".");
    size_t n = 0;
    struct dirent *e;

    if (!d)
        return err_errno(err, errno, "cannot look for overlays in %s",
                         dir[0] ? dir : ".");
    while ((errno = 0, e = readdir(d))) {
        if (++n > MAX_ENTRIES)
            return err_set(err, QSTILL_E_PRECONDITION,
                           "%s has too many entries to look for overlays", dir);
        if (e->d_type != (links ? DT_LNK : DT_REG) && e->d_type != DT_UNKNOWN)
            continue;
        if ((links ? look_at_link : look_at_entry)(s, dirfd(d), dir, e->d_name,
                                                   err) < 0)
            return err->code;
    }
    return errno ? err_errno(err, errno, "cannot look for overlays in %s",
                             dir[0] ? dir : ".")
                 : 0;
}

static int look_into_all(struct search *s, bool links, struct qstill_error *err)
{
    const struct chain *c = s->c;

    for (size_t i = 0; i < c->n; i++) {
        CLEANUP(freep) char *dir = path_dir(c->layers[i]->path);
        bool seen = false;

        if (!dir)
            return err_nomem(err);
        for (size_t k = 0; k < i && !seen; k++)
            seen = path_same_dir(c->layers[k]->path, c->layers[i]->path);
        if (!seen && look_into(s, dir, links, err) < 0)
            return err->code;
    }
    return 0;
}

int children_find(const struct chain *c, size_t first, size_t last,
                  const char *const *named, size_t named_count,
                  struct children_seen *seen, struct children *out,
                  struct qstill_error *err)
{
    struct search s = {.io = c->io,
                       .seen = seen,
                       .judge = judge_child,
                       .c = c,
                       .first = first,
                       .last = last,
                       .named = true,
                       .out = out};

    for (size_t i = 0; i < named_count; i++)
        if (look_at(&s, named[i], named[i], err) < 0)
            return err_wrap(err, "child");
    s.named = false;
    if (look_into_all(&s, false, err) < 0 || look_into_all(&s, true, err) < 0)
        return err->code;
    s.judge = judge_reader;
    return out->n > 0 ? look_into_all(&s, false, err) : 0;
}

bool children_may_be(const struct chain *c, size_t first, size_t last,
                     const char *path)
{
    CLEANUP(children_fini) struct children found = {0};
    struct search s = {.io = c->io,
                       .judge = judge_child,
                       .c = c,
                       .first = first,
                       .last = last,
                       .out = &found};
    struct qstill_error ignored = {0};

    return look_at(&s, path, path, &ignored) < 0 || found.n > 0;
}

int children_each(const struct io *io, const char *dir,
                  struct children_seen *seen, const struct overlay_visitor *v,
                  struct qstill_error *err)
{
    struct search s = {.io = io, .seen = seen, .judge = visit, .v = v};

    return look_into(&s, dir, false, err) < 0 ? err->code
                                              : look_into(&s, dir, true, err);
}

int children_look_at(const struct io *io, const char *path,
                     const struct overlay_visitor *v, struct qstill_error *err)
{
    struct search s = {.io = io, .judge = visit, .v = v};
    CLEANUP(freep) char *real = realpath(path, NULL);
    struct stat st;

    if (!real)
        return err_errno(err, errno, "cannot find %s", path);
    if (stat(real, &st) == 0 && !S_ISREG(st.st_mode))
        return 0;
    return look_at(&s, path, real, err);
}
