/* SPDX-License-Identifier: MIT */
#include "children.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/bytes.h"

/* A directory with more entries is no place of images. */
#define MAX_ENTRIES 1000000u

struct search {
    const struct chain *c;
    size_t first, last;
    struct children *out;
};

void children_fini(struct children *ch)
{
    for (size_t i = 0; i < ch->n; i++)
        free(ch->v[i].path);
    free(ch->v);
    *ch = (struct children){0};
}

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

static int look_at(struct search *s, const char *path, int fd,
                   struct qstill_error *err)
{
    CLEANUP(image_closep) struct image *img = NULL;
    CLEANUP(freep) char *backing = NULL;
    enum qcow2_format format;
    struct stat st;
    size_t which;

    if (fstat(fd, &st) < 0) {
        close(fd);
        return err_errno(err, errno, "cannot stat %s", path);
    }
    if (is_layer(s->c, &st, 0, s->c->n - 1, &which) || known(s, &st)) {
        close(fd);
        return 0;
    }
    if (image_open_fd(&img, s->c->io, path, fd, QCOW2_FORMAT_QCOW2, err) < 0 ||
        chain_backing_of(img, &backing, &format, err) < 0)
        return err->code;
    if (!backing || stat(backing, &st) < 0 ||
        !is_layer(s->c, &st, s->first, s->last, &which))
        return 0;
    return add(s, path, which, err);
}

/* Files in a directory: only what begins as a qcow2 image is opened as one,
 * and what cannot be understood is nobody's child. */
static int look_at_entry(struct search *s, int dirfd, const char *dir,
                         const char *name, struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;
    CLEANUP(freep) char *path = NULL;
    struct qstill_error ignored;
    uint8_t magic[4];
    int r;

    if (io_openat(s->c->io, dirfd, name, O_RDONLY, 0, &fd, &ignored) < 0 ||
        pread(fd, magic, sizeof(magic), 0) != sizeof(magic) ||
        get_be32(magic) != QCOW2_MAGIC)
        return 0;
    if (asprintf(&path, "%s%s", dir, name) < 0) {
        path = NULL;
        return err_nomem(err);
    }
    r = look_at(s, path, take_fd(&fd), err);
    return r == QSTILL_E_FAILED ? r : 0;
}

static void closedirp(DIR **d)
{
    if (*d)
        closedir(*d);
}

/* `dir` ends with a slash, or is empty. */
static int look_into(struct search *s, const char *dir,
                     struct qstill_error *err)
{
    CLEANUP(closedirp) DIR *d = opendir(dir[0] ? dir : ".");
    size_t n = 0;
    struct dirent *e;

    if (!d)
        return err_errno(err, errno, "cannot look for overlays in %s",
                         dir[0] ? dir : ".");
    while ((e = readdir(d))) {
        if (++n > MAX_ENTRIES)
            return err_set(err, QSTILL_E_PRECONDITION,
                           "%s has too many entries to look for overlays", dir);
        if (e->d_type != DT_REG && e->d_type != DT_UNKNOWN)
            continue;
        if (look_at_entry(s, dirfd(d), dir, e->d_name, err) < 0)
            return err->code;
    }
    return 0;
}

static char *dir_part(const char *path)
{
    const char *slash = strrchr(path, '/');

    return strndup(path, slash ? (size_t)(slash - path) + 1 : 0);
}

static int look_into_all(struct search *s, struct qstill_error *err)
{
    const struct chain *c = s->c;

    for (size_t i = 0; i < c->n; i++) {
        CLEANUP(freep) char *dir = dir_part(c->layers[i]->path);
        bool seen = false;

        if (!dir)
            return err_nomem(err);
        for (size_t k = 0; k < i && !seen; k++) {
            CLEANUP(freep) char *other = dir_part(c->layers[k]->path);

            seen = other && strcmp(dir, other) == 0;
        }
        if (!seen && look_into(s, dir, err) < 0)
            return err->code;
    }
    return 0;
}

int children_find(const struct chain *c, size_t first, size_t last,
                  const char *const *named, size_t named_count,
                  struct children *out, struct qstill_error *err)
{
    struct search s = {.c = c, .first = first, .last = last, .out = out};

    for (size_t i = 0; i < named_count; i++) {
        CLEANUP(closep) int fd = -1;

        if (io_openat(c->io, AT_FDCWD, named[i], O_RDONLY, 0, &fd, err) < 0 ||
            look_at(&s, named[i], take_fd(&fd), err) < 0)
            return err_wrap(err, "child");
    }
    return look_into_all(&s, err);
}
