/* SPDX-License-Identifier: MIT */
#include "chain.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/checked.h"
#include "torn.h"

/* ------------------------------------------------------------------- names */

int chain_resolve(const char *overlay, const char *name, char **out,
                  struct qstill_error *err)
{
    const char *slash = strrchr(overlay, '/');
    size_t colon = strcspn(name, ":/");
    CLEANUP(freep) char *path = NULL;

    if (name[colon] == ':') {
        err_set(err, QSTILL_E_PRECONDITION,
                "%s names \"%.200s\" as its backing file, which is no plain "
                "file name",
                overlay, name);
        return err_hint(err, "a file name with a colon is stored as ./NAME");
    }
    if (name[0] == '/' || !slash)
        path = strdup(name);
    else if (asprintf(&path, "%.*s%s", (int)(slash - overlay + 1), overlay,
                      name) < 0)
        path = NULL;
    if (!path)
        return err_nomem(err);
    if (strlen(path) >= PATH_MAX)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "%s: the path of its backing file is too long", overlay);
    *out = take_ptr(&path);
    return 0;
}

static int backing_of(const struct image *img, bool foreign, char **path,
                      enum qcow2_format *format, struct qstill_error *err)
{
    const struct qcow2_header *h = &img->info.header;

    *path = NULL;
    if (!image_is_qcow2(img) || !h->has_backing)
        return 0;
    if (!h->has_format) {
        err_set(err, QSTILL_E_PRECONDITION,
                "%s does not say which format its backing file has", img->path);
        return err_hint(err,
                        "write it down with qemu-img rebase -u -F FORMAT -b "
                        "'%.100s' FILE",
                        h->backing);
    }
    if (foreign)
        *format = qcow2_format_any(h->backing_format);
    else if (qcow2_format_parse(h->backing_format, format, err) < 0)
        return err_wrap(err, "the backing file of %s", img->path);
    return chain_resolve(img->path, h->backing, path, err);
}

int chain_backing_of(const struct image *img, char **path,
                     enum qcow2_format *format, struct qstill_error *err)
{
    return backing_of(img, false, path, format, err);
}

/* ----------------------------------------------------------------- opening */

void chain_close(struct chain *c)
{
    if (!c)
        return;
    for (size_t i = 0; i < c->n; i++)
        image_close(c->layers[i]);
    free(c->layers);
    aio_close(c->aio);
    free(c);
}

void chain_closep(struct chain **c)
{
    chain_close(*c);
}

static int check_loop(const struct chain *c, const struct image *img,
                      struct qstill_error *err)
{
    for (size_t i = 0; i < c->n; i++)
        if (c->layers[i]->info.dev == img->info.dev &&
            c->layers[i]->info.ino == img->info.ino)
            return err_set(err, QSTILL_E_CORRUPT,
                           "%s is its own backing file, through %zu layers",
                           img->path, c->n - i);
    return 0;
}

/* A base is often named by a link ("golden" to its present version), which is
 * followed, as QEMU does; but the top goes by its own name. The layer keeps the
 * name it was found by: from there names in it lead on. */
static int open_layer(struct chain *c, const char *path,
                      enum qcow2_format format, struct image **out,
                      struct qstill_error *err)
{
    CLEANUP(freep) char *real = NULL;
    struct stat st;
    int fd;

    if (c->n == 0 || lstat(path, &st) < 0 || !S_ISLNK(st.st_mode))
        return image_open(out, c->io, path, format, err);
    real = realpath(path, NULL);
    if (!real)
        return err_errno(err, errno, "cannot follow the link %s", path);
    if (io_openat(c->io, AT_FDCWD, real, O_RDONLY, 0, &fd, err) < 0)
        return err->code;
    if (c->linked == 0)
        c->linked = c->n;
    return image_open_fd(out, c->io, path, fd, format, err);
}

static int add_layer(struct chain *c, const char *path,
                     enum qcow2_format format, enum chain_lock lock,
                     struct qstill_error *err)
{
    CLEANUP(image_closep) struct image *img = NULL;

    if (c->n == CHAIN_MAX_LAYERS)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "the chain of %s has more than %u layers",
                       c->layers[0]->path, CHAIN_MAX_LAYERS);
    if (open_layer(c, path, format, &img, err) < 0 ||
        check_loop(c, img, err) < 0)
        return err->code;
    /* its header was read before: what a writer did since is not in there */
    if (lock == CHAIN_LOCKED &&
        (image_lock(img->fd, img->path, IMAGE_LOCK_READ, err) < 0 ||
         image_check_same(img, err) < 0))
        return err->code;
    c->layers[c->n++] = take_ptr(&img);
    return 0;
}

static int open_all(struct chain **out, const struct io *io, const char *path,
                    enum qcow2_format format, enum chain_lock lock,
                    bool foreign, struct qstill_error *err)
{
    CLEANUP(chain_closep) struct chain *c = calloc(1, sizeof(*c));
    CLEANUP(freep) char *next = strdup(path);

    if (!c || !next)
        return err_nomem(err);
    c->io = io;
    c->layers = calloc(CHAIN_MAX_LAYERS, sizeof(struct image *));
    if (!c->layers)
        return err_nomem(err);
    while (next) {
        if (add_layer(c, next, format, lock, err) < 0)
            return c->n == 0 ? err->code
                             : err_wrap(err, "backing file of %s",
                                        c->layers[c->n - 1]->path);
        free(take_ptr(&next));
        if (torn_is(&c->layers[0]->info.header))
            return torn_refuse(c->layers[0]->path, err);
        if (backing_of(c->layers[c->n - 1], foreign, &next, &format, err) < 0)
            return err->code;
    }
    *out = take_ptr(&c);
    return 0;
}

int chain_open(struct chain **out, const struct io *io, const char *path,
               enum qcow2_format format, enum chain_lock lock,
               struct qstill_error *err)
{
    return open_all(out, io, path, format, lock, false, err);
}

int chain_open_foreign(struct chain **out, const struct io *io,
                       const char *path, enum qcow2_format format,
                       struct qstill_error *err)
{
    return open_all(out, io, path, format, CHAIN_UNLOCKED, true, err);
}

const struct image *chain_foreign(const struct chain *c)
{
    const struct image *bottom = c->layers[c->n - 1];

    return image_is_foreign(bottom) ? bottom : NULL;
}

static int load_layer(struct chain *c, size_t i, struct qstill_error *err)
{
    struct aio_options o = {.stop = c->stop};

    if (!c->aio && aio_open(&c->aio, c->io, &o, err) < 0)
        return err->code;
    return image_load_map(c->layers[i], c->aio, err);
}

int chain_load(struct chain *c, size_t first, size_t last,
               struct qstill_error *err)
{
    for (size_t i = first; i <= last; i++)
        if (load_layer(c, i, err) < 0)
            return err->code;
    return 0;
}

void chain_forget(struct chain *c, size_t first, size_t last)
{
    for (size_t i = first; i <= last; i++)
        image_forget_map(c->layers[i]);
}

/* ------------------------------------------------------------------- views */

struct viewing {
    struct chain *c;
    size_t top; /* whose size the view has */
    enum chain_maps maps;
    struct qstill_error *err;
};

/* Whether the map of layer i says what it adds to the view: nothing is cut
 * off, and no end of a short layer added. */
static bool map_serves(const struct viewing *v, size_t i)
{
    const struct image *img = v->c->layers[i];
    uint64_t size = v->c->layers[v->top]->size;

    if (i > v->top && img->size < size)
        return false;
    return img->map.n == 0 || extent_end(&img->map.last) <= size;
}

/* The map of layer i with its number, ended by what a short layer adds. */
static int copy_map(const struct viewing *v, size_t i, struct extents *out)
{
    const struct image *img = v->c->layers[i];
    uint64_t size = v->c->layers[v->top]->size;

    struct extent end = {.guest = img->size,
                         .len = size - img->size,
                         .kind = EXTENT_PAST_END,
                         .layer = (uint16_t)(i - 1)};
    int r = 0;

    for (struct extent_walk w = extents_walk(&img->map, 0);
         r == 0 && w.on && w.e.guest < size; extents_next(&w)) {
        struct extent e = extent_cut(&w.e, 0, size);

        e.layer = (uint16_t)i;
        r = extents_push(out, &e);
    }
    if (r == 0 && i > v->top && img->size < size)
        r = extents_push(out, &end);
    return r < 0 ? err_nomem(v->err) : 0;
}

/* The view of a single layer. */
static int view_layer(const struct viewing *v, size_t i, struct extents *out)
{
    struct image *img = v->c->layers[i];
    int r;

    if (load_layer(v->c, i, v->err) < 0)
        return v->err->code;
    if (v->maps == CHAIN_FORGET_MAPS && map_serves(v, i)) {
        img->map.layer = (uint16_t)i;
        *out = img->map;
        img->map = (struct extents)EXTENTS_INIT;
        r = 0;
    } else {
        r = copy_map(v, i, out);
    }
    if (v->maps == CHAIN_FORGET_MAPS)
        image_forget_map(img);
    return r;
}

static int view(const struct viewing *v, size_t first, size_t last,
                struct extents *out);

/* What a half is read from: a view of its own, or the map of a single layer
 * that stays, where it serves. A copy of a large map would be as large. */
static int half(const struct viewing *v, size_t first, size_t last,
                struct extents *own, const struct extents **out)
{
    struct image *img = v->c->layers[first];

    *out = own;
    if (first == last && v->maps == CHAIN_KEEP_MAPS) {
        if (load_layer(v->c, first, v->err) < 0)
            return v->err->code;
        if (map_serves(v, first)) {
            img->map.layer = (uint16_t)first;
            *out = &img->map;
            return 0;
        }
    }
    return view(v, first, last, own);
}

/* Halves: an extent is copied once per level, not once per layer. */
static int view(const struct viewing *v, size_t first, size_t last,
                struct extents *out)
{
    CLEANUP(extents_fini) struct extents own_upper = EXTENTS_INIT;
    CLEANUP(extents_fini) struct extents own_lower = EXTENTS_INIT;
    const struct extents *upper, *lower;
    size_t mid = first + (last - first) / 2;

    if (first == last)
        return view_layer(v, first, out);
    if (half(v, first, mid, &own_upper, &upper) < 0 ||
        half(v, mid + 1, last, &own_lower, &lower) < 0)
        return v->err->code;
    return extents_overlay(upper, lower, out) < 0
               ? err_nomem(v->err)
               : image_check_extents(out, v->c->layers[v->top]->path, v->err);
}

int chain_view(struct chain *c, size_t first, size_t last, enum chain_maps maps,
               struct extents *out, struct qstill_error *err)
{
    struct viewing v = {.c = c, .top = first, .maps = maps, .err = err};
    int r;

    *out = (struct extents)EXTENTS_INIT;
    r = view(&v, first, last, out);
    if (r < 0)
        extents_fini(out);
    return r;
}

static int push_foreign(const struct chain *c, uint64_t from, uint64_t to,
                        struct extents *out)
{
    struct extent e = {.guest = from,
                       .len = to - from,
                       .kind = EXTENT_FOREIGN,
                       .layer = (uint16_t)(c->n - 1)};

    return from < to ? extents_push(out, &e) : 0;
}

int chain_view_all(struct chain *c, enum chain_maps maps, struct extents *out,
                   struct qstill_error *err)
{
    CLEANUP(extents_fini) struct extents known = EXTENTS_INIT;
    uint64_t at = 0;
    int r = 0;

    if (!chain_foreign(c))
        return chain_view(c, 0, c->n - 1, maps, out, err);
    *out = (struct extents)EXTENTS_INIT;
    if (c->n > 1 && chain_view(c, 0, c->n - 2, maps, &known, err) < 0)
        return err->code;
    for (struct extent_walk w = extents_walk(&known, 0); w.on && r == 0;
         extents_next(&w)) {
        const struct extent *e = &w.e;

        if (e->kind == EXTENT_OWNED)
            continue;
        r = push_foreign(c, at, e->guest, out);
        if (r == 0)
            r = extents_push(out, e);
        at = extent_end(e);
    }
    if (r == 0)
        r = push_foreign(c, at, c->layers[0]->size, out);
    if (r == 0)
        return 0;
    extents_fini(out);
    return err_nomem(err);
}
