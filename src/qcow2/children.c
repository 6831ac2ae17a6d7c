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
#include "backing_name.h"
#include "children_seen.h"
#include "merge_names.h"

/* A directory with more entries is no place of images. */
#define MAX_ENTRIES 1000000u

struct search {
    const struct io *io;
    struct children_seen *seen; /* may be NULL */
    int (*judge)(struct search *s, const struct seen_file *e,
                 struct qstill_error *err);
    /* of a chain: */
    const struct chain *c;
    size_t first, last;
    struct children *out;
    /* of all: */
    const struct overlay_visitor *v;
};

void children_fini(struct children *ch)
{
    for (size_t i = 0; i < ch->n; i++)
        free(ch->v[i].path);
    free(ch->v);
    *ch = (struct children){0};
}

/* ------------------------------------------------------------ the overlays */

static bool is_layer(const struct chain *c, const struct stat *st, size_t first,
                     size_t last, size_t *which)
{
    for (size_t i = first; i <= last; i++) {
        const struct qcow2_info *info = &c->layers[i]->info;

        if (info->dev == st->st_dev && info->ino == st->st_ino) {
            *which = i;
            return true;
        }
    }
    return false;
}

static int add(struct search *s, const char *path, size_t parent,
               struct qstill_error *err)
{
    struct child *v;
    char *copy;

    for (size_t i = 0; i < s->out->n; i++) /* named, and in a directory */
        if (strcmp(s->out->v[i].path, path) == 0)
            return 0;
    copy = strdup(path);
    v = realloc(s->out->v, (s->out->n + 1) * sizeof(*v));
    if (v)
        s->out->v = v;
    if (!v || !copy) {
        free(copy);
        return err_nomem(err);
    }
    v[s->out->n++] = (struct child){copy, parent};
    return 0;
}

/* The same file under two names (a link, ./) is one child. */
static bool known(const struct search *s, const struct stat *st)
{
    for (size_t i = 0; i < s->out->n; i++) {
        struct stat other;

        if (stat(s->out->v[i].path, &other) == 0 &&
            other.st_dev == st->st_dev && other.st_ino == st->st_ino)
            return true;
    }
    return false;
}

struct mention {
    const struct search *s;
    bool yes;
    size_t which;
};

/* By the file, or, as it may be meant from elsewhere, by its name alone. */
static int is_mentioned(void *user, const char *path, struct qstill_error *err)
{
    struct mention *m = user;
    const struct chain *c = m->s->c;
    const char *name = path_base(path);
    struct stat st;

    (void)err;
    if (!m->yes && stat(path, &st) == 0)
        m->yes = is_layer(c, &st, m->s->first, m->s->last, &m->which);
    for (size_t i = m->s->first; !m->yes && i <= m->s->last; i++) {
        m->which = i;
        m->yes = strcmp(name, path_base(c->layers[i]->path)) == 0;
    }
    return 0;
}

static int names_layer(const struct search *s, const char *path,
                       const char *name, bool *yes, size_t *which,
                       struct qstill_error *err)
{
    CLEANUP(freep) char *backing = NULL;
    struct mention m = {.s = s};
    struct stat st;

    *yes = false;
    if (chain_resolve(path, name, &backing, err) < 0) {
        if (err->code != QSTILL_E_PRECONDITION)
            return err->code;
        err_clear(err);
        if (backing_name_files(path, name, is_mentioned, &m, err) < 0)
            return err->code;
        *yes = m.yes;
        *which = m.which;
        return 0;
    }
    if (stat(backing, &st) == 0) {
        *yes = is_layer(s->c, &st, s->first, s->last, which);
        return 0;
    }
    /* as another host or a container names it, perhaps */
    if (is_mentioned(&m, backing, err) < 0 || !m.yes)
        return err->code;
    err_set(err, QSTILL_E_PRECONDITION,
            "%s may stand on %s: its backing file %s cannot be found from here",
            path, s->c->layers[m.which]->path, name);
    return err_hint(err, "qemu-img rebase -u gives it the right name; or "
                         "remove it, or move it elsewhere");
}

/* An overlay of ours must be one that a merge can deal with: without its layer
 * it would be lost. */
static int take_child(struct search *s, const char *path, int fd, size_t which,
                      struct qstill_error *err)
{
    CLEANUP(image_closep) struct image *img = NULL;
    CLEANUP(freep) char *backing = NULL;
    enum qcow2_format format;

    if (image_open_fd(&img, s->c->io, path, fd, QCOW2_FORMAT_QCOW2, err) < 0 ||
        chain_backing_of(img, &backing, &format, err) < 0)
        return err_wrap(err, "%s stands on %s and cannot be dealt with", path,
                        s->c->layers[which]->path);
    return add(s, path, which, err);
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

/* The name of a data file is not taken from where the image is, but from where
 * QEMU is. */
static int check_data_file(const struct search *s, const char *path,
                           const struct stored_names *names,
                           struct qstill_error *err)
{
    struct mention m = {.s = s};

    for (size_t i = 0; i < names->data_count; i++)
        if (backing_name_files(path, names->data[i], is_mentioned, &m, err) < 0)
            return err->code;
    for (size_t i = s->first; names->data_untold && !m.yes && i <= s->last; i++)
        if (s->c->layers[i]->info.format == QCOW2_FORMAT_RAW) {
            m.yes = true;
            m.which = i;
        }
    return m.yes ? err_set(err, QSTILL_E_PRECONDITION, "%s %s its data in %s",
                           path, names->data_untold ? "may have" : "has",
                           s->c->layers[m.which]->path)
                 : 0;
}

static bool same_folder(const char *a, const char *b)
{
    CLEANUP(freep) char *x = path_dir(a), *y = path_dir(b);
    struct stat p, q;

    return x && y && stat(*x ? x : ".", &p) == 0 &&
           stat(*y ? y : ".", &q) == 0 && p.st_dev == q.st_dev &&
           p.st_ino == q.st_ino;
}

/* A second name, by a link of either kind, of a layer or of an overlay that
 * will get another backing name (`changes`). QEMU takes a relative one from
 * where it opens the image: in another folder than its own that is another
 * image, which would lose its layer, or show something else. */
static int judge_name(struct search *s, const char *path, const char *own,
                      const char *name, bool changes, struct qstill_error *err)
{
    CLEANUP(freep) char *backing = NULL;
    struct stat st;
    size_t which;

    if (!name || name[0] == '/' || same_folder(path, own))
        return 0;
    if (chain_resolve(path, name, &backing, err) < 0)
        return err->code == QSTILL_E_PRECONDITION /* json: the same there */
                   ? err_clear(err)
                   : err->code;
    if (stat(backing, &st) < 0 ||
        (!changes && !is_layer(s->c, &st, s->first, s->last, &which)))
        return 0;
    err_set(err, QSTILL_E_PRECONDITION,
            "%s is a name of %s, and from there its backing file %s is another",
            path, own, name);
    return err_hint(err, "remove that link, or put an image of its own there");
}

static int judge_child(struct search *s, const struct seen_file *e,
                       struct qstill_error *err)
{
    size_t which = 0;
    bool yes;
    int fd;

    if (is_layer(s->c, &e->st, 0, s->c->n - 1, &which))
        return judge_name(s, e->path, s->c->layers[which]->path,
                          e->names.backing, which + 1 == s->first, err);
    if (check_data_file(s, e->path, &e->names, err) < 0)
        return err->code;
    if (!e->names.backing)
        return 0;
    if (names_layer(s, e->path, e->names.backing, &yes, &which, err) < 0)
        return err->code;
    if (!yes || known(s, &e->st))
        return 0;
    if (e->names.qed)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "%s, a qed image, stands on %s: only qcow2 overlays can "
                       "be dealt with",
                       e->path, s->c->layers[which]->path);
    if (io_openat(s->io, AT_FDCWD, e->path, O_RDONLY, 0, &fd, err) < 0)
        return err->code;
    return take_child(s, e->path, fd, which, err);
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
    return visit_names(s, e->path, &e->names, e->names.qed, err);
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

/* A file of a directory; `e` has its path. One that cannot be looked into may
 * be an overlay: then nothing is merged. */
static int look_at_new(struct search *s, int dirfd, const char *name,
                       struct seen_file *e, struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;

    if (io_openat(s->io, dirfd, name, O_RDONLY, 0, &fd, err) < 0) {
        if (err->code == QSTILL_E_NOT_FOUND ||
            err->code == QSTILL_E_PRECONDITION) {
            /* gone meanwhile; a link, no regular file */
            err_clear(err);
            return 0;
        }
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

/* `path` leads to `real`. */
static int names_behind_link(struct search *s, const char *path,
                             const char *real, struct stored_names *names,
                             struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;

    if (io_openat(s->io, AT_FDCWD, real, O_RDONLY, 0, &fd, err) < 0 ||
        stored_names_read(s->io, fd, names, err) < 0)
        return err_wrap(err, "it may stand on a layer that goes: %s", path);
    return 0;
}

static int judge_link(struct search *s, const char *path, const char *real,
                      const struct stat *st, struct qstill_error *err)
{
    CLEANUP(stored_names_fini) struct stored_names names = {0};
    size_t which = 0;
    bool layer = is_layer(s->c, st, 0, s->c->n - 1, &which), yes;

    if (names_behind_link(s, path, real, &names, err) < 0)
        return err->code;
    if (layer || known(s, st))
        return judge_name(s, path, real, names.backing,
                          !layer || which + 1 == s->first, err);
    if (check_data_file(s, path, &names, err) < 0)
        return err->code;
    if (!names.backing)
        return 0;
    if (names_layer(s, path, names.backing, &yes, &which, err) < 0)
        return err->code;
    if (!yes)
        return 0;
    err_set(err, QSTILL_E_PRECONDITION,
            "%s, a symbolic link to %s, stands on %s", path, real,
            s->c->layers[which]->path);
    return err_hint(err, "put the image itself there, or remove the link");
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
                       .out = out};

    for (size_t i = 0; i < named_count; i++)
        if (look_at(&s, named[i], named[i], err) < 0)
            return err_wrap(err, "child");
    return look_into_all(&s, false, err) < 0 ? err->code
                                             : look_into_all(&s, true, err);
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
