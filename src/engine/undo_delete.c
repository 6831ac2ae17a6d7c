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

const char *undo_owner_below(const struct layers *all, const char *path)
{
    const struct layer *l = layers_find(all, path);

    for (size_t steps = 0; l && steps <= all->count; steps++) {
        l = l->below;
        if (l && l->owner)
            return l->owner;
    }
    return NULL;
}

/* A parent that has been deleted since would be damage. */
static int settle_parent(struct session *s, const struct vm_trash *t,
                         const struct layers *all, struct manifest *m)
{
    bool back = m->parent_id && tree_find(&s->tree, m->parent_id);

    for (size_t i = 0; m->parent_id && i < t->id_count; i++)
        back = back || strcmp(t->ids[i], m->parent_id) == 0;
    if (!back && m->parent_id)
        m->parent_id =
            m->disk_count ? undo_owner_below(all, m->disks[0].path) : NULL;
    return 0;
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

/* The parent that a snapshot gets: by the layers, which know of those that were
 * made since; the trash knows whose parent went. NULL: it keeps its own. */
static const char *parent_again(const struct session *s,
                                const struct vm_trash *t,
                                const struct layers *all,
                                const struct manifest *m)
{
    const char *below =
        m->disk_count ? undo_owner_below(all, m->disks[0].path) : NULL;

    for (size_t i = 0; below && i < t->id_count; i++)
        if (strcmp(t->ids[i], below) == 0)
            return t->ids[i];
    for (size_t i = 0; !below && i < t->link_count; i++)
        if (strcmp(t->links[i].child, m->id) == 0 &&
            tree_find(&s->tree, t->links[i].parent))
            return t->links[i].parent;
    return NULL;
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

/* The snapshot that the heads stand on now. */
static int find_current(struct session *s, struct qstill_error *err)
{
    CLEANUP(layers_fini) struct layers all = {0};

    if (s->rec.disk_count == 0)
        return 0;
    if (layers_load(s, &all, err) < 0)
        return err->code;
    return vmrecord_set_current(
        &s->rec, undo_owner_below(&all, s->rec.disks[0].head_path), err);
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
    vmrecord_drop_trash(&s->rec, t);
    if (find_current(s, err) < 0 || trash_age_undo(s, j->tag, err) < 0 ||
        vmrecord_save(s->vmfd, &s->rec, err) < 0)
        return err->code;
    return trash_end(s, text, err);
}
