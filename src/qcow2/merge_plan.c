/* SPDX-License-Identifier: MIT */
/*
 * The plan of merging one group: its locks, its view, and what each choice of
 * the file that stays comes to. merge_choose.c chooses.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/checked.h"
#include "create.h"
#include "holes.h"
#include "merge_impl.h"
#include "removable.h"
#include "repoint.h"
#include "torn.h"

void group_fini(struct merge_group *g)
{
    mover_close(g->mover);
    merge_record_fini(&g->record);
    rewrite_fini(&g->rw);
    bitmap_join_fini(&g->join);
    extents_fini(&g->view);
    sharing_fini(&g->sharing);
    free(g->zeros.lots);
    image_close(g->fresh);
    free(g->backing);
    free(g->result);
    free(g->stuck);
    if (!g->main && g->chain) {
        /* all but the first layer, and the aio, are the merge's own */
        image_close(g->chain->layers[0]);
        free(g->chain->layers);
        free(g->chain);
    }
}

/* ------------------------------------------------------------------ locking */

/* Opened without a lock: what was decided since holds for what it was then. */
static int lock_layer(const struct image *img, enum image_lock lock,
                      struct qstill_error *err)
{
    if (image_lock(img->fd, img->path, lock, err) < 0)
        return err->code;
    return image_check_same(img, err);
}

/* An overlay outside was found by its name before it was opened here. */
static int check_child(const struct merge_group *g, struct qstill_error *err)
{
    const struct image *img = group_layer(g, g->upper);
    const struct image *next = group_layer(g, g->upper + 1);
    const struct qcow2_info *below = &next->info;
    CLEANUP(freep) char *path = NULL;
    enum qcow2_format format;
    struct stat st;

    if (chain_backing_of(img, &path, &format, err) < 0)
        return err->code;
    if (path && stat(path, &st) == 0 && st.st_dev == below->dev &&
        st.st_ino == below->ino)
        return child_check_format(img->path, next->path, below->format, format,
                                  err);
    err_set(err, QSTILL_E_BUSY, "%s was given another backing file meanwhile",
            img->path);
    return err_hint(err, "nothing was done yet: try again");
}

/* Only the image it was folded into masks what is torn, and is not known here
 * when there are others. The top alone is that one. */
static int check_torn(const struct merge_group *g, size_t i,
                      struct qstill_error *err)
{
    const struct image *img = group_layer(g, i);

    if (i == g->upper)
        return torn_refuse(img->path, err);
    if (g->main || g->m->keep_dropped || i > g->upper + 1)
        return 0;
    torn_refuse(img->path, err);
    return err_wrap(err, "%s stands on %s", group_layer(g, g->upper)->path,
                    img->path);
}

static int lock_layers(struct merge_group *g, struct qstill_error *err)
{
    for (size_t i = g->upper; i <= g->last; i++) {
        const struct image *img = group_layer(g, i);
        enum image_lock lock = IMAGE_LOCK_WRITE;

        if (g->m->output || (g->m->keep_dropped && i > g->upper))
            lock = IMAGE_LOCK_READ;
        /* before they are loaded, for overlays outside first, too */
        if (lock_layer(img, lock, err) < 0)
            return err->code;
        /* below the one that masks it, it may be read and written */
        if (torn_is(&img->info.header)) {
            if (check_torn(g, i, err) < 0)
                return err->code;
        } else if (img->info.header.incompatible & QCOW2_INCOMPAT_CORRUPT) {
            err_set(err, QSTILL_E_PRECONDITION, "%s is marked as corrupt",
                    img->path);
            return err_hint(err, "qemu-img check -r all may repair it");
        }
    }
    if (!g->main && check_child(g, err) < 0)
        return err->code;
    return 0;
}

/* Holes of a file that goes are zeros in the result, as far as they hide
 * something, and not copied; those of the file that stays stay in use. */
static int make_view(struct merge_group *g, size_t last,
                     struct qstill_error *err)
{
    extents_fini(&g->view);
    g->view_last = last;
    if (chain_view(g->chain, g->upper, last, CHAIN_FORGET_MAPS, &g->view, err) <
        0)
        return err->code;
    return holes_drop(g->chain, &g->view, err);
}

/* The layers below are read, too. */
static int view_below(struct merge_group *g, struct qstill_error *err)
{
    const struct chain *c = g->chain;

    for (size_t i = g->last + 1; i < c->n; i++)
        if (lock_layer(c->layers[i], IMAGE_LOCK_READ, err) < 0)
            return err->code;
    return make_view(g, c->n - 1, err);
}

/* ----------------------------------------------------------------- new file */

/* The file is planned as a stand-in in memory: an empty image of the same
 * layout. The real one is made when the work begins. */
static int plan_fresh(struct merge_group *g, struct qstill_error *err)
{
    const struct image *u = group_layer(g, g->upper);
    struct qcow2_create_options o = QCOW2_CREATE_OPTIONS_INIT;
    int fd = memfd_create("qstill-merge", MFD_CLOEXEC);

    if (fd < 0)
        return err_errno(err, errno, "cannot make a file in memory");
    o.virtual_size = u->size;
    o.cluster_bits = u->info.header.cluster_bits;
    o.incompatible = u->info.header.incompatible &
                     (QCOW2_INCOMPAT_EXTL2 | QCOW2_INCOMPAT_COMPRESSION);
    if (qcow2_create_fd(io_real(), fd, g->result, &o, err) < 0) {
        close(fd);
        return err->code;
    }
    return image_open_fd(&g->fresh, g->m->io, g->result, fd, QCOW2_FORMAT_QCOW2,
                         err);
}

/* -------------------------------------------------------------- the rewrite */

static int join_bitmaps(struct merge_group *g, struct qstill_error *err)
{
    const struct image *t = g->target;
    uint64_t size = group_layer(g, g->upper)->size;
    bool possible =
        image_is_qcow2(t) && t->info.header.version >= 3 && size > 0;

    return bitmap_join(g->chain, g->upper, g->last, g->t, size, possible,
                       &g->join, err);
}

/* The layers between the target and the upper image see what is written over,
 * and do not mask all of it. Version 2 has no bit for the mark. */
static bool can_mark_torn(const struct merge_group *g)
{
    for (size_t i = g->upper + 1; i <= g->t; i++) {
        struct qstill_error ignored;

        if (group_layer(g, i)->info.header.version < 3 ||
            image_open_write(group_layer(g, i), &ignored) < 0)
            return false;
    }
    return true;
}

/* Only what can be marked as torn meanwhile. */
static bool may_overwrite(const struct merge_group *g)
{
    bool below =
        g->main && !g->m->output && g->t != MERGE_NO_TARGET && g->t != g->upper;

    return below && can_mark_torn(g) && !share_is_offered(g->target);
}

static int plan_rewrite(struct merge_group *g, struct qstill_error *err)
{
    const struct chain *c = g->chain;

    rewrite_fini(&g->rw);
    g->rw = (struct rewrite){
        .target = g->target,
        .aio = c->aio,
        .chain = c,
        .view = &g->view,
        .own = g->t == MERGE_NO_TARGET ? REWRITE_NEW : (uint16_t)g->t,
        .top = g->t == g->upper,
        .size = group_layer(g, g->upper)->size,
        .has_backing = g->last + 1 < c->n,
        .join = &g->join,
        .overwrite = may_overwrite(g),
    };
    if (g->rw.has_backing) {
        g->rw.backing_size = group_layer(g, g->last + 1)->size;
        g->rw.backing_unknown = image_is_foreign(group_layer(g, g->last + 1));
    }
    return rewrite_plan(&g->rw, err);
}

/* Whether the new header will fit a sector; the name is the longest part. */
static int check_header(struct merge_group *g, struct qstill_error *err)
{
    CLEANUP(qcow2_info_fini) struct qcow2_info info = {0};
    struct qcow2_header *h = &info.header;

    if (qcow2_info_read_fd(g->m->io, g->target->fd, QCOW2_FORMAT_QCOW2, &info,
                           err) < 0)
        return err_wrap(err, "%s", g->target->path);
    rewrite_header(&g->rw, h);
    qcow2_header_rename(h, g->backing, g->backing_format);
    return qcow2_header_replaceable(h, g->target->path, err);
}

static int plan_file(struct merge_group *g, struct qstill_error *err)
{
    g->kind = g->t == MERGE_NO_TARGET ? MERGE_NEW_FILE : MERGE_IN_PLACE;
    if (g->kind == MERGE_NEW_FILE) {
        if (plan_fresh(g, err) < 0)
            return err->code;
        g->target = g->fresh;
    } else {
        g->target = group_layer(g, g->t);
        if (image_open_write(g->target, err) < 0)
            return removable_explain_open(g->target->path, err);
    }
    if (join_bitmaps(g, err) < 0)
        return err->code;
    if (g->kind == MERGE_IN_PLACE && !image_is_qcow2(g->target)) {
        g->kind = MERGE_INTO_RAW;
        return raw_plan(g, err);
    }
    if (plan_rewrite(g, err) < 0)
        return err->code;
    if (g->rw.needs_below) {
        /* the view changes, its answers do not: only what is read */
        if (view_below(g, err) < 0)
            return err->code;
        g->rw.view = &g->view;
    }
    if (group_check_rights(g, err) < 0)
        return err->code;
    g->bytes = g->rw.bytes;
    if (g->rw.over > 0)
        g->kind = MERGE_OVERWRITE;
    return check_header(g, err);
}

static uint64_t freed_estimate(const struct merge_group *g)
{
    uint64_t freed = 0;

    if (g->kind != MERGE_INTO_RAW)
        for (size_t i = 0; i < g->rw.freed.n; i++)
            freed += g->rw.freed.v[i].count * g->target->cluster_size;
    if (g->m->output || !g->main)
        return freed;
    for (size_t i = g->upper; i <= g->last; i++)
        if (group_layer(g, i) != g->target)
            freed += group_layer(g, i)->info.allocated;
    return freed - min_u64(freed, g->shared); /* they stay in use */
}

/* Forgets the plan of another candidate. */
static void plan_reset(struct merge_group *g)
{
    rewrite_fini(&g->rw);
    g->rw = (struct rewrite){0};
    bitmap_join_fini(&g->join);
    free(take_ptr(&g->zeros.lots));
    g->zeros = (struct moves){0};
    image_close(take_ptr(&g->fresh));
    free(take_ptr(&g->backing));
    g->bytes = g->shared = g->shared_room = 0;
}

int group_find_sharing(struct merge_group *g, size_t t,
                       struct qstill_error *err)
{
    bool is_new = t == MERGE_NO_TARGET;
    const struct image *like = group_layer(g, is_new ? g->upper : t);

    return sharing_find(&g->sharing, g->chain, is_new ? g->result : like->path,
                        like->fd, err);
}

static void count_shared_of(struct merge_group *g, const struct share_ask *ask,
                            const struct move *mv)
{
    for (uint64_t at = 0, n; at < mv->len; at += n) {
        n = share_ahead(ask, mv, at, SIZE_MAX);
        g->shared += n;
        if (mv->dst + at >= g->rw.old_end)
            g->shared_room += n;
        if (n == 0)
            n = share_distance(ask, mv, at, mv->len);
    }
}

/* What is written over is copied: those who see through it must not see it
 * before the last byte is there. */
static void count_shared(struct merge_group *g)
{
    struct share_ask ask = sharing_ask(&g->sharing, &g->view);

    g->shared = g->shared_room = 0;
    if (g->kind == MERGE_OVERWRITE)
        return;
    for (struct move_walk w = moves_walk(&g->rw.moves); w.on; moves_next(&w))
        count_shared_of(g, &ask, &w.m);
}

int group_plan_target(struct merge_group *g, size_t t, struct qstill_error *err)
{
    plan_reset(g);
    g->t = t;
    if ((g->view_last != g->last && make_view(g, g->last, err) < 0) ||
        group_name_backing(g, err) < 0 || group_find_sharing(g, t, err) < 0 ||
        plan_file(g, err) < 0)
        return err->code;
    count_shared(g);
    return 0;
}

int group_plan(struct merge_group *g, struct qstill_error *err)
{
    if (group_name_result(g, err) < 0 || group_look_at_names(g, err) < 0 ||
        lock_layers(g, err) < 0 || make_view(g, g->last, err) < 0 ||
        group_choose(g, err) < 0)
        return err->code;
    g->freed = freed_estimate(g);
    return 0;
}
