/* SPDX-License-Identifier: MIT */
#include "base/checked.h"
#include "mover_impl.h"

/* Files' pieces in one look, each of them a system call. */
#define PIECES 64

void mover_share_init(struct mover *m)
{
    const struct mover_options *o = &m->o;
    uint64_t unit = o->share ? share_unit(o->target->wfd) : 0;

    for (size_t i = 0; i < o->chain->n; i++)
        m->shareable[i] = true;
    m->ask = (struct share_ask){.chain = o->chain,
                                .view = o->view,
                                .from = m->shareable,
                                .unit = unit,
                                .granule = max_u64(unit, o->zero_block)};
}

static void refuse(struct mover *m, size_t layer)
{
    m->shareable[layer] = false;
    for (size_t i = 0; i < m->o.chain->n; i++)
        if (m->shareable[i])
            return;
    m->ask.unit = 0; /* nothing more to look for */
}

/* So many bytes of the move from `at` on, up to the first that the filesystem
 * does not want to. */
static uint64_t share(struct mover *m, const struct move *mv, uint64_t at,
                      uint64_t len, size_t *calls)
{
    const struct image *t = m->o.target;
    uint64_t from = mv->from + at, done = 0;

    for (struct extent_walk x = extents_walk(m->o.view, from); done < len;
         extents_next(&x)) {
        struct extent e = extent_cut(&x.e, from + done, from + len);
        const struct image *src = m->o.chain->layers[e.layer];

        ++*calls;
        if (t->io->ops->clone_range(t->io, src->fd, e.host, e.len, t->wfd,
                                    mv->dst + at + done) < 0) {
            refuse(m, e.layer);
            break;
        }
        done += e.len;
    }
    /* of a granule that is shared in part the whole is written */
    return round_down_u64(done, m->ask.granule);
}

bool mover_may_share(const struct mover *m)
{
    return share_ahead(&m->ask, &m->next.m, m->at, 1) > 0;
}

size_t mover_share(struct mover *m)
{
    const struct move *mv = &m->next.m;
    uint64_t len = share_ahead(&m->ask, mv, m->at, PIECES);
    size_t calls = 0;

    len = len > 0 ? share(m, mv, m->at, len, &calls) : 0;
    if (len == 0)
        return 0;
    m->count.done += len;
    m->count.shared += len;
    mover_advance(m, len);
    return calls;
}

bool mover_can_share(struct mover *m)
{
    size_t calls = 0;

    for (struct move_walk w = moves_walk(m->o.moves); w.on && m->ask.unit > 0;
         moves_next(&w)) {
        const struct move *mv = &w.m;

        for (uint64_t at = 0; at < mv->len;) {
            uint64_t len = share_ahead(&m->ask, mv, at, 1);

            if (len > 0)
                return share(m, mv, at, len, &calls) > 0;
            at += share_distance(&m->ask, mv, at, mv->len);
        }
    }
    return false;
}
