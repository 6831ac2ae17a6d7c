/* SPDX-License-Identifier: MIT */
/*
 * Whose bytes a merge may bring into a file that somebody else reads. What the
 * caller names is his to give: the layers that go, into the chain that he named
 * and into overlays that he names. Not so an overlay that was only found beside
 * them, which anybody may have put there, and what the lowest of these layers
 * stands on, of which clusters are filled where they are larger: a header names
 * it, and whoever wrote that need not be able to read it.
 */
#include <stdlib.h>

#include "merge_impl.h"
#include "rights.h"

static void mark_view(struct extent_walk *x, uint64_t from, uint64_t to,
                      bool *used)
{
    for (extents_seek(x, from); x->on && x->e.guest < to; extents_next(x)) {
        if (extent_has_bytes(&x->e))
            used[x->e.layer] = true;
        if (extent_end(&x->e) >= to)
            return;
    }
}

/* Of which layers bytes are moved. */
static void mark_used(const struct merge_group *g, bool *used)
{
    struct extent_walk x = extents_walk(&g->view, 0);

    for (struct move_walk w = moves_walk(&g->rw.moves); w.on; moves_next(&w)) {
        const struct move *mv = &w.m;

        if (mv->layer == MOVE_GUEST)
            mark_view(&x, mv->from, mv->from + mv->len, used);
        else
            used[mv->layer] = true;
    }
}

static int hint(const struct merge_group *g, bool found,
                struct qstill_error *err)
{
    if (err->code != QSTILL_E_PRECONDITION)
        return err->code;
    return found ? err_hint(err,
                            "--child %s gives it that all the same; or move "
                            "it, or give it an owner and a mode (chmod) with "
                            "which it may have that",
                            group_layer(g, g->upper)->path)
                 : err_hint(err,
                            "give it an owner and a mode (chmod) with which "
                            "it may have that; or make an image of your own: "
                            "qstill image flatten");
}

int group_check_rights(const struct merge_group *g, struct qstill_error *err)
{
    const struct chain *c = g->chain;
    bool found = !g->main && !g->named;
    size_t first = found ? g->upper + 1 : g->last + 1;
    CLEANUP(freep) bool *used = NULL;

    if (!found && (g->m->below_is_theirs || !g->rw.needs_below))
        return 0;
    used = calloc(c->n, sizeof(*used));
    if (!used)
        return err_nomem(err);
    mark_used(g, used);
    for (size_t i = first; i < c->n; i++)
        if (used[i] &&
            rights_check_copy(c->layers[i], group_layer(g, g->upper), err) < 0)
            return hint(g, found, err);
    return 0;
}
