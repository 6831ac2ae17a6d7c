/* SPDX-License-Identifier: MIT */
#include "share.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>

#include "attrs.h"
#include "base/checked.h"

uint64_t share_unit(int fd)
{
    struct statfs st;

    return fstatfs(fd, &st) < 0 || st.f_bsize <= 0 ? 0 : (uint64_t)st.f_bsize;
}

bool share_fits(const struct extent *e, uint64_t file_size, uint64_t dst,
                uint64_t unit)
{
    return e->kind == EXTENT_DATA && unit > 0 && e->host % unit == 0 &&
           dst % unit == 0 && e->len % unit == 0 &&
           e->host + e->len <= file_size;
}

bool share_pieces(const struct extents *view, const struct move *mv,
                  share_piece_fn *fn, void *user)
{
    uint64_t done = 0;

    if (mv->layer != MOVE_GUEST)
        return false;
    for (size_t i = extents_find(view, mv->from); done < mv->len; i++) {
        struct extent e;

        if (i >= view->n || view->v[i].guest > mv->from + done)
            return false;
        e = extent_cut(&view->v[i], mv->from, mv->from + mv->len);
        if (!fn(user, &e, mv->dst + done))
            return false;
        done += e.len;
    }
    return true;
}

/* --------------------------------------------------------- what is possible */

/* A piece that starts in the middle of a block is refused by a filesystem that
 * shares them for being that, by one that does not for being asked. Nothing is
 * changed. */
bool share_is_offered(const struct image *img)
{
    return img->io->ops->clone_range(img->io, img->fd, 0, 1, img->wfd, 1) ==
           -EINVAL;
}

void sharing_fini(struct sharing *s)
{
    free(s->dir);
    free(s->from);
    *s = (struct sharing){0};
}

/* Most directories are on these: no file need be made to ask them. */
static bool never_shares(int fd)
{
    struct statfs st;

    return fstatfs(fd, &st) < 0 || st.f_type == EXT4_SUPER_MAGIC ||
           st.f_type == TMPFS_MAGIC;
}

static void ask(struct sharing *s, int like)
{
    CLEANUP(closep) int dir = open(s->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    CLEANUP(closep) int fd = -1;
    uint64_t unit;

    if (dir < 0 || never_shares(dir))
        return;
    fd = openat(dir, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0)
        return;
    attrs_copy_nocow(like, fd);
    unit = share_unit(fd);
    for (size_t i = 0; i < s->chain->n; i++) {
        const struct image *img = s->chain->layers[i];

        s->from[i] =
            unit > 0 && img->info.file_size >= unit &&
            img->io->ops->clone_range(img->io, img->fd, 0, unit, fd, 0) == 0;
        if (s->from[i])
            s->unit = unit;
    }
}

int sharing_find(struct sharing *s, const struct chain *c, const char *path,
                 int like, struct qstill_error *err)
{
    const char *slash = strrchr(path, '/');
    CLEANUP(freep)
    char *dir = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");

    bool nocow = attrs_is_nocow(like);

    if (!dir)
        return err_nomem(err);
    if (s->dir && s->chain == c && s->nocow == nocow &&
        strcmp(s->dir, dir) == 0)
        return 0;
    sharing_fini(s);
    s->chain = c;
    s->dir = take_ptr(&dir);
    s->nocow = nocow;
    s->from = calloc(c->n, sizeof(bool));
    if (!s->from)
        return err_nomem(err);
    ask(s, like);
    return 0;
}

static bool can_piece(void *user, const struct extent *e, uint64_t dst)
{
    const struct sharing *s = user;

    return s->from[e->layer] &&
           share_fits(e, s->chain->layers[e->layer]->info.file_size, dst,
                      s->unit);
}

bool sharing_can(const struct sharing *s, const struct extents *view,
                 const struct move *mv)
{
    return s->unit > 0 &&
           share_pieces(view, mv, can_piece, (void *)(uintptr_t)s);
}
