/* SPDX-License-Identifier: MIT */
/* Looking at VMs: the list of all, and the path of a disk. */
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "lock.h"
#include "qstill-qmp.h"
#include "recover.h"
#include "session.h"

struct vms_obj {
    struct qstill_vm_list list; /* first: the public pointer */
    struct arena arena;
};

/* QEMU serves one client at a time: who holds the lock may be it. */
static bool is_busy(struct session *s)
{
    struct qstill_error scratch = {0};
    struct lock_info holder;

    if (lock_holder(s->vmfd, &holder, &scratch) < 0 || !holder.held)
        return false;
    store_note(s->store, "VM %s: process %d is at work on it (qstill %s)",
               s->vm, (int)holder.pid, *holder.verb ? holder.verb : "?");
    return true;
}

static const char *state_of(struct session *s)
{
    struct qstill_error scratch = {0};

    if (is_busy(s))
        return "busy";
    if (session_connect(s, &scratch) < 0)
        return "unreachable";
    if (!s->qmp)
        return "stopped";
    return s->status.running ? "running" : "paused";
}

static int fill(struct vms_obj *o, struct qstill_store *store, const char *name,
                struct qstill_vm *vm, struct qstill_error *err)
{
    struct qstill_error why = {0};
    struct session s;

    vm->name = arena_strdup(&o->arena, name);
    if (!vm->name)
        return err_nomem(err);
    if (session_open(&s, store, name, NULL, &why) < 0) {
        vm->state = "damaged";
        store_note(store, "%s", why.message);
        return 0;
    }
    vm->qmp = arena_strdup(&o->arena, s.rec.qmp);
    vm->agent = s.rec.agent ? arena_strdup(&o->arena, s.rec.agent) : NULL;
    vm->current = s.rec.current ? arena_strdup(&o->arena, s.rec.current) : NULL;
    vm->snapshots = s.tree.count + s.tree.damaged_count;
    vm->disks = s.rec.disk_count;
    vm->state = state_of(&s);
    session_close(&s);
    return 0;
}

static int fill_all(struct vms_obj *o, struct qstill_store *store,
                    struct qstill_error *err)
{
    CLEANUP(closep) int top = -1;
    char **names = NULL;
    size_t count = 0;
    int r = store_open_dir(store, &top, err);

    if (r == QSTILL_E_NOT_FOUND) { /* no store yet: no VMs */
        err->code = 0;
        return 0;
    }
    if (r < 0 || store_names(top, &names, &count, err) < 0)
        return err->code;
    o->list.vms = arena_array(&o->arena, count + 1, sizeof(*o->list.vms));
    if (!o->list.vms)
        r = err_nomem(err);
    for (size_t i = 0; i < count && r == 0; i++) {
        if (!store_is_vm(top, names[i]))
            continue;
        r = fill(o, store, names[i], &o->list.vms[o->list.count], err);
        if (r == 0)
            o->list.count++;
    }
    store_names_free(names, count);
    return r;
}

QSTILL_PUBLIC int qstill_vm_list(struct qstill_store *store,
                                 struct qstill_vm_list **out,
                                 struct qstill_error *caller_err)
{
    struct qstill_error scratch, *err = err_door(caller_err, &scratch);
    struct vms_obj *o = calloc(1, sizeof(*o));

    if (!o)
        return err_nomem(err);
    if (fill_all(o, store, err) < 0) {
        qstill_vm_list_free(&o->list);
        return err->code;
    }
    *out = &o->list;
    return 0;
}

QSTILL_PUBLIC void qstill_vm_list_free(struct qstill_vm_list *list)
{
    struct vms_obj *o = (struct vms_obj *)list;

    if (!o)
        return;
    arena_fini(&o->arena);
    free(o);
}

QSTILL_PUBLIC int qstill_vm_path(struct qstill_store *store, const char *vm,
                                 const char *disk, char **out,
                                 struct qstill_error *caller_err)
{
    struct qstill_error scratch, *err = err_door(caller_err, &scratch);
    const struct vm_disk *d;
    struct session s;
    char *path = NULL;

    if (session_open(&s, store, vm, NULL, err) < 0)
        return err->code;
    d = vmrecord_disk(&s.rec, disk);
    if (!d) {
        err_set(err, QSTILL_E_NOT_FOUND, "VM %s has no disk %s", vm, disk);
        if (s.rec.disk_count > 0)
            err_hint(err, "its first disk is %s", s.rec.disks[0].name);
    } else {
        path = strdup(d->head_path);
        if (!path)
            err_nomem(err);
    }
    session_close(&s);
    if (err->code < 0)
        return err->code;
    *out = path;
    return 0;
}
