/* SPDX-License-Identifier: MIT */
/* undo, of a delete: the directories get their names back, the children their
 * parents, the layers their owners. It only goes forward. */
#include "undo_impl.h"

#include <string.h>

#include "base/publish.h"
#include "journal.h"
#include "layers.h"
#include "session.h"
#include "trash.h"

static bool is_nobodys(const struct session *s, const struct layer *l)
{
    if (l->owner || l->head || l->hidden)
        return false;
    for (size_t i = 0; i < s->rec.trash_count; i++)
        for (size_t k = 0; k < s->rec.trash[i].layer_count; k++)
            if (strcmp(s->rec.trash[i].layers[k].path, l->path) == 0)
                return false;
    return true;
}

const char *undo_owner_below(const struct session *s, const struct layers *all,
                             const char *path, bool *sure)
{
    const struct layer *l = layers_find(all, path);

    for (size_t steps = 0; l && steps <= all->count; steps++) {
        l = l->below;
        if (l && l->owner)
            return l->owner;
        if (l && sure && is_nobodys(s, l))
            *sure = false;
    }
    return NULL;
}

static bool comes_back(const struct vm_trash *t, const char *id)
{
    for (size_t i = 0; id && i < t->id_count; i++)
        if (strcmp(t->ids[i], id) == 0)
            return true;
    return false;
}

/* A parent that has been deleted since would be damage. */
static void settle_parent(struct session *s, const struct vm_trash *t,
                          const struct layers *all, struct manifest *m)
{
    if (m->parent_id && !tree_find(&s->tree, m->parent_id) &&
        !comes_back(t, m->parent_id))
        m->parent_id = m->disk_count
                           ? undo_owner_below(s, all, m->disks[0].path, NULL)
                           : NULL;
}

static int put_back(struct session *s, const struct vm_trash *t, size_t *at,
                    const struct layers *all, const char *id,
                    struct qstill_error *err)
{
    CLEANUP(manifest_fini) struct manifest m = {.arena = ARENA_INIT};
    CLEANUP(closep) int fd = -1;
    struct qstill_error gone = {0};
    char name[TRASH_NAME_LEN];

    trash_name(id, name);
    if (store_opendirat(s->snapsfd, name, &fd, &gone) < 0)
        return gone.code == QSTILL_E_NOT_FOUND ? 0 : (*err = gone).code;
    if (manifest_load(fd, &m, err) < 0)
        return err->code;
    settle_parent(s, t, all, &m);
    if (trash_identify_again(t, at, &m, err) < 0 ||
        manifest_save(fd, &m, s->vmfd, err) < 0)
        return err->code;
    return publish_rename(s->snapsfd, name, id, PUBLISH_NEW, err);
}

/* The parent that a snapshot gets: the trash knows whose parent went, the
 * layers know of those that were made since. NULL: it keeps its own. */
static const char *parent_again(const struct session *s,
                                const struct vm_trash *t,
                                const struct layers *all,
                                const struct manifest *m)
{
    bool sure = true;
    const char *below = m->disk_count
                            ? undo_owner_below(s, all, m->disks[0].path, &sure)
                            : NULL;

    for (size_t i = 0; i < t->link_count; i++)
        if (strcmp(t->links[i].child, m->id) == 0 &&
            tree_find(&s->tree, t->links[i].parent))
            return t->links[i].parent;
    return sure && comes_back(t, below) ? below : NULL;
}

static int relink(struct session *s, const struct vm_trash *t,
                  struct qstill_error *err)
{
    CLEANUP(layers_fini) struct layers all = {0};

    if (layers_load(s, &all, err) < 0)
        return err->code;
    for (size_t i = 0; i < s->tree.count; i++) {
        CLEANUP(closep) int fd = -1;
        struct manifest *m = &s->tree.nodes[i];
        const char *parent = parent_again(s, t, &all, m);

        if (!parent || (m->parent_id && strcmp(m->parent_id, parent) == 0))
            continue;
        m->parent_id = parent;
        if (store_opendirat(s->snapsfd, m->id, &fd, err) < 0 ||
            manifest_save(fd, m, s->vmfd, err) < 0)
            return err->code;
    }
    return 0;
}

/* The record's strings live on: a reload would free the entry's. */
static int reload_tree(struct session *s, struct qstill_error *err)
{
    struct tree tree = {0};

    if (tree_load(s->vmfd, &tree, err) < 0)
        return err->code;
    tree_fini(&s->tree);
    s->tree = tree;
    return 0;
}

/* What became of the current snapshot when it was deleted: its nearest ancestor
 * that stayed. */
static const char *stayed(const struct session *s, const struct vm_trash *t)
{
    const struct manifest *m = tree_find(&s->tree, t->current);

    while (m && comes_back(t, m->id))
        m = m->parent_id ? tree_find(&s->tree, m->parent_id) : NULL;
    return m ? m->id : NULL;
}

static bool same_id(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) == 0 : !a && !b;
}

/* The snapshot that the heads stand on now. Where the layers do not tell, it is
 * the one of before the delete, unless somebody has gone elsewhere since. */
static int find_current(struct session *s, const struct vm_trash *t,
                        struct qstill_error *err)
{
    CLEANUP(layers_fini) struct layers all = {0};
    const char *below;
    bool sure = true;

    if (s->rec.disk_count == 0)
        return 0;
    if (layers_load(s, &all, err) < 0)
        return err->code;
    below = undo_owner_below(s, &all, s->rec.disks[0].head_path, &sure);
    if (!sure && t->current && same_id(s->rec.current, stayed(s, t)))
        below = t->current;
    else if (!sure && s->rec.current && tree_find(&s->tree, s->rec.current))
        below = s->rec.current;
    return vmrecord_set_current(&s->rec, below, err);
}

int undo_delete(struct session *s, struct journal *j, struct buf *text,
                struct qstill_error *err)
{
    CLEANUP(layers_fini) struct layers all = {0};
    struct vm_trash *t = trash_find(s, j->undone);
    size_t at = 0;

    if (!t)
        return trash_end(s, text, err);
    if (layers_load(s, &all, err) < 0)
        return err->code;
    /* oldest first: at each instant the parents of those listed are listed */
    for (size_t i = 0; i < t->id_count; i++)
        if (put_back(s, t, &at, &all, t->ids[i], err) < 0)
            return err->code;
    if (reload_tree(s, err) < 0 || relink(s, t, err) < 0)
        return err->code;
    if (find_current(s, t, err) < 0)
        return err->code;
    vmrecord_drop_trash(&s->rec, t);
    if (trash_age_undo(s, j->tag, err) < 0 ||
        vmrecord_save(s->vmfd, &s->rec, err) < 0)
        return err->code;
    return trash_end(s, text, err);
}
