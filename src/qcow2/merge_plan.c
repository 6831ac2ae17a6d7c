/* SPDX-License-Identifier: MIT */
/*
 * How one group is merged. The view says how many bytes each layer brings; the
 * layer that brings most keeps its file, if it may:
 *
 *   U    may be rewritten, unless it has internal snapshots, which would see
 *        through to another image than before
 *   D    must be a qcow2 image on the same filesystem as U's name, whose
 *        attributes we may set
 *   any  but U: U's internal snapshots would be lost with its file
 *
 * A layer with hard links is left alone as check_links() says, and all whose
 * names would change must let them go (removable.h).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "attrs.h"
#include "base/checked.h"
#include "create.h"
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
    free(g->zeros.v);
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

static struct image *layer(const struct merge_group *g, size_t i)
{
    return g->chain->layers[i];
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
    const struct image *img = layer(g, g->upper);
    const struct qcow2_info *below = &layer(g, g->upper + 1)->info;
    CLEANUP(freep) char *path = NULL;
    enum qcow2_format format;
    struct stat st;

    if (chain_backing_of(img, &path, &format, err) < 0)
        return err->code;
    if (path && stat(path, &st) == 0 && st.st_dev == below->dev &&
        st.st_ino == below->ino)
        return 0;
    err_set(err, QSTILL_E_BUSY, "%s was given another backing file meanwhile",
            img->path);
    return err_hint(err, "nothing was done yet: try again");
}

/* Only the image it was folded into masks what is torn, and is not known here
 * when there are others. The top alone is that one. */
static int check_torn(const struct merge_group *g, size_t i,
                      struct qstill_error *err)
{
    const struct image *img = layer(g, i);

    if (i == g->upper)
        return torn_refuse(img->path, err);
    if (g->main || g->m->keep_dropped || i > g->upper + 1)
        return 0;
    torn_refuse(img->path, err);
    return err_wrap(err, "%s stands on %s", layer(g, g->upper)->path,
                    img->path);
}

static int lock_layers(struct merge_group *g, struct qstill_error *err)
{
    for (size_t i = g->upper; i <= g->last; i++) {
        const struct image *img = layer(g, i);
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

static int make_view(struct merge_group *g, size_t last,
                     struct qstill_error *err)
{
    extents_fini(&g->view);
    g->view_last = last;
    return chain_view(g->chain, g->upper, last, CHAIN_FORGET_MAPS, &g->view,
                      err);
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

/* ------------------------------------------------------------------ choosing
 */

static bool has_snapshots(const struct image *img)
{
    return image_is_qcow2(img) && img->info.header.nb_snapshots > 0;
}

static int lost_snapshots(const struct image *img, struct qstill_error *err)
{
    return err_set(err, QSTILL_E_PRECONDITION,
                   "%s holds %u internal snapshots, which would be lost",
                   img->path, img->info.header.nb_snapshots);
}

/* Would the layers behind t be missed by those who see through t? Not asked of
 * the view, which is about what the active table of t lets through. */
static int shows_below(const struct merge_group *g, size_t t, bool *shows,
                       struct qstill_error *err)
{
    struct chain *c = g->chain;

    *shows = false;
    for (size_t i = t + 1; i <= g->last && !*shows; i++) {
        const struct extents *map = &c->layers[i]->map;
        bool base = i + 1 == c->n;

        if (chain_load(c, i, i, err) < 0)
            return err->code;
        for (size_t k = 0; k < map->n && !*shows; k++)
            *shows = extent_has_bytes(&map->v[k]) ||
                     (!base && extent_is_zero(&map->v[k]));
        chain_forget(c, i, i);
        if (!base && c->layers[i]->size < c->layers[i + 1]->size)
            *shows = true;
    }
    return 0;
}

/* The snapshots of layers whose file does not stay. */
static int check_snapshots(const struct merge_group *g, size_t t,
                           struct qstill_error *err)
{
    size_t end = g->main ? g->last : g->upper;

    for (size_t i = g->upper; i <= end; i++)
        if (i != t && has_snapshots(layer(g, i)))
            return lost_snapshots(layer(g, i), err);
    return 0;
}

/* The internal snapshots of the file that stays see what they saw. */
static int check_kept_snapshots(const struct merge_group *g, size_t t,
                                struct qstill_error *err)
{
    bool shows;

    if (!has_snapshots(layer(g, t)))
        return 0;
    if (shows_below(g, t, &shows, err) < 0)
        return err->code;
    if (!shows)
        return 0;
    return err_set(err, QSTILL_E_PRECONDITION,
                   "the internal snapshots of %s see what %s holds",
                   layer(g, t)->path, layer(g, t + 1)->path);
}

/* A name keeps its format: whoever uses it knows it by that. */
static int check_format(const struct merge_group *g, enum qcow2_format format,
                        struct qstill_error *err)
{
    const struct image *named =
        layer(g, g->main && g->m->lower_name ? g->last : g->upper);

    if (g->m->output || named->info.format == format)
        return 0;
    err_set(err, QSTILL_E_PRECONDITION, "%s is %s and cannot become %s",
            named->path, qcow2_format_name(named->info.format),
            qcow2_format_name(format));
    return err_hint(err, format == QCOW2_FORMAT_RAW
                             ? "merge up or into a new file"
                             : "merge down");
}

/* A file has the same bytes under each of its names, but there its backing file
 * may be another one. Only the lowest layer may stay as it is; whatever else is
 * done to a layer changes what is seen there, or takes its backing file away.
 */
static int check_links(const struct merge_group *g, size_t t,
                       struct qstill_error *err)
{
    bool last_stays = t == g->upper || t == MERGE_NO_TARGET;
    /* of an overlay from outside, the layers are its chain's */
    size_t end = g->main ? g->last : g->upper;
    struct stat st;

    if (g->m->output)
        return 0;
    for (size_t i = g->upper; i <= end; i++) {
        if (i > g->upper && i == g->last && last_stays)
            continue;
        if (fstat(layer(g, i)->fd, &st) < 0)
            return err_errno(err, errno, "cannot stat %s", layer(g, i)->path);
        if (st.st_nlink <= 1)
            continue;
        err_set(err, QSTILL_E_PRECONDITION,
                "%s has other names (hard links), which would lose what they "
                "show",
                layer(g, i)->path);
        return err_hint(err, "find -samefile finds them: give each a copy of "
                             "its own");
    }
    return 0;
}

/* The file of layer t is to get the name g->result. */
static int check_rename(const struct merge_group *g, size_t t,
                        struct qstill_error *err)
{
    const struct image *img = layer(g, t);
    bool same;

    if (strcmp(img->path, g->result) == 0)
        return 0;
    if (removable_same_mount(img->path, g->result, &same, err) < 0)
        return err->code;
    if (same && removable_same_project(img->fd, g->result))
        return 0;
    err_set(err, QSTILL_E_PRECONDITION,
            same ? "%s is of another project (quota) than what may be called %s"
                 : "%s and %s are on different filesystems, or mounts of one",
            img->path, g->result);
    return err_hint(err, "merge up or into a new file");
}

static int check_up(const struct merge_group *g, struct qstill_error *err)
{
    if (check_links(g, g->upper, err) < 0 ||
        check_format(g, layer(g, g->upper)->info.format, err) < 0 ||
        check_snapshots(g, g->upper, err) < 0 ||
        check_rename(g, g->upper, err) < 0)
        return err->code;
    return check_kept_snapshots(g, g->upper, err);
}

static int check_new(const struct merge_group *g, struct qstill_error *err)
{
    const struct image *u = layer(g, g->upper);

    if (check_links(g, MERGE_NO_TARGET, err) < 0 ||
        check_format(g, QCOW2_FORMAT_QCOW2, err) < 0)
        return err->code;
    if (!g->m->output && !attrs_can_make(u->fd))
        return err_set(err, QSTILL_E_PERMISSION,
                       "a new file cannot be given the owner of %s", u->path);
    return check_snapshots(g, MERGE_NO_TARGET, err);
}

static int check_down(const struct merge_group *g, size_t t,
                      struct qstill_error *err)
{
    const struct image *img = layer(g, t);

    if (!g->main)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "%s has other overlays than %s", img->path,
                       layer(g, g->upper)->path);
    if (check_links(g, t, err) < 0 ||
        check_format(g, img->info.format, err) < 0 ||
        check_snapshots(g, t, err) < 0 || check_kept_snapshots(g, t, err) < 0 ||
        check_rename(g, t, err) < 0)
        return err->code;
    if (!attrs_can_copy(layer(g, g->upper)->fd, img->fd))
        return err_set(err, QSTILL_E_PERMISSION,
                       "%s cannot be given the owner of %s", img->path,
                       layer(g, g->upper)->path);
    return 0;
}

/* Bytes that would have to be moved if layer t kept its file. */
static uint64_t cost(const struct merge_group *g, size_t t)
{
    uint64_t bytes = 0;

    for (size_t i = 0; i < g->view.n; i++) {
        const struct extent *e = &g->view.v[i];

        if (e->layer == t || !extent_has_bytes(e))
            continue;
        if (e->kind != EXTENT_COMPRESSED)
            bytes += e->len;
        else if (e->len >= layer(g, e->layer)->cluster_size)
            bytes += e->clen; /* of one in pieces who knows what it takes */
    }
    return bytes;
}

/* What may keep its file, the cheapest first by cost(). */
struct candidate {
    size_t t;
    uint64_t cost; /* no plan moves less */
};

struct candidates {
    struct candidate v[CHAIN_MAX_LAYERS + 1];
    size_t n;
    struct qstill_error why; /* of the first that may not */
};

static void offer(const struct merge_group *g, struct candidates *c, size_t t)
{
    struct qstill_error why = {0};
    size_t i = c->n;
    int r;

    if (t == MERGE_NO_TARGET)
        r = check_new(g, &why);
    else
        r = t == g->upper ? check_up(g, &why) : check_down(g, t, &why);
    if (r == 0)
        r = group_check_names(g, t, &why);
    if (r < 0) {
        if (!c->why.code)
            c->why = why;
        return;
    }
    for (; i > 0 && c->v[i - 1].cost > cost(g, t); i--)
        c->v[i] = c->v[i - 1];
    c->v[i] = (struct candidate){t, cost(g, t)};
    c->n++;
}

static void collect(const struct merge_group *g, struct candidates *c)
{
    enum merge_direction d = g->m->direction;

    /* whoever has the name of a raw image knows that it is raw */
    if (g->m->lower_name && !image_is_qcow2(layer(g, g->last))) {
        offer(g, c, g->last);
        return;
    }
    if (g->m->output || (d == MERGE_NEW && g->main)) {
        offer(g, c, MERGE_NO_TARGET);
        return;
    }
    if (d != MERGE_DOWN || !g->main)
        offer(g, c, g->upper);
    if (d == MERGE_UP || !g->main)
        return;
    for (size_t i = g->last; i > g->upper; i--)
        offer(g, c, i);
    if (d == MERGE_AUTO)
        offer(g, c, MERGE_NO_TARGET);
}

/* ------------------------------------------------------------------ new file
 */

/* The file is planned as a stand-in in memory: an empty image of the same
 * layout. The real one is made when the work begins. */
static int plan_fresh(struct merge_group *g, struct qstill_error *err)
{
    const struct image *u = layer(g, g->upper);
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

/* ---------------------------------------------------------------- the rewrite
 */

static int join_bitmaps(struct merge_group *g, struct qstill_error *err)
{
    const struct image *t = g->target;
    uint64_t size = layer(g, g->upper)->size;
    bool possible =
        image_is_qcow2(t) && t->info.header.version >= 3 && size > 0;

    return bitmap_join(g->chain, g->upper, g->last, g->t, size, possible,
                       &g->join, err);
}

/* Whether the target's filesystem shares blocks between files, and so may have
 * to find new ones for what is written over: a piece that starts in the middle
 * of a block is refused by one that does for being that, by one that does not
 * for being asked. Nothing is changed. */
static bool shares_blocks(const struct image *t)
{
    return t->io->ops->clone_range(t->io, t->fd, 0, 1, t->wfd, 1) == -EINVAL;
}

/* The layers between the target and the upper image see what is written over,
 * and do not mask all of it. Version 2 has no bit for the mark. */
static bool can_mark_torn(const struct merge_group *g)
{
    for (size_t i = g->upper + 1; i <= g->t; i++) {
        struct qstill_error ignored;

        if (layer(g, i)->info.header.version < 3 ||
            image_open_write(layer(g, i), &ignored) < 0)
            return false;
    }
    return true;
}

/* Only what can be marked as torn meanwhile. */
static bool may_overwrite(const struct merge_group *g)
{
    bool below =
        g->main && !g->m->output && g->t != MERGE_NO_TARGET && g->t != g->upper;

    return below && can_mark_torn(g) && !shares_blocks(g->target);
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
        .size = layer(g, g->upper)->size,
        .has_backing = g->last + 1 < c->n,
        .join = &g->join,
        .overwrite = may_overwrite(g),
    };
    if (g->rw.has_backing)
        g->rw.backing_size = layer(g, g->last + 1)->size;
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
    h->has_backing = h->has_format = g->backing != NULL;
    strcpy(h->backing, g->backing ? g->backing : "");
    strcpy(h->backing_format, g->backing ? g->backing_format : "");
    return qcow2_header_replaceable(h, g->target->path, err);
}

static int plan_target(struct merge_group *g, struct qstill_error *err)
{
    g->kind = g->t == MERGE_NO_TARGET ? MERGE_NEW_FILE : MERGE_IN_PLACE;
    if (g->kind == MERGE_NEW_FILE) {
        if (plan_fresh(g, err) < 0)
            return err->code;
        g->target = g->fresh;
    } else {
        g->target = layer(g, g->t);
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
        if (layer(g, i) != g->target)
            freed += layer(g, i)->info.allocated;
    return freed;
}

/* Forgets the plan of another candidate. */
static void plan_reset(struct merge_group *g)
{
    rewrite_fini(&g->rw);
    g->rw = (struct rewrite){0};
    bitmap_join_fini(&g->join);
    free(take_ptr(&g->zeros.v));
    g->zeros = (struct moves){0};
    image_close(take_ptr(&g->fresh));
    free(take_ptr(&g->backing));
    g->bytes = 0;
}

static int plan_candidate(struct merge_group *g, size_t t,
                          struct qstill_error *err)
{
    plan_reset(g);
    g->t = t;
    if ((g->view_last != g->last && make_view(g, g->last, err) < 0) ||
        group_name_backing(g, err) < 0)
        return err->code;
    return plan_target(g, err);
}

/* Plans in earnest, for only a plan knows what has to be copied to fill
 * clusters of another size, until no candidate can be cheaper. One that turns
 * out to be impossible is passed over. */
static int choose(struct merge_group *g, struct qstill_error *err)
{
    CLEANUP(freep) struct candidates *c = calloc(1, sizeof(*c));
    size_t best = 0, planned = 0;
    uint64_t bytes = UINT64_MAX;

    if (!c)
        return err_nomem(err);
    collect(g, c);
    for (size_t i = 0; i < c->n && c->v[i].cost < bytes; i++) {
        struct qstill_error why = {0};

        if (plan_candidate(g, c->v[i].t, &why) < 0) {
            if (why.code != QSTILL_E_PRECONDITION &&
                why.code != QSTILL_E_PERMISSION)
                return *err = why, why.code;
            if (!c->why.code)
                c->why = why;
            continue;
        }
        planned = i;
        if (g->bytes < bytes) {
            best = i;
            bytes = g->bytes;
        }
    }
    if (bytes == UINT64_MAX)
        return *err = c->why, c->why.code;
    return planned == best && g->t == c->v[best].t
               ? 0
               : plan_candidate(g, c->v[best].t, err);
}

int group_plan(struct merge_group *g, struct qstill_error *err)
{
    if (group_name_result(g, err) < 0 || group_look_at_names(g, err) < 0 ||
        lock_layers(g, err) < 0 || make_view(g, g->last, err) < 0 ||
        choose(g, err) < 0)
        return err->code;
    g->freed = freed_estimate(g);
    g->share = true;
    return 0;
}
