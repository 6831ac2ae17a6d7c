/* SPDX-License-Identifier: MIT */
/* check, of what the store and the disks' files hold, whether the VM runs or
 * not. */
#include "check_impl.h"

#include <stdio.h>

#include "bases.h"
#include "layer_file.h"
#include "layers.h"
#include "others.h"
#include "preflight.h"
#include "ready.h"
#include "session.h"
#include "unwind.h"

static void check_files(struct report_obj *o, struct session *s)
{
    struct qstill_error e = {0};

    if (vmrecord_check_sum(s->vmfd, &e) < 0)
        problem_of(o, "record-changed", &e);
    for (size_t i = 0; i < s->tree.count; i++)
        if (manifest_check_sum(s->snapsfd, &s->tree.nodes[i], &e) < 0)
            problem_of(o, "manifest-changed", &e);
}

static void check_disks(struct report_obj *o, struct session *s)
{
    struct qstill_error e = {0};

    for (size_t i = 0; i < s->rec.disk_count; i++)
        if (ready_head(&s->rec.disks[i], &e) < 0)
            problem_of(o,
                       e.code == QSTILL_E_NOT_FOUND ? "head-missing"
                                                    : "head-damaged",
                       &e);
    if (s->rec.disk_count == 0)
        problem(o, "no-disks", "the VM has no writable disk",
                "attach it again once it has one");
}

static void room_problem(struct report_obj *o, const char *code,
                         struct qstill_error *e)
{
    problem_of(o, e->code == QSTILL_E_NO_SPACE ? "no-space" : code, e);
}

/* Where new heads are made, and where layers are merged. */
static void check_folders(struct report_obj *o, struct session *s)
{
    struct ready_seen seen = {0};
    struct qstill_error e = {0};

    if (ready_store(s, UNWIND_RESERVE, &e) < 0)
        room_problem(o, "store", &e);
    if (ready_folders(s, NULL, READY_HEAD_ROOM, &e) < 0)
        room_problem(o, "folder", &e);
    if (ready_names(s, &e) < 0)
        problem_of(o, "folder", &e);
    for (size_t i = 0; i < s->rec.disk_count; i++)
        if (ready_beside(&seen, s->rec.disks[i].head_path, &e) < 0)
            problem_of(o, "folder", &e);
    for (size_t i = 0; i < s->tree.count; i++)
        for (size_t k = 0; k < s->tree.nodes[i].disk_count; k++)
            if (ready_beside(&seen, s->tree.nodes[i].disks[k].path, &e) < 0)
                problem_of(o, "folder", &e);
}

static void check_layers(struct report_obj *o, struct session *s)
{
    struct qstill_error e = {0};

    for (size_t i = 0; i < s->tree.damaged_count; i++) {
        const struct tree_damage *d = &s->tree.damaged[i];
        char hint[512];

        snprintf(hint, sizeof(hint),
                 "bring its manifest.json back from a backup, or give it up: "
                 "qstill delete %s %s; no layer is merged or removed before",
                 s->vm, d->id);
        problem(o, "damaged-snapshot", d->message,
                d->code == QSTILL_E_CORRUPT ? hint : d->hint);
    }

    for (size_t i = 0; i < s->tree.count; i++) {
        const struct manifest *m = &s->tree.nodes[i];

        if (!m->lost_parent)
            continue;
        err_set(&e, QSTILL_E_CORRUPT,
                "snapshot %s: its parent %.64s does not exist", m->name,
                m->lost_parent);
        err_hint(&e,
                 "bring that one's directory back from a backup, or make this "
                 "one a root: qstill recover %s",
                 s->vm);
        problem_of(o, "lost-parent", &e);
    }
    for (size_t i = 0; i < s->tree.count; i++) {
        struct manifest *one;

        if (tree_resolve(&s->tree, s->tree.nodes[i].name, &one, &e) < 0)
            problem_of(o, "name-twice", &e);
    }
    for (size_t i = 0; i < s->tree.count; i++)
        for (size_t k = 0; k < s->tree.nodes[i].disk_count; k++)
            if (layer_check(&s->tree.nodes[i].disks[k], &e) < 0) {
                err_wrap(&e, "snapshot %s", s->tree.nodes[i].name);
                problem_of(o, "layer-changed", &e);
            }
}

/* Of deleted snapshots, and what undo may bring back. */
static void check_unnamed(struct report_obj *o, struct session *s)
{
    struct qstill_error e = {0};

    for (size_t i = 0; i < s->rec.hidden_count; i++)
        if (layer_check_hidden(s, &s->rec.hidden[i], &e) < 0)
            problem_of(o, "layer-changed", &e);
    for (size_t i = 0; i < s->rec.trash_count; i++)
        for (size_t k = 0; k < s->rec.trash[i].layer_count; k++)
            if (layer_check_trash(s, &s->rec.trash[i].layers[k], &e) < 0)
                problem_of(o, "layer-changed", &e);
}

int check_shared(struct report_obj *o, struct session *s,
                 struct qstill_error *err)
{
    CLEANUP(layers_fini) struct layers all = {0};
    struct qstill_error e = {0};

    /* no layer goes then, and its own are not known */
    if (s->tree.damaged_count > 0)
        return 0;
    if (layers_load(s, &all, err) < 0 || others_mark(s, &all, NULL, err) < 0)
        return err->code;
    for (size_t i = 0; i < all.count; i++) {
        const struct layer *l = &all.items[i];
        const struct manifest *m = l->owner && others_hold(s, l)
                                       ? tree_find(&s->tree, l->owner)
                                       : NULL;

        if (!m)
            continue;
        err_set(&e, QSTILL_E_PRECONDITION,
                "snapshot %s cannot be deleted: disk %s: %s: %s", m->name,
                l->disk, l->path, l->other);
        err_hint(&e, OTHERS_HINT);
        problem_of(o, "layer-shared", &e);
    }
    return 0;
}

static void check_memory(struct report_obj *o, struct session *s)
{
    struct qstill_error e = {0};

    for (size_t i = 0; i < s->tree.count; i++)
        if (s->tree.nodes[i].memory_included &&
            preflight_memory(s, &s->tree.nodes[i], &e) < 0) {
            if (e.code == QSTILL_E_CORRUPT || e.code == QSTILL_E_NOT_FOUND)
                err_hint(&e, "bring its files back from a backup; its disks "
                             "can be reverted to with --stopped");
            problem_of(o, "memory-changed", &e);
        }
}

static void tell_base(void *user, struct qstill_error *why)
{
    problem_of(user, "wrong-base", why);
}

int check_bases(struct report_obj *o, struct session *s,
                struct qstill_error *err)
{
    struct qstill_error e = {0};

    if (session_check_bases(s, &e) == 0)
        return bases_foresee(s, tell_base, o, err);
    problem_of(o, "wrong-base", &e); /* which the snapshots' is, too */
    return 0;
}

void check_store(struct report_obj *o, struct session *s)
{
    check_files(o, s);
    check_disks(o, s);
    check_folders(o, s);
    check_layers(o, s);
    check_unnamed(o, s);
    check_memory(o, s);
}
