/* SPDX-License-Identifier: MIT */
/* What a file of a directory is to the layers that go: an overlay of theirs, a
 * second name of one of the chain, or nothing. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "backing_name.h"
#include "children_impl.h"
#include "merge_names.h"

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

static int add(struct search *s, const char *path, const struct stat *st,
               size_t parent, struct qstill_error *err)
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
    v[s->out->n++] =
        (struct child){copy, parent, st->st_dev, st->st_ino, s->named};
    return 0;
}

/* The same file under two names (a link, ./) is one child. */
static const struct child *known(const struct search *s, const struct stat *st)
{
    for (size_t i = 0; i < s->out->n; i++)
        if (s->out->v[i].dev == st->st_dev && s->out->v[i].ino == st->st_ino)
            return &s->out->v[i];
    return NULL;
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

int child_check_format(const char *path, const char *below,
                       enum qcow2_format here, enum qcow2_format there,
                       struct qstill_error *err)
{
    if (here == there)
        return 0;
    err_set(err, QSTILL_E_PRECONDITION,
            "%s reads %s as %s, which is %s here: it would show something else",
            path, below, qcow2_format_name(there), qcow2_format_name(here));
    return err_hint(err,
                    "is it a mistake, qemu-img rebase -u gives it the right "
                    "format; else qemu-img convert makes an image of its own "
                    "of it");
}

/* An overlay of ours must be one that a merge can deal with: without its layer
 * it would be lost. */
static int take_child(struct search *s, const struct seen_file *e, int fd,
                      size_t which, struct qstill_error *err)
{
    CLEANUP(image_closep) struct image *img = NULL;
    CLEANUP(freep) char *backing = NULL;
    const struct image *below = s->c->layers[which];
    enum qcow2_format format = below->info.format;

    if (image_open_fd(&img, s->c->io, e->path, fd, QCOW2_FORMAT_QCOW2, err) <
            0 ||
        chain_backing_of(img, &backing, &format, err) < 0)
        return err_wrap(err, "%s stands on %s and cannot be dealt with",
                        e->path, below->path);
    if (child_check_format(e->path, below->path, below->info.format, format,
                           err) < 0)
        return err->code;
    return add(s, e->path, &e->st, which, err);
}

/* What reads a qcow2 image as a raw one shows the bytes of its file, and these
 * change, though its guest content does not. */
static int check_reader(const struct search *s, const struct seen_file *e,
                        const char *of, dev_t dev, ino_t ino,
                        struct qstill_error *err)
{
    CLEANUP(qcow2_info_fini) struct qcow2_info info = {0};
    CLEANUP(freep) char *backing = NULL;
    struct qstill_error ignored = {0};
    struct stat st;

    if (chain_resolve(e->path, e->names.backing, &backing, &ignored) < 0 ||
        stat(backing, &st) < 0 || st.st_dev != dev || st.st_ino != ino ||
        qcow2_info_read(s->io, AT_FDCWD, e->path, QCOW2_FORMAT_QCOW2, &info,
                        &ignored) < 0 ||
        !info.header.has_format ||
        qcow2_format_any(info.header.backing_format) != QCOW2_FORMAT_RAW)
        return 0;
    return child_check_format(e->path, of, QCOW2_FORMAT_QCOW2, QCOW2_FORMAT_RAW,
                              err);
}

int judge_reader(struct search *s, const struct seen_file *e,
                 struct qstill_error *err)
{
    for (size_t i = 0; e->names.backing && i < s->out->n; i++) {
        const struct child *child = &s->out->v[i];

        if (check_reader(s, e, child->path, child->dev, child->ino, err) < 0)
            return err->code;
    }
    return 0;
}

/* The layer above those that go. */
static int check_upper_reader(const struct search *s, const struct seen_file *e,
                              struct qstill_error *err)
{
    const struct image *u = s->first > 0 ? s->c->layers[s->first - 1] : NULL;

    if (!u || !image_is_qcow2(u))
        return 0;
    return check_reader(s, e, u->path, u->info.dev, u->info.ino, err);
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

/* Whether QEMU, which opens a file as `path`, finds from there, by `name` and
 * by what it finds on the way, layer `at` and all below it. */
static int shows_chain(const struct chain *c, const char *path,
                       const char *name, size_t at, bool *yes,
                       struct qstill_error *err)
{
    CLEANUP(freep) char *here = strdup(path);

    if (!here)
        return err_nomem(err);
    for (*yes = true; *yes && at < c->n; at++) {
        const struct image *img = c->layers[at];
        char *next = NULL;
        struct stat st;

        if (chain_resolve(here, name, &next, err) < 0)
            return err->code;
        free(here);
        here = next;
        *yes = stat(here, &st) == 0 && st.st_dev == img->info.dev &&
               st.st_ino == img->info.ino;
        name = img->info.header.backing;
    }
    return 0;
}

/*
 * A second name, by a link of either kind, of a layer or of an overlay that
 * will get another backing name (`changes`); layer `at` is what it stands on.
 * QEMU takes a relative one from where it opens the image: in another folder
 * than its own that may be another image, which would lose its layer, or show
 * something else. Where the names lead to the chain itself, the new one does,
 * too: it is put together from these very names, or absolute.
 */
static int judge_name(struct search *s, const char *path, const char *own,
                      const char *name, size_t at, bool changes,
                      struct qstill_error *err)
{
    CLEANUP(freep) char *backing = NULL;
    struct stat st;
    size_t which;
    bool same = false;

    if (!name || name[0] == '/' || same_folder(path, own))
        return 0;
    if (chain_resolve(path, name, &backing, err) < 0)
        return err->code == QSTILL_E_PRECONDITION /* json: the same there */
                   ? err_clear(err)
                   : err->code;
    if (stat(backing, &st) < 0 ||
        (!changes && !is_layer(s->c, &st, s->first, s->last, &which)))
        return 0;
    if (shows_chain(s->c, path, name, at, &same, err) < 0)
        return err->code;
    if (same)
        return 0;
    err_set(err, QSTILL_E_PRECONDITION,
            "%s is a name of %s, and from there its backing file %s, or what "
            "that stands on, is another",
            path, own, name);
    return err_hint(err, "remove that link, or put an image of its own there");
}

/* QEMU takes a layer's own backing name from where the overlay finds the layer:
 * by a link to it that may be another folder, with another image there. */
static int judge_way(const struct search *s, const struct seen_file *e,
                     size_t which, struct qstill_error *err)
{
    bool same = false;

    if (shows_chain(s->c, e->path, e->names.backing, which, &same, err) < 0)
        return err->code == QSTILL_E_PRECONDITION /* taking it will say why */
                   ? err_clear(err)
                   : err->code;
    if (same)
        return 0;
    err_set(err, QSTILL_E_PRECONDITION,
            "%s stands on %s by a link, and from there what that stands on is "
            "another image",
            e->path, s->c->layers[which]->path);
    return err_hint(err,
                    "qemu-img convert makes an image of its own of %s, as it "
                    "is now",
                    e->path);
}

bool cannot_stand_on(const struct search *s, const struct stat *st)
{
    if (!s->c || st->st_uid == 0)
        return false;
    for (size_t i = s->first; i <= s->last; i++) {
        struct stat layer;

        if (fstat(s->c->layers[i]->fd, &layer) < 0 ||
            layer.st_uid == st->st_uid || (layer.st_mode & (S_IRGRP | S_IROTH)))
            return false;
    }
    return true;
}

int judge_child(struct search *s, const struct seen_file *e,
                struct qstill_error *err)
{
    size_t which = 0;
    bool yes;
    int fd;

    if (is_layer(s->c, &e->st, 0, s->c->n - 1, &which))
        return judge_name(s, e->path, s->c->layers[which]->path,
                          e->names.backing, which + 1, which + 1 == s->first,
                          err);
    if (check_data_file(s, e->path, &e->names, err) < 0)
        return err->code;
    if (!e->names.backing)
        return 0;
    if (names_layer(s, e->path, e->names.backing, &yes, &which, err) < 0)
        return err->code;
    if (!yes)
        return check_upper_reader(s, e, err);
    if (known(s, &e->st))
        return 0;
    if (stored_names_is_qed(&e->names))
        return err_set(err, QSTILL_E_PRECONDITION,
                       "%s, a qed image, stands on %s: only qcow2 overlays can "
                       "be dealt with",
                       e->path, s->c->layers[which]->path);
    if (judge_way(s, e, which, err) < 0)
        return err->code;
    if (io_openat(s->io, AT_FDCWD, e->path, O_RDONLY, 0, &fd, err) < 0)
        return err->code;
    return take_child(s, e, fd, which, err);
}

int judge_link(struct search *s, const char *path, const char *real,
               const struct stat *st, struct qstill_error *err)
{
    CLEANUP(stored_names_fini) struct stored_names names = {0};
    size_t which = 0;
    const struct child *child;
    bool yes;

    if (names_behind_link(s, path, real, &names, err) < 0)
        return err->code == QSTILL_E_PERMISSION && cannot_stand_on(s, st)
                   ? err_clear(err)
                   : err->code;
    if (is_layer(s->c, st, 0, s->c->n - 1, &which))
        return judge_name(s, path, real, names.backing, which + 1,
                          which + 1 == s->first, err);
    child = known(s, st);
    if (child)
        return judge_name(s, path, real, names.backing, child->parent, true,
                          err);
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
