/* SPDX-License-Identifier: MIT */
/*
 * What a merge reads and writes must be what it was. Whatever it writes gets
 * another identity, and what it reads goes: nobody could tell any more.
 */
#include <string.h>

#include "collapse_impl.h"
#include "layer_file.h"
#include "trash.h"

/* ------------------------------------------------------------------- before
 */

/* Layers that are given another name for what they read, too. What is kept for
 * undo keeps its own. */
static bool is_written(const struct step *st, const struct layer *l)
{
    if (l == st->child)
        return true;
    switch (st->kind) {
    case STEP_MERGE:
        return l->below == st->first;
    case STEP_LOWER:
    case STEP_FOLD:
    case STEP_SWAP_LIVE:
        return l->below == st->child && !l->trash;
    default:
        return false;
    }
}

static int check_named(const struct layer *l, struct qstill_error *err)
{
    const struct manifest *m = l->named;

    for (size_t i = 0; i < m->disk_count; i++)
        if (strcmp(m->disks[i].path, l->path) == 0 &&
            layer_check(&m->disks[i], err) < 0)
            return err_wrap(err, "snapshot %s", m->name);
    return 0;
}

/* What is gone, or cannot be read, the step itself says. */
static int check_one(struct collapse *c, struct layer *l,
                     struct qstill_error *err)
{
    if (l->same || l->head || l->missing)
        return 0;
    if (l->named)
        check_named(l, err);
    else
        layer_check_unnamed(c->s, l->path, err);
    if (err->code == QSTILL_E_CORRUPT)
        return err->code;
    l->same = true;
    return err_clear(err);
}

int collapse_check(struct collapse *c, const struct step *st,
                   struct qstill_error *err)
{
    for (struct layer *l = st->first;; l = l->below) {
        if (check_one(c, l, err) < 0)
            return err->code;
        if (l == st->last)
            break;
    }
    for (size_t i = 0; i < c->all.count; i++)
        if (is_written(st, &c->all.items[i]) &&
            check_one(c, &c->all.items[i], err) < 0)
            return err->code;
    return 0;
}

static bool in_run(const struct step *st, const struct layer *l)
{
    for (const struct layer *x = st->first; x; x = x->below) {
        if (x == l)
            return true;
        if (x == st->last)
            return false;
    }
    return false;
}

/* The layers of the run, what takes them in, and what reads any of these. */
static bool may_write(const struct step *st, const struct layer *l)
{
    return in_run(st, l) || l == st->child ||
           (l->below && (in_run(st, l->below) || l->below == st->child));
}

static bool forget_identity(struct session *s, const char *path)
{
    for (size_t i = 0; i < s->rec.hidden_count; i++) {
        struct vm_hidden *h = &s->rec.hidden[i];

        if (h->ino == 0 || strcmp(h->path, path) != 0)
            continue;
        layer_forget(h);
        return true;
    }
    return false;
}

/* What is left of these is recognised anew at the end: not one that was changed
 * and is only near. */
int collapse_expect(struct collapse *c, const struct step *st,
                    struct qstill_error *err)
{
    bool any = false;

    for (size_t i = 0; i < c->all.count; i++) {
        struct layer *l = &c->all.items[i];
        struct qstill_error ignored = {0};

        if (l->hidden && may_write(st, l) && check_one(c, l, &ignored) == 0)
            any |= forget_identity(c->s, l->path);
    }
    return any ? vmrecord_save(c->s->vmfd, &c->s->rec, err) : 0;
}

/* -------------------------------------------------------------------- after
 */

/* What stays hidden is to be recognised by who comes next. */
int collapse_identify_rest(struct collapse *c, struct qstill_error *err)
{
    struct vm_record *rec = &c->s->rec;
    bool any = trash_identify(c->s);

    for (size_t i = 0; i < rec->hidden_count; i++) {
        struct vm_hidden *h = &rec->hidden[i];
        const struct layer *l = layers_find(&c->all, h->path);
        struct qstill_error ignored = {0};

        if (h->ino == 0 && l && l->hidden &&
            layer_identify_hidden(rec, h, &ignored) == 0)
            any = true;
    }
    return any ? vmrecord_save(c->s->vmfd, rec, err) : 0;
}
