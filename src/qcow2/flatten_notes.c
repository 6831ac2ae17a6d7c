/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "attrs.h"
#include "flatten_impl.h"
#include "merge_names.h"
#include "rights.h"
#include "torn.h"

/* The image that was folded into a torn one masks what is half written there;
 * an overlay that somebody has made on it since does not, and looks the same.
 */
static int note_marked(const struct image *img, const struct image *above,
                       struct buf *out)
{
    if (!torn_is(&img->info.header))
        return buf_printf(out,
                          "note: %s is marked as corrupt: what is read from "
                          "it may be wrong\n",
                          img->path);
    if (torn_is(&above->info.header)) /* goes with it; never the top */
        return 0;
    return buf_printf(out,
                      "note: %s was being folded into when that broke off: "
                      "what is read is right if %s was that image, and not if "
                      "it was made on it later\n",
                      img->path, above->path);
}

static mode_t mode_of(const struct stat *st)
{
    return st->st_mode & 0777;
}

/* What layer i leaves of the rights of others. `out` is, or will be, the new
 * file. */
static int narrow_by(const struct chain *c, size_t i, const char *out,
                     gid_t gid, mode_t *mode, struct qstill_error *err)
{
    const struct image *img = c->layers[i];
    CLEANUP(freep) char *top = realpath(c->layers[0]->path, NULL);
    CLEANUP(freep) char *dir = path_dir(out);
    CLEANUP(freep) char *real = dir ? realpath(*dir ? dir : ".", NULL) : NULL;
    CLEANUP(freep) char *file = NULL;

    if (!dir)
        return err_nomem(err);
    if (real && asprintf(&file, "%s/", real) < 0) {
        file = NULL;
        return err_nomem(err);
    }
    if (attrs_narrow(img->fd, gid, mode, img->path, err) < 0)
        return err->code;
    /* but the folders that guard the top, which was named to us, or the new
     * file as well */
    return i == 0
               ? 0
               : rights_narrow_by_folders(img->path, top, file, gid, mode, err);
}

static int note_rights(const struct chain *c, const char *path, struct buf *out,
                       struct qstill_error *err)
{
    struct stat top;

    if (fstat(c->layers[0]->fd, &top) < 0)
        return err_errno(err, errno, "cannot stat %s", c->layers[0]->path);
    for (size_t i = 1; i < c->n; i++) {
        const struct image *img = c->layers[i];
        mode_t mode = mode_of(&top);

        if (narrow_by(c, i, path, top.st_gid, &mode, err) < 0)
            return err->code;
        if (mode != mode_of(&top) &&
            buf_printf(out,
                       "note: not all who may read %s may read %s: neither "
                       "may they read %s\n",
                       c->layers[0]->path, img->path, path) < 0)
            return err_nomem(err);
    }
    return 0;
}

int flatten_notes(const struct chain *c, const char *path, struct buf *out,
                  struct qstill_error *err)
{
    for (size_t i = 0; i < c->n; i++) {
        const struct image *img = c->layers[i];

        if ((img->info.header.incompatible & QCOW2_INCOMPAT_CORRUPT) &&
            note_marked(img, i == 0 ? NULL : c->layers[i - 1], out) < 0)
            return err_nomem(err);
    }
    return note_rights(c, path, out, err);
}

int flatten_set_mode(const struct chain *c, int fd, const char *path,
                     struct qstill_error *err)
{
    struct stat top, made;
    mode_t mode;
    int r;

    if (fstat(c->layers[0]->fd, &top) < 0 || fstat(fd, &made) < 0)
        return err_errno(err, errno, "cannot stat %s, or %s",
                         c->layers[0]->path, path);
    mode = mode_of(&top);
    for (size_t i = 0; i < c->n; i++)
        if (narrow_by(c, i, path, made.st_gid, &mode, err) < 0)
            return err->code;
    if (attrs_drop_acl(c->io, fd, path, err) < 0)
        return err->code;
    r = c->io->ops->fchmod(c->io, fd, mode);
    return r < 0 ? err_errno(err, -r, "cannot set the mode of %s", path) : 0;
}
