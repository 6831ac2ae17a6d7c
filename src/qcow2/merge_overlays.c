/* SPDX-License-Identifier: MIT */
/*
 * Overlays that others make of what is to go while a merge runs. No lock keeps
 * them from it, for qemu-img create asks for none; without its layer the new
 * image would be lost. So the directories are looked through a second time, as
 * late as there is a way back. Their own times would not tell: an image that is
 * there already can be given another backing file.
 */
#include <string.h>

#include "merge_impl.h"

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

    if (!g->main || m->output)
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
