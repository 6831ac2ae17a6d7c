/* SPDX-License-Identifier: MIT */
/*
 * Overlays that others make of what is to go while a merge runs. No lock keeps
 * them from it, for qemu-img create asks for none; without its layer the new
 * image would be lost. So the directories are looked through a second time, as
 * late as there is a way back. Their own times would not tell: an image that is
 * there already can be given another backing file.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "merge_impl.h"

static bool is_heir(const struct merge *m, const char *path)
{
    for (size_t i = 0; i < m->heirs.n; i++)
        if (strcmp(m->heirs.v[i].path, path) == 0)
            return true;
    return false;
}

/* Another file in the place of one that is done may stand on what is to go, and
 * need not be in one of the directories. */
static int check_done(const struct merge *m, struct qstill_error *err)
{
    for (size_t i = 0; i < m->now; i++)
        if (!m->groups[i].main &&
            record_check_done(&m->groups[i].record, err) < 0)
            return err->code;
    return 0;
}

/* Those that were known have taken in what they need by now. */
int group_check_overlays(struct merge_group *g, struct qstill_error *err)
{
    CLEANUP(children_fini) struct children now = {0};
    struct merge *m = g->m;
    size_t first = m->lower_name ? g->upper : g->upper + 1;

    if (!g->main || m->output)
        return 0;
    if (check_done(m, err) < 0)
        return err_hint(err, "nothing has changed: try again");
    if (children_find(g->chain, first, g->last, NULL, 0, m->seen, &now, err) <
        0)
        return err->code;
    for (size_t i = 0; i < now.n; i++) {
        const struct child *c = &now.v[i];

        if (is_heir(m, c->path))
            continue;
        err_set(err, QSTILL_E_BUSY, "%s was made meanwhile, and stands on %s",
                c->path, g->chain->layers[c->parent]->path);
        return err_hint(err, "nothing has changed: try again");
    }
    return 0;
}

static bool is_found(const struct children *ch, const struct stat *st)
{
    struct stat other;

    for (size_t i = 0; i < ch->n; i++)
        if (stat(ch->v[i].path, &other) == 0 && other.st_dev == st->st_dev &&
            other.st_ino == st->st_ino)
            return true;
    return false;
}

static bool is_layer(const struct chain *c, const struct stat *st)
{
    for (size_t i = 0; i < c->n; i++)
        if (c->layers[i]->info.dev == st->st_dev &&
            c->layers[i]->info.ino == st->st_ino)
            return true;
    return false;
}

/* On one that stays, of whatever format: as after an earlier try, in which it
 * has taken in what it read from those that go. */
static bool stands_on_chain(const struct merge *m, const char *path)
{
    CLEANUP(qcow2_info_fini) struct qcow2_info info = {0};
    CLEANUP(freep) char *backing = NULL;
    struct qstill_error ignored = {0};
    struct stat st;

    return qcow2_info_read(m->io, AT_FDCWD, path, QCOW2_FORMAT_QCOW2, &info,
                           &ignored) == 0 &&
           info.header.has_backing &&
           chain_resolve(path, info.header.backing, &backing, &ignored) == 0 &&
           stat(backing, &st) == 0 && is_layer(m->chain, &st);
}

int merge_check_named(const struct merge *m, const struct merge_request *q,
                      struct qstill_error *err)
{
    for (size_t i = 0; i < q->child_count; i++) {
        const char *path = q->children[i];
        struct stat st;

        if (stat(path, &st) == 0 &&
            (is_found(&m->children, &st) || is_found(&m->heirs, &st) ||
             (!is_layer(m->chain, &st) && stands_on_chain(m, path)) ||
             (q->tried && merge_asked_is_alone(m->io, q->tried, path))))
            continue;
        err_set(err, QSTILL_E_PRECONDITION,
                "child: %s does not stand on a layer that is to go", path);
        return err_hint(err, "name the overlay that does, or none: what is "
                             "overlooked loses its layer");
    }
    return 0;
}
