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

#define QED_HEADER  64u
#define QED_AT_NAME 56u /* its offset and length, 32 bits each */

/* The backing name as it stands in the header, whatever else that holds: it is
 * at the same place in every version of qcow, and elsewhere in qed, the only
 * other format whose images QEMU lets stand on qcow2 and raw ones. NULL: there
 * is none. */
static int stored_name(const struct io *io, int fd, char **out, bool *qed,
                       struct qstill_error *err)
{
    uint8_t raw[QED_HEADER] = {0};
    uint64_t off, len;
    size_t got;

    *out = NULL;
    *qed = false;
    if (io_read_upto(io, fd, raw, sizeof(raw), 0, &got, err) < 0)
        return err->code;
    if (get_be32(raw + QCOW2_AT_MAGIC) == QCOW2_MAGIC) {
        off = get_be64(raw + QCOW2_AT_BACKING_OFFSET);
        len = get_be32(raw + QCOW2_AT_BACKING_LEN);
    } else if (memcmp(raw, "QED\0", 4) == 0) {
        *qed = true;
        off = get_le64(raw + QED_AT_NAME) & UINT32_MAX;
        len = get_le64(raw + QED_AT_NAME) >> 32;
    } else {
        return 0;
    }
    if (off == 0 || off > 1u << QCOW2_MAX_CLUSTER_BITS || len == 0 ||
        len > QCOW2_MAX_BACKING_NAME)
        return 0;
    *out = calloc(1, (size_t)len + 1);
    if (!*out)
        return err_nomem(err);
    return io_read_upto(io, fd, *out, (size_t)len, off, &got, err);
}

/* json:{...} and the like: whoever has a layer's file name in it may mean that
 * layer. */
static bool mentions_layer(const struct search *s, const char *name,
                           size_t *which)
{
    for (size_t i = s->first; i <= s->last; i++) {
        const char *path = s->c->layers[i]->path;
        const char *slash = strrchr(path, '/');

        if (strstr(name, slash ? slash + 1 : path)) {
            *which = i;
            return true;
        }
    }
    return false;
}

static int names_layer(const struct search *s, const char *path,
                       const char *name, bool *yes, size_t *which,
                       struct qstill_error *err)
{
    CLEANUP(freep) char *backing = NULL;
    struct stat st;

    *yes = false;
    if (chain_resolve(path, name, &backing, err) < 0) {
        if (err->code != QSTILL_E_PRECONDITION)
            return err->code;
        *err = (struct qstill_error){0};
        *yes = mentions_layer(s, name, which);
        return 0;
    }
    *yes = stat(backing, &st) == 0 &&
           is_layer(s->c, &st, s->first, s->last, which);
    return 0;
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

static int look_at(struct search *s, const char *path, int fd,
                   struct qstill_error *err)
{
    CLEANUP(closep) int mine = fd;
    CLEANUP(freep) char *name = NULL;
    struct stat st;
    size_t which;
    bool yes, qed;

    if (fstat(fd, &st) < 0)
        return err_errno(err, errno, "cannot stat %s", path);
    if (is_layer(s->c, &st, 0, s->c->n - 1, &which) || known(s, &st))
        return 0;
    if (stored_name(s->c->io, fd, &name, &qed, err) < 0)
        return err_wrap(err, "%s", path);
    if (!name)
        return 0;
    if (names_layer(s, path, name, &yes, &which, err) < 0)
        return err->code;
    if (yes && qed)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "%s, a qed image, stands on %s: only qcow2 overlays can "
                       "be dealt with",
                       path, s->c->layers[which]->path);
    return yes ? take_child(s, path, take_fd(&mine), which, err) : 0;
}

/* A file of a directory. One that cannot be looked into may be an overlay:
 * then nothing is merged. */
static int look_at_entry(struct search *s, int dirfd, const char *dir,
                         const char *name, struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;
    CLEANUP(freep) char *path = NULL;

    if (io_openat(s->c->io, dirfd, name, O_RDONLY, 0, &fd, err) < 0) {
        if (err->code == QSTILL_E_NOT_FOUND ||
            err->code == QSTILL_E_PRECONDITION) {
            /* gone meanwhile; a link, no regular file */
            *err = (struct qstill_error){0};
            return 0;
        }
        err_wrap(err, "it may stand on a layer that goes: %s%s", dir, name);
        return err_hint(err, "make it readable, or move it elsewhere");
    }
    if (asprintf(&path, "%s%s", dir, name) < 0) {
        path = NULL;
        return err_nomem(err);
    }
    return look_at(s, path, take_fd(&fd), err);
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
    while ((errno = 0, e = readdir(d))) {
        if (++n > MAX_ENTRIES)
            return err_set(err, QSTILL_E_PRECONDITION,
                           "%s has too many entries to look for overlays", dir);
        if (e->d_type != DT_REG && e->d_type != DT_UNKNOWN)
            continue;
        if (look_at_entry(s, dirfd(d), dir, e->d_name, err) < 0)
            return err->code;
    }
    return errno ? err_errno(err, errno, "cannot look for overlays in %s",
                             dir[0] ? dir : ".")
                 : 0;
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
