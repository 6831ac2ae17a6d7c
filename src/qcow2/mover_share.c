/* SPDX-License-Identifier: MIT */
#include "mover_impl.h"
#include "share.h"

static bool may_share_piece(void *user, const struct extent *e, uint64_t dst)
{
    const struct mover *m = user;

    return !m->unshareable[e->layer] &&
           share_fits(e, m->o.chain->layers[e->layer]->info.file_size, dst,
                      m->share_unit);
}

static bool share_piece(void *user, const struct extent *e, uint64_t dst)
{
    struct mover *m = user;
    const struct image *t = m->o.target;
    const struct image *src = m->o.chain->layers[e->layer];

    if (!may_share_piece(m, e, dst))
        return false;
    if (t->io->ops->clone_range(t->io, src->fd, e->host, e->len, t->wfd, dst) <
        0) {
        m->unshareable[e->layer] = true;
        return false;
    }
    return true;
}

bool mover_may_share(struct mover *m)
{
    return m->o.share && m->at == 0 &&
           share_pieces(m->o.view, &m->o.moves->v[m->next], may_share_piece, m);
}

bool mover_share(struct mover *m)
{
    const struct move *mv = &m->o.moves->v[m->next];

    if (!m->o.share || m->at != 0 ||
        !share_pieces(m->o.view, mv, share_piece, m))
        return false;
    m->count.done += mv->len;
    m->count.shared += mv->len;
    m->next++;
    return true;
}

static bool was_refused(const struct mover *m)
{
    for (size_t i = 0; i < m->o.chain->n; i++)
        if (m->unshareable[i])
            return true;
    return false;
}

bool mover_can_share(struct mover *m)
{
    for (size_t k = 0; m->o.share && k < m->o.moves->n && !was_refused(m); k++)
        if (share_pieces(m->o.view, &m->o.moves->v[k], share_piece, m))
            return true;
    return false;
}
