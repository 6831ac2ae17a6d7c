/* SPDX-License-Identifier: MIT */
#include "mover_impl.h"

static bool share_extent(struct mover *m, const struct extent *e, uint64_t dst)
{
    const struct image *t = m->o.target;
    const struct image *src = m->o.chain->layers[e->layer];

    if (e->kind != EXTENT_DATA || m->unshareable[e->layer] ||
        e->host + e->len > src->info.file_size)
        return false;
    if (t->io->ops->clone_range(t->io, src->fd, e->host, e->len, t->wfd, dst) <
        0) {
        m->unshareable[e->layer] = true;
        return false;
    }
    return true;
}

bool mover_share(struct mover *m)
{
    const struct move *mv = &m->o.moves->v[m->next];
    const struct extents *x = m->o.view;
    uint64_t done = 0;

    if (!m->o.share || mv->layer != MOVE_GUEST || m->at != 0)
        return false;
    for (size_t i = extents_find(x, mv->from); done < mv->len; i++) {
        struct extent e;

        if (i >= x->n || x->v[i].guest > mv->from + done)
            return false;
        e = extent_cut(&x->v[i], mv->from, mv->from + mv->len);
        if (!share_extent(m, &e, mv->dst + done))
            return false;
        done += e.len;
    }
    m->count.done += mv->len;
    m->count.shared += mv->len;
    m->next++;
    return true;
}

bool mover_can_share(struct mover *m)
{
    const struct extents *x = m->o.view;

    for (size_t k = 0; m->o.share && k < m->o.moves->n; k++) {
        const struct move *mv = &m->o.moves->v[k];
        size_t i = extents_find(x, mv->from);
        struct extent e;

        if (mv->layer != MOVE_GUEST || i >= x->n || x->v[i].guest > mv->from ||
            x->v[i].kind != EXTENT_DATA)
            continue;
        e = extent_cut(&x->v[i], mv->from, mv->from + mv->len);
        return share_extent(m, &e, mv->dst);
    }
    return false;
}
