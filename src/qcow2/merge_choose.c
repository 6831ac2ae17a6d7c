/* SPDX-License-Identifier: MIT */
/*
 * Which layer keeps its file in a merge. The view says how many bytes each
 * layer brings; the layer keeps it with which fewest are copied, if it may:
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
#include <sys/stat.h>

#include "attrs.h"
#include "base/checked.h"
#include "merge_impl.h"
#include "removable.h"

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
        for (struct extent_walk w = extents_walk(map, 0); w.on && !*shows;
             extents_next(&w))
            *shows = extent_has_bytes(&w.e) || (!base && extent_is_zero(&w.e));
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
        if (i != t && has_snapshots(group_layer(g, i)))
            return lost_snapshots(group_layer(g, i), err);
    return 0;
}

/* The internal snapshots of the file that stays see what they saw. */
static int check_kept_snapshots(const struct merge_group *g, size_t t,
                                struct qstill_error *err)
{
    bool shows;

    if (!has_snapshots(group_layer(g, t)))
        return 0;
    if (shows_below(g, t, &shows, err) < 0)
        return err->code;
    if (!shows)
        return 0;
    return err_set(err, QSTILL_E_PRECONDITION,
                   "the internal snapshots of %s see what %s holds",
                   group_layer(g, t)->path, group_layer(g, t + 1)->path);
}

/* A name keeps its format: whoever uses it knows it by that. */
static int check_format(const struct merge_group *g, enum qcow2_format format,
                        struct qstill_error *err)
{
    const struct image *named =
        group_layer(g, g->main && g->m->lower_name ? g->last : g->upper);

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
        if (fstat(group_layer(g, i)->fd, &st) < 0)
            return err_errno(err, errno, "cannot stat %s",
                             group_layer(g, i)->path);
        if (st.st_nlink <= 1)
            continue;
        err_set(err, QSTILL_E_PRECONDITION,
                "%s has other names (hard links), which would lose what they "
                "show",
                group_layer(g, i)->path);
        return err_hint(err, "find -samefile finds them: give each a copy of "
                             "its own");
    }
    return 0;
}

/* The file of layer t is to get the name g->result. */
static int check_rename(const struct merge_group *g, size_t t,
                        struct qstill_error *err)
{
    const struct image *img = group_layer(g, t);
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
        check_format(g, group_layer(g, g->upper)->info.format, err) < 0 ||
        check_snapshots(g, g->upper, err) < 0 ||
        check_rename(g, g->upper, err) < 0)
        return err->code;
    return check_kept_snapshots(g, g->upper, err);
}

static int check_new(const struct merge_group *g, struct qstill_error *err)
{
    const struct image *u = group_layer(g, g->upper);

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
    const struct image *img = group_layer(g, t);

    if (!g->main)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "%s has other overlays than %s", img->path,
                       group_layer(g, g->upper)->path);
    if (check_links(g, t, err) < 0 ||
        check_format(g, img->info.format, err) < 0 ||
        check_snapshots(g, t, err) < 0 || check_kept_snapshots(g, t, err) < 0 ||
        check_rename(g, t, err) < 0)
        return err->code;
    if (!attrs_can_copy(group_layer(g, g->upper)->fd, img->fd))
        return err_set(err, QSTILL_E_PERMISSION,
                       "%s cannot be given the owner of %s", img->path,
                       group_layer(g, g->upper)->path);
    return 0;
}

/* What keeping the file of a layer comes to. */
struct price {
    uint64_t copied; /* bytes that no two files can share */
    uint64_t bytes;  /* those too */
};

static bool is_cheaper(const struct price *a, const struct price *b)
{
    return a->copied != b->copied ? a->copied < b->copied : a->bytes < b->bytes;
}

/* No plan in which layer t keeps its file comes to less. */
static struct price least(const struct merge_group *g, size_t t)
{
    struct price p = {0, 0};

    for (struct extent_walk w = extents_walk(&g->view, 0); w.on;
         extents_next(&w)) {
        const struct extent *e = &w.e;

        if (e->layer == t || !extent_has_bytes(e))
            continue;
        if (e->kind != EXTENT_COMPRESSED) {
            p.bytes += e->len;
            if (!g->sharing.from[e->layer])
                p.copied += e->len;
        } else if (e->len >= group_layer(g, e->layer)->cluster_size) {
            /* of one in pieces who knows what it takes */
            p.bytes += e->clen;
            p.copied += e->clen;
        }
    }
    return p;
}

/* What may keep its file, the cheapest first by least(). */
struct candidate {
    size_t t;
    struct price least;
};

struct candidates {
    struct candidate v[CHAIN_MAX_LAYERS + 1];
    size_t n;
    struct qstill_error why; /* of the first that may not */
};

static int look(struct merge_group *g, size_t t, struct qstill_error *err)
{
    int r = t == MERGE_NO_TARGET ? check_new(g, err)
            : t == g->upper      ? check_up(g, err)
                                 : check_down(g, t, err);

    if (r == 0)
        r = group_check_names(g, t, err);
    return r < 0 ? r : group_find_sharing(g, t, err);
}

static void offer(struct merge_group *g, struct candidates *c, size_t t)
{
    struct qstill_error why = {0};
    struct price p;
    size_t i = c->n;

    if (look(g, t, &why) < 0) {
        if (!c->why.code)
            c->why = why;
        return;
    }
    p = least(g, t);
    for (; i > 0 && is_cheaper(&p, &c->v[i - 1].least); i--)
        c->v[i] = c->v[i - 1];
    c->v[i] = (struct candidate){t, p};
    c->n++;
}

static void collect(struct merge_group *g, struct candidates *c)
{
    enum merge_direction d = g->m->direction;

    /* whoever has the name of a raw image knows that it is raw */
    if (g->m->lower_name && !image_is_qcow2(group_layer(g, g->last))) {
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

/* Plans in earnest, for only a plan knows what has to be copied to fill
 * clusters of another size, until no candidate can be cheaper. One that turns
 * out to be impossible is passed over. */
int group_choose(struct merge_group *g, struct qstill_error *err)
{
    CLEANUP(freep) struct candidates *c = calloc(1, sizeof(*c));
    struct price price = {UINT64_MAX, UINT64_MAX};
    size_t best = 0, planned = 0;
    bool found = false;

    if (!c)
        return err_nomem(err);
    collect(g, c);
    for (size_t i = 0; i < c->n && is_cheaper(&c->v[i].least, &price); i++) {
        struct qstill_error why = {0};
        struct price p;

        if (group_plan_target(g, c->v[i].t, &why) < 0) {
            if (why.code != QSTILL_E_PRECONDITION &&
                why.code != QSTILL_E_PERMISSION)
                return *err = why, why.code;
            if (!c->why.code)
                c->why = why;
            continue;
        }
        planned = i;
        p = (struct price){g->bytes - g->shared, g->bytes};
        if (!found || is_cheaper(&p, &price)) {
            best = i;
            price = p;
        }
        found = true;
    }
    if (!found)
        return *err = c->why, c->why.code;
    return planned == best && g->t == c->v[best].t
               ? 0
               : group_plan_target(g, c->v[best].t, err);
}
