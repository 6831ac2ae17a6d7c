/* SPDX-License-Identifier: MIT */
/* Merges of layers that the running QEMU has open. */
#include <string.h>

#include "collapse_impl.h"
#include "layer_file.h"
#include "livechain.h"
#include "liveswap.h"
#include "qmp/graph.h"

void collapse_graph_changed(struct collapse *c)
{
    qmp_graph_fini(&c->graph);
    memset(&c->graph, 0, sizeof(c->graph));
    c->has_graph = c->patched = false;
}

struct qmp_graph *collapse_graph(struct collapse *c, struct qstill_error *err)
{
    if (!c->s->qmp)
        return NULL;
    if (!c->has_graph && (qmp_swap_works(c->s->qmp, &c->swaps, err) < 0 ||
                          qmp_graph_read(c->s->qmp, &c->graph, err) < 0))
        return NULL;
    c->has_graph = true;
    return &c->graph;
}

/* From the top: each node holds the one below it. */
int collapse_release(struct collapse *c, const struct step *st,
                     struct qstill_error *err)
{
    const struct qmp_graph *g = collapse_graph(c, err);

    if (!g)
        return err->code;
    for (const struct layer *l = st->first;; l = l->below) {
        if (l->children == 1 && livechain_release(c->s, g, l->path, err) < 0)
            return err->code;
        if (l == st->last)
            return 0;
    }
}

/* The head is folded into the lowest layer, which becomes the head. The layers
 * in between, and the old head, are hidden layers without children then. */
static int fold_head(struct collapse *c, struct vm_disk *d,
                     const struct step *st, struct qstill_error *err)
{
    struct session *s = c->s;
    struct qmp_graph *g = collapse_graph(c, err);

    if (!g)
        return err->code;
    if (livechain_commit_head(s, g, d, st->last->path, st->last->format, c->j,
                              err) < 0) {
        collapse_graph_changed(c);
        /* what QEMU has written by then, the head masks */
        c->no_room = err->code == QSTILL_E_NO_SPACE && !c->j->pivot_disk;
        return err->code;
    }
    if (livechain_release(s, g, st->child->path, err) < 0)
        return err->code;
    if (c->text)
        buf_printf(c->text, "folded %s into %s\n", st->child->path,
                   st->last->path);
    return 0;
}

/* What has been pulled stays: the layer reads the same with it. */
static int leave_pull(struct collapse *c, const struct step *st,
                      struct qstill_error *err)
{
    struct qstill_error second = {0};

    if (err->code == QSTILL_E_BUSY)
        c->j->rewriting = NULL; /* it was not begun */
    if (err->code != QSTILL_E_NO_SPACE ||
        livechain_settle_pull(c->s, c->j, &second) < 0 ||
        collapse_reidentify(c->s, st->child->path, &second) < 0)
        return err->code;
    c->j->rewriting = NULL;
    c->no_room = true;
    return err->code;
}

static int pull(struct collapse *c, struct vm_disk *d, const struct step *st,
                struct qstill_error *err)
{
    struct session *s = c->s;

    c->j->rewriting = st->child->path;
    collapse_graph_changed(c);
    if (livechain_pull(s, d, st->child, st->first, st->last, c->j, err) < 0)
        return leave_pull(c, st, err);
    if (collapse_reidentify(s, st->child->path, err) < 0)
        return err->code;
    c->j->rewriting = NULL;
    if (collapse_release(c, st, err) < 0)
        return err->code;
    if (c->text)
        buf_printf(c->text, "pulled %s into %s\n", st->first->path,
                   st->child->path);
    return 0;
}

int collapse_live(struct collapse *c, const struct step *st,
                  struct qstill_error *err)
{
    struct vm_disk *d = vmrecord_disk(&c->s->rec, st->first->disk);

    if (!d)
        return err_set(err, QSTILL_E_NOT_FOUND, "VM %s has no disk %s",
                       c->s->vm, st->first->disk);
    switch (st->kind) {
    case STEP_FOLD_LIVE:
        return fold_head(c, d, st, err);
    case STEP_SWAP_LIVE:
        return liveswap(c, d, st, err);
    default:
        return pull(c, d, st, err);
    }
}
