/* SPDX-License-Identifier: MIT */
/* The plan of a delete: which snapshots go, whether their layers are what they
 * were, and what it costs. */
#include <string.h>

#include "delete_impl.h"
#include "headuse.h"
#include "job.h"
#include "layer_file.h"
#include "layers.h"
#include "ready.h"

/* Marks all that descend from marked ones. */
static void mark_children(struct del *c)
{
    bool more = true;

    while (more) {
        more = false;
        for (size_t i = 0; i < c->s.tree.count; i++) {
            const struct manifest *m = &c->s.tree.nodes[i];
            const struct manifest *up =
                m->parent_id ? tree_find(&c->s.tree, m->parent_id) : NULL;

            if (up && c->doomed[delete_index(&c->s.tree, up)] && !c->doomed[i])
                more = c->doomed[i] = true;
        }
    }
}

static bool is_planned(void *user, const char *id)
{
    const struct del *c = user;
    const struct manifest *m = tree_find(&c->s.tree, id);
    const struct tree_damage *d = tree_find_damaged(&c->s.tree, id);

    return (m && c->doomed[delete_index(&c->s.tree, m)]) ||
           (d && c->doomed_damaged[d - c->s.tree.damaged]);
}

/* Memory files go whole; disks are merged. */
static void describe_memory(struct del *c, const struct manifest *m)
{
    if (m->memory_included)
        buf_printf(job_text(c->job), "  memory: %llu bytes freed\n",
                   (unsigned long long)store_tree_usage(c->s.snapsfd, m->id));
}

static void describe(struct del *c, const struct layers *all)
{
    struct buf *text = job_text(c->job);

    for (size_t i = 0; i < c->s.tree.count; i++) {
        const struct manifest *m = &c->s.tree.nodes[i];

        if (!c->doomed[i])
            continue;
        buf_printf(text, "delete %s (%s)\n", m->name, m->id);
        describe_memory(c, m);
        for (size_t k = 0; k < m->disk_count; k++) {
            const struct layer *l = layers_find(all, m->disks[k].path);

            buf_printf(text, "  disk %s: layer %s, %zu child%s, %llu bytes\n",
                       m->disks[k].name, m->disks[k].path, l ? l->children : 0,
                       l && l->children == 1 ? "" : "ren",
                       (unsigned long long)(l ? l->allocated : 0));
        }
    }
}

/* A file that is gone for good takes nothing with it when nothing that stays
 * stands on it; but its folder may only be away for now. */
static int weigh_layer(struct del *c, const struct layers *all,
                       const struct manifest *m, struct qstill_error *err)
{
    err_wrap(err, "snapshot %s", m->name);
    if (err->code != QSTILL_E_NOT_FOUND || !delete_only_goes(c, all, m))
        return err->code;
    if (!c->o.force)
        return err_hint(err, "bring the file back from a backup; --force "
                             "deletes the snapshot without it");
    store_note(c->store, "%s", err->message);
    return err_clear(err);
}

static int check_layers(struct del *c, const struct layers *all,
                        struct qstill_error *err)
{
    struct ready_seen seen = {0};

    for (size_t i = 0; i < c->s.rec.disk_count; i++)
        if (ready_beside(&seen, c->s.rec.disks[i].head_path, err) < 0)
            return err->code;
    for (size_t i = 0; i < c->s.tree.count; i++) {
        const struct manifest *m = &c->s.tree.nodes[i];

        for (size_t k = 0; delete_merges(c, m) && k < m->disk_count; k++)
            if (layer_check(&m->disks[k], err) < 0) {
                if (weigh_layer(c, all, m, err) < 0)
                    return err->code;
            } else if (ready_beside(&seen, m->disks[k].path, err) < 0) {
                return err->code;
            }
    }
    for (size_t i = 0; i < c->s.rec.hidden_count; i++)
        if (layer_check_hidden(&c->s, &c->s.rec.hidden[i], err) < 0)
            return err->code;
    return 0;
}

static int find_doomed(struct del *c, struct qstill_error *err)
{
    const struct tree *t = &c->s.tree;

    c->doomed = arena_array(&c->arena, t->count + 1, sizeof(bool));
    c->doomed_damaged =
        arena_array(&c->arena, t->damaged_count + 1, sizeof(bool));
    if (!c->doomed || !c->doomed_damaged)
        return err_nomem(err);
    for (size_t i = 0; i < c->snap_count; i++) {
        const struct tree_damage *d = tree_find_damaged(t, c->snaps[i]);
        struct manifest *m = NULL;

        if (d && d->code == QSTILL_E_CORRUPT) {
            c->any_damaged = c->doomed_damaged[d - t->damaged] = true;
            continue;
        }
        if (tree_resolve(t, c->snaps[i], &m, err) < 0)
            return err->code;
        c->doomed[delete_index(t, m)] = true;
    }
    return 0;
}

/* For the caller, who has no list of before: what is recovered first may have
 * changed it. */
static int note_result(struct del *c, struct qstill_error *err)
{
    const struct tree *t = &c->s.tree;
    struct qstill_deleted *all =
        arena_array(&c->arena, t->count + t->damaged_count + 1, sizeof(*all));
    bool ok = all != NULL;
    size_t n = 0;

    for (size_t i = 0; ok && i < t->count; i++)
        if (c->doomed[i]) {
            all[n].id = arena_strdup(&c->arena, t->nodes[i].id);
            all[n].name = arena_strdup(&c->arena, t->nodes[i].name);
            ok = all[n].id && all[n].name;
            n++;
        }
    for (size_t i = 0; ok && i < t->damaged_count; i++)
        if (c->doomed_damaged[i]) {
            all[n].id = arena_strdup(&c->arena, t->damaged[i].id);
            ok = all[n++].id != NULL;
        }
    if (!ok)
        return err_nomem(err);
    c->result = (struct qstill_delete_result){n, all};
    return 0;
}

static void describe_damaged(struct del *c)
{
    const struct tree *t = &c->s.tree;

    for (size_t i = 0; i < t->damaged_count; i++)
        if (c->doomed_damaged[i])
            buf_printf(job_text(c->job),
                       "delete %s, which is damaged: of its layers those go "
                       "that its manifest still names\n",
                       t->damaged[i].id);
}

/* Before anything is gone: each layer is noted in vm.json until it is merged.
 */
static int check_count(const struct del *c, struct qstill_error *err)
{
    size_t layers = c->s.rec.hidden_count;

    for (size_t i = 0; i < c->s.tree.count; i++)
        if (c->doomed[i])
            layers += c->s.tree.nodes[i].disk_count;
    if (layers <= VM_HIDDEN_MAX)
        return 0;
    err_set(err, QSTILL_E_PRECONDITION,
            "%zu layers would have to be merged, the most at once is %d",
            layers, VM_HIDDEN_MAX);
    return err_hint(err, "delete fewer snapshots at once");
}

int delete_plan_enter(void *ctx, struct qstill_error *err)
{
    CLEANUP(layers_fini) struct layers all = {0};
    struct del *c = ctx;

    if (session_open_for(&c->s, c->store, c->vm, "delete", c->job, c->o.bwlimit,
                         err) < 0)
        return err->code;
    c->session_open = true;
    c->s.job = c->job;
    if (find_doomed(c, err) < 0)
        return err->code;
    if (c->o.children)
        mark_children(c);
    if (note_result(c, err) < 0 || check_count(c, err) < 0)
        return err->code;
    if (session_connect(&c->s, err) < 0 ||
        (c->s.qmp &&
         (ready_settled(&c->s, err) < 0 || ready_images(&c->s, err) < 0 ||
          session_check_heads(&c->s, err) < 0)) ||
        (!c->s.qmp && headuse_check_frozen(&c->s, err) < 0) ||
        ready_store(&c->s, 0, err) < 0 || layers_load(&c->s, &all, err) < 0 ||
        check_layers(c, &all, err) < 0 || delete_check_bases(c, &all, err) < 0)
        return err->code;
    describe(c, &all);
    describe_damaged(c);
    c->s.paranoid = c->o.paranoid;
    c->j.keep_hidden = c->o.keep_hidden;
    if (layers_foresee(&c->s, &c->j, is_planned, c,
                       c->o.dry_run ? job_text(c->job) : NULL, err) < 0 ||
        c->o.dry_run)
        return err->code;
    return c->o.paranoid
               ? paranoid_take(&c->before, &c->arena, &c->s, is_planned, c, err)
               : 0;
}
