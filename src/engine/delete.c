/* SPDX-License-Identifier: MIT */
/*
 * delete: takes snapshots out of the tree, and their layers out of the chains.
 *
 * The happy path:
 *   plan      lock, recovery, which snapshots
 *   commit    journal with all ids: from then on it only goes forward
 *   finish    children get the next living parent; the layers are noted as
 *             hidden; each directory gets the name .ID.gone and the snapshot
 *             is not listed any more; memory files are removed; hidden layers
 *             are merged or removed; journal away
 * Failures: before the commit nothing has changed. After it the next command
 * goes on; a layer that cannot be merged now stays hidden and nothing is lost.
 */
#include "delete.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/options.h"
#include "base/publish.h"
#include "delete_impl.h"
#include "job.h"
#include "layer_file.h"
#include "layers.h"
#include "lost.h"
#include "protect.h"
#include "trash.h"

void delete_gone_name(const char *id, char out[DELETE_GONE_LEN])
{
    snprintf(out, DELETE_GONE_LEN, ".%.64s.gone", id);
}

/* ------------------------------------------------------------------ commit */

static int commit_enter(void *ctx, struct qstill_error *err)
{
    struct del *c = ctx;
    const struct tree *t = &c->s.tree;

    if (c->o.dry_run)
        return 0;
    if (id_new(c->tag, err) < 0)
        return err->code;
    c->j.op = JOURNAL_DELETE;
    c->j.phase = JOURNAL_COMMITTED;
    c->j.tag = c->tag;
    c->j.tell_lost = c->any_damaged;
    c->j.ids =
        arena_array(&c->arena, t->count + t->damaged_count + 1, sizeof(char *));
    if (!c->j.ids)
        return err_nomem(err);
    for (size_t i = 0; i < t->count + t->damaged_count; i++) {
        bool node = i < t->count;
        size_t k = node ? i : i - t->count;

        if (!(node ? c->doomed[k] : c->doomed_damaged[k]))
            continue;
        c->j.ids[c->j.id_count] =
            arena_strdup(&c->arena, node ? t->nodes[k].id : t->damaged[k].id);
        if (!c->j.ids[c->j.id_count++])
            return err_nomem(err);
    }
    c->j.snapshot = c->j.ids[0];
    buf_consume(job_text(c->job), job_text(c->job)->len);
    return journal_save(c->s.vmfd, &c->j, err);
}

/* ------------------------------------------------------------------ finish */

static bool is_doomed(const struct journal *j, const char *id)
{
    for (size_t i = 0; i < j->id_count; i++)
        if (strcmp(j->ids[i], id) == 0)
            return true;
    return false;
}

/* The id itself if it stays, else of the nearest ancestor that does. */
static const char *living(struct session *s, const struct journal *j,
                          const char *id)
{
    const struct manifest *m = id ? tree_find(&s->tree, id) : NULL;

    while (m && is_doomed(j, m->id))
        m = m->parent_id ? tree_find(&s->tree, m->parent_id) : NULL;
    return m ? m->id : NULL;
}

/* Children of doomed snapshots get a living parent before those go: a parent
 * that is not there would be damage. */
static int lift_children(struct session *s, const struct journal *j,
                         struct qstill_error *err)
{
    for (size_t i = 0; i < s->tree.count; i++) {
        CLEANUP(closep) int fd = -1;
        struct manifest *m = &s->tree.nodes[i];

        if (!m->parent_id || !is_doomed(j, m->parent_id) || is_doomed(j, m->id))
            continue;
        m->parent_id = living(s, j, m->parent_id);
        if (store_opendirat(s->snapsfd, m->id, &fd, err) < 0 ||
            manifest_save(fd, m, s->vmfd, err) < 0)
            return err->code;
    }
    return 0;
}

static int hide_layers(struct session *s, const struct journal *j,
                       struct qstill_error *err)
{
    const char *current = s->rec.current;

    if (trash_age(s, j->tag, err) < 0 ||
        (j->keep_trash && trash_put_snapshots(s, j, err) < 0))
        return err->code;
    for (size_t i = 0; !j->keep_trash && i < s->tree.count; i++) {
        const struct manifest *m = &s->tree.nodes[i];

        for (size_t k = 0; is_doomed(j, m->id) && k < m->disk_count; k++) {
            struct vm_hidden layer = layer_hidden(&m->disks[k]);

            if (vmrecord_hide_as(&s->rec, &layer, err) < 0)
                return err->code;
        }
    }
    if (current && is_doomed(j, current) &&
        (tree_find(&s->tree, current) ||
         tree_find_damaged(&s->tree, current)) &&
        vmrecord_set_current(&s->rec, living(s, j, current), err) < 0)
        return err->code;
    return vmrecord_save(s->vmfd, &s->rec, err);
}

static int rename_one(struct session *s, const char *id, bool trash,
                      struct qstill_error *err)
{
    char gone[DELETE_GONE_LEN];

    if (trash)
        trash_name(id, gone);
    else
        delete_gone_name(id, gone);
    if (renameat(s->snapsfd, id, s->snapsfd, gone) < 0)
        return err_errno(err, errno, "cannot take snapshot %s away", id);
    return 0;
}

/* Youngest first: at each instant the parents of those listed are listed.
 * A damaged one has nothing that undo could bring back. */
static int rename_gone(struct session *s, const struct journal *j,
                       struct qstill_error *err)
{
    for (size_t i = s->tree.count; i-- > 0;)
        if (is_doomed(j, s->tree.nodes[i].id) &&
            rename_one(s, s->tree.nodes[i].id, j->keep_trash > 0, err) < 0)
            return err->code;
    for (size_t i = 0; i < s->tree.damaged_count; i++)
        if (is_doomed(j, s->tree.damaged[i].id) &&
            rename_one(s, s->tree.damaged[i].id, false, err) < 0)
            return err->code;
    return publish_sync_dir(s->snapsfd, err);
}

/* Layers of a snapshot whose directory was renamed, but not yet hidden. */
static int hide_of_gone(struct session *s, const char *gone,
                        struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;
    CLEANUP(manifest_fini) struct manifest m = {.arena = ARENA_INIT};
    struct qstill_error why = {0};

    if (store_opendirat(s->snapsfd, gone, &fd, &why) < 0)
        return 0;
    /* removed in part already, its layers hidden; or a damaged one */
    if (manifest_load(fd, &m, &why) < 0)
        return why.code == QSTILL_E_NOT_FOUND ? 0 : lost_hide(s, fd, err);
    /* who takes it in may be a living one's by now */
    for (size_t k = 0; k < m.disk_count; k++) {
        struct vm_hidden layer = layer_hidden(&m.disks[k]);

        if (!tree_owner(&s->tree, layer.path) &&
            vmrecord_hide_as(&s->rec, &layer, err) < 0)
            return err->code;
    }
    return 0;
}

/* Calls fn for each snapshots/.ID.gone. */
static int each_gone(struct session *s,
                     int (*fn)(struct session *s, const char *gone,
                               struct qstill_error *err),
                     struct qstill_error *err)
{
    char **names = NULL;
    size_t count = 0;

    if (store_names(s->snapsfd, &names, &count, err) < 0)
        return err->code;
    for (size_t i = 0; i < count && err->code == 0; i++) {
        size_t len = strlen(names[i]);

        if (names[i][0] == '.' && len > 5 &&
            strcmp(names[i] + len - 5, ".gone") == 0)
            fn(s, names[i], err);
    }
    store_names_free(names, count);
    return err->code;
}

static int remove_gone(struct session *s, const char *gone,
                       struct qstill_error *err)
{
    return store_remove_tree(s->snapsfd, gone, err);
}

/* Before the journal goes: whoever is killed here leaves it to the next. */
static int end(struct session *s, const struct journal *j,
               struct qstill_error *err)
{
    if (j->tell_lost && s->tree.damaged_count == 0 && lost_tell(s, err) < 0)
        return err->code;
    return journal_remove(s->vmfd, err);
}

/* Cancelled: what is not merged stays hidden, for recover or the next delete.
 * A merge that cannot be left in the middle is the next command's. */
static bool leave_merges(struct session *s, struct journal *j)
{
    struct qstill_error second = {0};

    s->job = NULL;
    if (layers_settle(s, j, &second) < 0 || j->pivot_disk)
        return false;
    protect_all(s);
    return end(s, j, &second) == 0;
}

int delete_rest(struct session *s, struct journal *j, struct buf *text,
                struct qstill_error *err)
{
    s->job = s->rest_job;
    layers_collapse(s, j, text, err);
    s->job = NULL;
    if (err->code == QSTILL_E_CANCELLED) {
        err_clear(err);
        leave_merges(s, j);
        store_note(s->store,
                   "cancelled when only merges were left to be done: qstill "
                   "recover %s goes on with them",
                   s->vm);
        return 0;
    }
    return err->code < 0 ? err->code : end(s, j, err);
}

int delete_finish(struct session *s, struct journal *j, struct buf *text,
                  struct qstill_error *err)
{
    /* the trash notes the parents before they are lifted */
    if (hide_layers(s, j, err) < 0 || lift_children(s, j, err) < 0 ||
        rename_gone(s, j, err) < 0 || session_reload(s, err) < 0)
        return err->code;
    if (trash_expire(s, err) < 0 || each_gone(s, hide_of_gone, err) < 0 ||
        vmrecord_save(s->vmfd, &s->rec, err) < 0)
        return err->code;
    /* the record has their layers now; the merges may need their room */
    if (each_gone(s, remove_gone, err) < 0 || session_connect(s, err) < 0)
        return err->code;
    if (!s->job)
        return delete_rest(s, j, text, err);
    if (layers_collapse(s, j, text, err) == QSTILL_E_CANCELLED &&
        leave_merges(s, j))
        err_hint(err,
                 "what was deleted is gone; qstill recover %s merges the rest "
                 "of its layers",
                 s->vm);
    return err->code < 0 ? err->code : end(s, j, err);
}

int delete_remove_gone(struct session *s, struct qstill_error *err)
{
    return each_gone(s, remove_gone, err);
}

static int finish_enter(void *ctx, struct qstill_error *err)
{
    struct del *c = ctx;

    if (c->o.dry_run)
        return 0;
    if (delete_finish(&c->s, &c->j, job_text(c->job), err) < 0 && !err->hint[0])
        err_hint(err,
                 "the snapshot is gone; the next command, or qstill "
                 "recover %s, merges its layers",
                 c->vm);
    if (err->code == 0 && c->o.paranoid)
        return paranoid_check(&c->before, &c->s, err);
    return err->code;
}

/* --------------------------------------------------------------------- job */

static void del_free(void *ctx)
{
    struct del *c = ctx;

    if (c->session_open)
        session_close(&c->s);
    paranoid_fini(&c->before);
    arena_fini(&c->arena);
    free(c);
}

static const struct job_phase delete_phases[] = {
    {"plan", delete_plan_enter, NULL, NULL},
    {"commit", commit_enter, NULL, NULL},
    {"merge", finish_enter, NULL, NULL},
    {NULL, NULL, NULL, NULL},
};
static const struct job_ops delete_ops = {delete_phases, del_free};

static int take_options(struct del *c, const char *vm, const char *const *snaps,
                        size_t snap_count,
                        const struct qstill_delete_options *o,
                        struct qstill_error *err)
{
    if (name_check("VM name", vm, err) < 0)
        return err->code;
    if (options_take(&c->o, sizeof(c->o), o, "delete", err) < 0)
        return err->code;
    if (snap_count == 0)
        return err_set(err, QSTILL_E_USAGE, "no snapshot named");
    if (trash_keep_option(c->o.keep_trash, 0, &c->j.keep_trash, err) < 0)
        return err->code;
    c->vm = arena_strdup(&c->arena, vm);
    c->snaps = arena_array(&c->arena, snap_count, sizeof(char *));
    if (!c->vm || !c->snaps)
        return err_nomem(err);
    for (size_t i = 0; i < snap_count; i++) {
        c->snaps[i] = arena_strdup(&c->arena, snaps[i]);
        if (!c->snaps[i])
            return err_nomem(err);
    }
    c->snap_count = snap_count;
    return 0;
}

QSTILL_PUBLIC int qstill_delete(struct qstill_store *store, const char *vm,
                                const char *const *snaps, size_t snap_count,
                                const struct qstill_delete_options *options,
                                struct qstill_job **out,
                                struct qstill_error *caller_err)
{
    struct qstill_error scratch, *err = err_door(caller_err, &scratch);
    struct del *c = calloc(1, sizeof(*c));

    if (!c)
        return err_nomem(err);
    c->store = store;
    if (take_options(c, vm, snaps, snap_count, options, err) < 0) {
        del_free(c);
        return err->code;
    }
    if (job_new(&c->job, &delete_ops, c, err) < 0)
        return err->code;
    *out = c->job;
    return 0;
}

QSTILL_PUBLIC const struct qstill_delete_result *
qstill_delete_result(const struct qstill_job *job)
{
    const struct del *c = job_ctx(job, &delete_ops);

    return c && c->result.deleted ? &c->result : NULL;
}
