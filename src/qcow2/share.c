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

static bool gives(const struct share_ask *a, const struct move *mv,
                  const struct extent *e)
{
    return e->kind == EXTENT_DATA && a->from[e->layer] &&
           (e->host - e->guest) % a->unit == (mv->dst - mv->from) % a->unit;
}

/* Of a piece whose first byte is to be shared. */
static uint64_t whole_units(const struct share_ask *a, const struct extent *e)
{
    uint64_t size = a->chain->layers[e->layer]->info.file_size;

    if (e->host % a->unit || e->host >= size)
        return 0;
    return round_down_u64(min_u64(e->len, size - e->host), a->unit);
}

uint64_t share_ahead(const struct share_ask *a, const struct move *mv,
                     uint64_t at, size_t pieces)
{
    struct extent_walk x;
    uint64_t end = at;

    if (a->unit == 0 || mv->layer != MOVE_GUEST ||
        (mv->dst + at) % a->granule != 0)
        return 0;
    for (x = extents_walk(a->view, mv->from + at); end < mv->len;
         extents_next(&x)) {
        struct extent e;
        uint64_t n;

        if (!x.on || x.e.guest > mv->from + end || !gives(a, mv, &x.e))
            break;
        e = extent_cut(&x.e, mv->from + end, mv->from + mv->len);
        n = whole_units(a, &e);
        end += n;
        pieces -= pieces > 0;
        if (n < e.len || (pieces == 0 && end - at >= a->granule))
            break;
    }
    return round_down_u64(end - at, a->granule);
}

/* The next place where it is worth a look: within a piece that gives, the next
 * granule, else the first behind the piece, or behind what no layer has. */
static uint64_t next_place(const struct share_ask *a, const struct move *mv,
                           uint64_t at)
{
    struct extent_walk x = extents_walk(a->view, mv->from + at);
    uint64_t next = at + 1;

    if (!x.on)
        return mv->len;
    if (x.e.guest > mv->from + at)
        next = x.e.guest - mv->from;
    else if (!gives(a, mv, &x.e))
        next = extent_end(&x.e) - mv->from;
    if (next >= mv->len)
        return mv->len;
    return round_up_u64(mv->dst + next, a->granule) - mv->dst;
}

uint64_t share_distance(const struct share_ask *a, const struct move *mv,
                        uint64_t at, uint64_t max)
{
    uint64_t end = min_u64(max, mv->len - at) + at, pos = at;

    if (a->unit == 0 || mv->layer != MOVE_GUEST)
        return end - at;
    do
        pos = next_place(a, mv, pos);
    while (pos < end && share_ahead(a, mv, pos, 1) == 0);
    return min_u64(pos, end) - at;
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

struct share_ask sharing_ask(const struct sharing *s,
                             const struct extents *view)
{
    return (struct share_ask){.chain = s->chain,
                              .view = view,
                              .from = s->from,
                              .unit = s->unit,
                              .granule = s->unit};
}
