/* SPDX-License-Identifier: MIT */
#include "trash.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/publish.h"
#include "delete.h"
#include "journal.h"
#include "layer_file.h"
#include "session.h"

int trash_keep_option(int option, uint64_t by_default, uint64_t *out,
                      struct qstill_error *err)
{
    if (option > TRASH_KEEP_MAX)
        return err_set(err, QSTILL_E_USAGE,
                       "trash cannot be kept for over %d operations",
                       TRASH_KEEP_MAX);
    *out = option < 0 ? 0 : option == 0 ? by_default : (uint64_t)option;
    return 0;
}

void trash_name(const char *id, char out[TRASH_NAME_LEN])
{
    snprintf(out, TRASH_NAME_LEN, ".%.64s.trash", id);
}

/* Whether the operation at hand is one more for the entry. */
static bool ages(const struct vm_trash *t, bool undo)
{
    return !undo || !t->redo;
}

static int age(struct session *s, const char *tag, bool undo,
               struct qstill_error *err)
{
    if (!tag || (s->rec.aged && strcmp(s->rec.aged, tag) == 0))
        return 0;
    s->rec.aged = arena_strdup(&s->rec.arena, tag);
    if (!s->rec.aged)
        return err_nomem(err);
    for (size_t i = 0; i < s->rec.trash_count; i++)
        if (s->rec.trash[i].keep > 0 && ages(&s->rec.trash[i], undo))
            s->rec.trash[i].keep--;
    return 0;
}

int trash_age(struct session *s, const char *tag, struct qstill_error *err)
{
    return age(s, tag, false, err);
}

int trash_age_undo(struct session *s, const char *tag, struct qstill_error *err)
{
    return age(s, tag, true, err);
}

const char *trash_whose(const struct vm_trash *t)
{
    return t->redo ? "undo" : t->snapshot ? "revert" : "delete";
}

void trash_say_last(const struct session *s, const struct vm_trash *back,
                    struct buf *text)
{
    for (size_t i = 0; i < s->rec.trash_count; i++) {
        const struct vm_trash *t = &s->rec.trash[i];

        if (t->keep <= 1 && t != back && ages(t, back != NULL))
            buf_printf(text, "the last %s can be taken back no more\n",
                       trash_whose(t));
    }
}

struct vm_trash *trash_find(struct session *s, const char *tag)
{
    for (size_t i = 0; tag && i < s->rec.trash_count; i++)
        if (strcmp(s->rec.trash[i].tag, tag) == 0)
            return &s->rec.trash[i];
    return NULL;
}

bool trash_outlives(const struct session *s, const char *path)
{
    bool last = false;

    for (size_t i = 0; i < s->rec.trash_count; i++)
        for (size_t k = 0; k < s->rec.trash[i].layer_count; k++) {
            if (strcmp(s->rec.trash[i].layers[k].path, path) != 0)
                continue;
            if (s->rec.trash[i].keep > 1)
                return true;
            last = true;
        }
    return !last; /* what is nobody's is kept by no entry */
}

bool trash_has_expired(const struct session *s)
{
    for (size_t i = 0; i < s->rec.trash_count; i++)
        if (s->rec.trash[i].keep == 0)
            return true;
    return false;
}

/* ------------------------------------------------------------------ put in */

/* NULL stays NULL; false when out of memory. */
static bool copy(struct session *s, const char **dst, const char *src)
{
    *dst = src ? arena_strdup(&s->rec.arena, src) : NULL;
    return *dst || !src;
}

static int begin_entry(struct session *s, const struct journal *j,
                       size_t layers, struct vm_trash *t,
                       struct qstill_error *err)
{
    memset(t, 0, sizeof(*t));
    t->keep = j->keep_trash;
    t->layers = arena_array(&s->rec.arena, layers + 1, sizeof(*t->layers));
    if (!t->layers || !copy(s, &t->tag, j->tag))
        return err_nomem(err);
    return 0;
}

static int add_layer(struct session *s, struct vm_trash *t,
                     const struct vm_hidden *layer, struct qstill_error *err)
{
    return vmrecord_copy_layer(&s->rec, layer, &t->layers[t->layer_count++],
                               err);
}

static int hide_heads(struct session *s, const struct journal *j,
                      struct qstill_error *err)
{
    for (size_t i = 0; i < j->disk_count; i++) {
        const struct journal_disk *d = &j->disks[i];

        if (!tree_owner(&s->tree, d->old_path) &&
            vmrecord_hide(&s->rec, d->disk, d->old_path, d->old_format, err) <
                0)
            return err->code;
    }
    return 0;
}

int trash_put_heads(struct session *s, const struct journal *j, bool redo,
                    struct qstill_error *err)
{
    struct vm_trash t;

    if (!j->keep_trash || !j->tag)
        return hide_heads(s, j, err);
    if (trash_find(s, j->tag))
        return 0;
    if (begin_entry(s, j, j->disk_count, &t, err) < 0)
        return err->code;
    if (!copy(s, &t.snapshot, j->snapshot) ||
        !copy(s, &t.current, j->old_current))
        return err_nomem(err);
    t.redo = redo;
    for (size_t i = 0; i < j->disk_count; i++) {
        const struct journal_disk *d = &j->disks[i];
        /* QEMU may write to it yet: see trash_identify() */
        struct vm_hidden head = {
            .disk = d->disk, .path = d->old_path, .format = d->old_format};

        /* a frozen layer is no head to go back to */
        if (tree_owner(&s->tree, d->old_path))
            return hide_heads(s, j, err);
        if (add_layer(s, &t, &head, err) < 0)
            return err->code;
    }
    return vmrecord_add_trash(&s->rec, &t, err);
}

static bool goes(const struct journal *j, const char *id)
{
    for (size_t i = 0; i < j->id_count; i++)
        if (strcmp(j->ids[i], id) == 0)
            return true;
    return false;
}

static int add_snapshot(struct session *s, struct vm_trash *t,
                        const struct manifest *m, struct qstill_error *err)
{
    t->ids[t->id_count] = arena_strdup(&s->rec.arena, m->id);
    if (!t->ids[t->id_count++])
        return err_nomem(err);
    for (size_t k = 0; k < m->disk_count; k++) {
        struct vm_hidden layer = layer_hidden(&m->disks[k]);

        if (add_layer(s, t, &layer, err) < 0)
            return err->code;
    }
    return 0;
}

int trash_put_snapshots(struct session *s, const struct journal *j,
                        struct qstill_error *err)
{
    const struct tree *tree = &s->tree;
    struct vm_trash t;
    size_t layers = 0;

    if (trash_find(s, j->tag))
        return 0;
    for (size_t i = 0; i < tree->count; i++)
        layers += tree->nodes[i].disk_count;
    if (begin_entry(s, j, layers, &t, err) < 0)
        return err->code;
    t.ids = arena_array(&s->rec.arena, tree->count + 1, sizeof(char *));
    t.links = arena_array(&s->rec.arena, tree->count + 1, sizeof(*t.links));
    if (!t.ids || !t.links ||
        (s->rec.current && goes(j, s->rec.current) &&
         !copy(s, &t.current, s->rec.current)))
        return err_nomem(err);
    for (size_t i = 0; i < tree->count; i++) {
        const struct manifest *m = &tree->nodes[i];
        struct vm_link *l = &t.links[t.link_count];

        if (goes(j, m->id)) {
            if (add_snapshot(s, &t, m, err) < 0)
                return err->code;
        } else if (m->parent_id && goes(j, m->parent_id)) {
            if (!copy(s, &l->child, m->id) ||
                !copy(s, &l->parent, m->parent_id))
                return err_nomem(err);
            t.link_count++;
        }
    }
    return vmrecord_add_trash(&s->rec, &t, err);
}

/* --------------------------------------------------------------- identity */

static const struct vm_hidden *find_layer(const struct vm_trash *t,
                                          const char *path, size_t *at)
{
    for (size_t n = 0; n < t->layer_count; n++) {
        const struct vm_hidden *l = &t->layers[(*at + n) % t->layer_count];

        if (strcmp(l->path, path) == 0) {
            *at = (size_t)(l - t->layers) + 1;
            return l;
        }
    }
    return NULL;
}

int trash_identify_again(const struct vm_trash *t, size_t *at,
                         struct manifest *m, struct qstill_error *err)
{
    for (size_t i = 0; i < m->disk_count; i++) {
        struct vm_hidden none = {0};
        const struct vm_hidden *was = find_layer(t, m->disks[i].path, at);

        if (layer_identify_as(m, &m->disks[i], was ? was : &none, err) < 0)
            return err->code;
    }
    return 0;
}

int trash_check(const struct session *s, const struct vm_trash *t,
                struct qstill_error *err)
{
    for (size_t i = 0; i < t->layer_count; i++)
        if (layer_check_trash(s, &t->layers[i], err) < 0)
            return err->code;
    return 0;
}

static bool identify_one(struct session *s, struct vm_hidden *l)
{
    struct qstill_error ignored = {0};

    /* somebody's again, or QEMU has not closed it */
    if (l->ino || tree_owner(&s->tree, l->path) ||
        layer_check_unused(l->path, &ignored) < 0)
        return false;
    return layer_identify_hidden(&s->rec, l, &ignored) == 0;
}

bool trash_identify(struct session *s)
{
    bool any = false;

    for (size_t i = 0; i < s->rec.trash_count; i++)
        for (size_t k = 0; k < s->rec.trash[i].layer_count; k++)
            any |= identify_one(s, &s->rec.trash[i].layers[k]);
    return any;
}

int trash_forget(struct session *s, const char *tag, struct qstill_error *err)
{
    struct vm_trash *t = trash_find(s, tag);

    for (size_t i = 0; t && i < t->layer_count; i++)
        layer_forget(&t->layers[i]);
    return t ? vmrecord_save(s->vmfd, &s->rec, err) : 0;
}

/* -------------------------------------------------------------------- go */

static int take_away(struct session *s, struct vm_trash *t,
                     struct qstill_error *err)
{
    for (size_t i = 0; i < t->id_count; i++) {
        char from[TRASH_NAME_LEN], to[DELETE_GONE_LEN];

        trash_name(t->ids[i], from);
        delete_gone_name(t->ids[i], to);
        if (renameat(s->snapsfd, from, s->snapsfd, to) < 0 && errno != ENOENT)
            return err_errno(err, errno, "cannot take snapshot %s away",
                             t->ids[i]);
    }
    if (t->id_count > 0 && publish_sync_dir(s->snapsfd, err) < 0)
        return err->code;
    for (size_t i = 0; i < t->layer_count; i++)
        if (vmrecord_hide_as(&s->rec, &t->layers[i], err) < 0)
            return err->code;
    vmrecord_drop_trash(&s->rec, t);
    return 0;
}

int trash_expire(struct session *s, struct qstill_error *err)
{
    size_t i = 0;

    if (!trash_has_expired(s))
        return 0;
    while (i < s->rec.trash_count) {
        if (s->rec.trash[i].keep > 0)
            i++;
        else if (take_away(s, &s->rec.trash[i], err) < 0)
            return err->code;
    }
    return vmrecord_save(s->vmfd, &s->rec, err);
}

int trash_end(struct session *s, struct buf *text, struct qstill_error *err)
{
    struct journal j = {
        .op = JOURNAL_DELETE, .phase = JOURNAL_COMMITTED, .snapshot = "trash"};

    if (!trash_has_expired(s))
        return journal_remove(s->vmfd, err);
    if (journal_save(s->vmfd, &j, err) < 0)
        return err->code;
    return delete_finish(s, &j, text, err);
}

int trash_empty(struct session *s, struct buf *text, struct qstill_error *err)
{
    if (s->rec.trash_count == 0)
        return 0;
    for (size_t i = 0; i < s->rec.trash_count; i++)
        s->rec.trash[i].keep = 0;
    if (vmrecord_save(s->vmfd, &s->rec, err) < 0)
        return err->code;
    return trash_end(s, text, err);
}
