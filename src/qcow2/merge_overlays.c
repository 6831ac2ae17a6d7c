/* SPDX-License-Identifier: MIT */
/*
 * Overlays that others make of what is to go while a merge runs. No lock keeps
 * them from it, for qemu-img create asks for none; without its layer the new
 * image would be lost. So the directories are looked through a second time, as
 * late as there is a way back, unless no name in them has changed.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "merge_impl.h"

/* A change within the clock's tick of another does not show. */
#define TICK_NS 50000000ll

struct merge_dir {
    struct merge_id id;
    struct timespec changed;
};

static int dir_of(const char *path, struct stat *st, struct qstill_error *err)
{
    CLEANUP(freep) char *dir = path_dir(path);

    if (!dir)
        return err_nomem(err);
    if (stat(dir[0] ? dir : ".", st) < 0)
        return err_errno(err, errno, "cannot stat the directory of %s", path);
    return 0;
}

static bool is_long_ago(struct timespec t)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return (now.tv_sec - t.tv_sec) * 1000000000ll + now.tv_nsec - t.tv_nsec >
           TICK_NS;
}

int merge_note_dirs(struct merge *m, struct qstill_error *err)
{
    m->dirs = calloc(m->chain->n, sizeof(*m->dirs));
    if (!m->dirs)
        return err_nomem(err);
    m->dirs_tell = true;
    for (size_t i = 0; i < m->chain->n; i++) {
        struct stat st;

        if (dir_of(m->chain->layers[i]->path, &st, err) < 0)
            return err->code;
        m->dirs[i].id = (struct merge_id){st.st_dev, st.st_ino};
        m->dirs[i].changed = st.st_ctim;
        m->dirs_tell &= is_long_ago(st.st_ctim);
    }
    return 0;
}

static bool dirs_are_as_noted(const struct merge *m)
{
    for (size_t i = 0; i < m->chain->n; i++) {
        const struct merge_dir *d = &m->dirs[i];
        struct qstill_error ignored;
        struct stat st;

        if (dir_of(m->chain->layers[i]->path, &st, &ignored) < 0 ||
            st.st_dev != d->id.dev || st.st_ino != d->id.ino ||
            st.st_ctim.tv_sec != d->changed.tv_sec ||
            st.st_ctim.tv_nsec != d->changed.tv_nsec)
            return false;
    }
    return m->dirs_tell;
}

static bool is_heir(const struct merge *m, const char *path)
{
    for (size_t i = 0; i < m->heirs.n; i++)
        if (strcmp(m->heirs.v[i].path, path) == 0)
            return true;
    return false;
}

/* Those that were known have taken in what they need by now. */
int group_check_overlays(struct merge_group *g, struct qstill_error *err)
{
    CLEANUP(children_fini) struct children now = {0};
    struct merge *m = g->m;
    size_t first = m->lower_name ? g->upper : g->upper + 1;

    if (!g->main || m->output || dirs_are_as_noted(m))
        return 0;
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
