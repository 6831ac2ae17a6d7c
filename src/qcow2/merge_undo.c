/* SPDX-License-Identifier: MIT */
/* A group that does not come to its end: everything as it was. */
#include <sys/stat.h>

#include "merge_impl.h"
#include "torn.h"

static int unmark_torn(struct merge_group *g, struct qstill_error *err)
{
    for (size_t i = g->upper + 1; g->marked && i <= g->t; i++) {
        const struct image *img = g->chain->layers[i];

        if (torn_unmark(img->io, img->wfd, img->path, &img->info.header, err) <
            0)
            return err->code;
    }
    return 0;
}

/* The length, and the blocks put into holes of the file. */
static int undo_in_place(struct merge_group *g, struct qstill_error *err)
{
    const struct rewrite *rw = &g->rw;
    struct image *t = g->target;
    struct stat st;

    if (!t || t->wfd < 0) /* merge_open() has failed: not begun */
        return 0;
    if (unmark_torn(g, err) < 0)
        return err->code;
    for (struct move_walk w = moves_walk(&rw->moves); w.on; moves_next(&w))
        if (w.m.dst < rw->old_end && !w.m.over)
            io_punch(t->io, t->wfd, w.m.dst, w.m.len);
    if (fstat(t->wfd, &st) == 0 && (uint64_t)st.st_size <= rw->old_end)
        return 0;
    if (io_truncate(t->io, t->wfd, rw->old_end, t->path, err) < 0)
        return err->code;
    return io_sync(t->io, t->wfd, t->path, err);
}

static int undo_new_file(struct merge_group *g, struct qstill_error *err)
{
    CLEANUP(closep) int dirfd = -1;
    const char *name;
    const char *path = g->m->output ? g->m->output : g->record.target.path;

    if (!path || !g->target || g->target->wfd < 0) /* not made */
        return 0;
    if (!g->m->output && g->record.made.ino &&
        !merge_id_is(path, &g->record.made))
        return 0; /* not ours */
    if (path_open_dir(path, &dirfd, &name, err) < 0)
        return err->code;
    return io_unlink(g->m->io, dirfd, name, err);
}

bool group_is_lost(const struct merge_group *g)
{
    struct stat st;

    return g->kind != MERGE_NEW_FILE && g->target &&
           fstat(g->target->fd, &st) == 0 && st.st_nlink == 0;
}

int group_undo(struct merge_group *g, struct qstill_error *err)
{
    int r = 0;

    mover_close(take_ptr(&g->mover));
    if (g->kind == MERGE_NEW_FILE)
        r = undo_new_file(g, err);
    else if (g->kind != MERGE_IN_PLACE && g->phase != PHASE_BEGIN &&
             !group_is_lost(g))
        return err_set(err, QSTILL_E_FAILED,
                       "%s is partly written over: the merge can only go on, "
                       "as the next one here does",
                       g->target->path);
    else if (g->kind != MERGE_INTO_RAW)
        r = undo_in_place(g, err);
    if (r == 0 && g->m->adopted)
        return err_set(err, QSTILL_E_FAILED,
                       "a broken merge can only go on, which failed");
    if (r == 0 && !g->m->output)
        r = merge_journal_clear(&g->m->journal, err);
    return r;
}
