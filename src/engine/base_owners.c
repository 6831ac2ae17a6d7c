/* SPDX-License-Identifier: MIT */
#include "base_owners.h"

#include <stdlib.h>
#include <string.h>

#include "journal.h"
#include "layer_file.h"
#include "lock.h"
#include "name.h"
#include "session.h"

struct base_owner {
    struct base_owner *next;
    bool known; /* the record and the tree could be read */
    struct session s;
    /* what it has vouched for last: all snapshots of a disk ask the same */
    const struct manifest_disk *now;
    const char *snapshot;
    size_t good;
};

void base_owners_fini(struct base_owners *o)
{
    for (struct base_owner *w = o->read; w; w = w->next)
        session_close(&w->s);
    o->read = NULL;
}

/* ------------------------------------------------------------------- records
 */

/* Reads only: no lock, no recovery. */
static int read_owner(struct base_owners *o, const char *vm,
                      struct base_owner **out, struct qstill_error *err)
{
    struct qstill_error ignored = {0};
    struct base_owner *w = o->read;

    while (w && strcmp(w->s.vm, vm) != 0)
        w = w->next;
    if (w) {
        *out = w;
        return 0;
    }
    w = arena_alloc(o->arena, sizeof(*w));
    if (!w)
        return err_nomem(err);
    memset(w, 0, sizeof(*w));
    w->s.vmfd = w->s.snapsfd = w->s.lockfd = -1;
    w->s.store = o->s->store;
    w->s.vm = strdup(vm);
    if (!w->s.vm)
        return err_nomem(err);
    w->known = name_check("VM name", vm, &ignored) == 0 &&
               store_open_vm(o->s->store, vm, &w->s.vmfd, &ignored) == 0 &&
               session_reload(&w->s, &ignored) == 0;
    w->next = o->read;
    o->read = w;
    *out = w;
    return 0;
}

static bool is_among(const struct vm_hidden *layers, size_t count,
                     const char *path)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(layers[i].path, path) == 0 && layers[i].ino != 0)
            return true;
    return false;
}

/* Of no snapshot, and the record says what it was when it got there. */
static bool is_noted(const struct vm_record *rec, const char *path)
{
    if (is_among(rec->hidden, rec->hidden_count, path))
        return true;
    for (size_t i = 0; i < rec->trash_count; i++)
        if (is_among(rec->trash[i].layers, rec->trash[i].layer_count, path))
            return true;
    return false;
}

static bool is_first_image(struct vm_record *rec, const char *path)
{
    for (size_t i = 0; i < rec->disk_count; i++) {
        const char *first = session_first_image(rec, &rec->disks[i]);

        if (first && *first == '/' && session_same_file(first, path))
            return true;
    }
    return false;
}

static const struct manifest_disk *disk_of(const struct manifest *m,
                                           const char *path)
{
    for (size_t i = 0; m && i < m->disk_count; i++)
        if (strcmp(m->disks[i].path, path) == 0)
            return &m->disks[i];
    return NULL;
}

/* ------------------------------------------------------------------- finding
 */

/* From the first image up, as far as the VM knows them. */
static int name_run(struct base_owners *o, struct base_owner *w,
                    struct manifest_disk *items, size_t first,
                    struct qstill_error *err)
{
    for (size_t i = first + 1; i-- > 0 && !items[i].owner_vm;) {
        CLEANUP(freep) char *real = realpath(items[i].path, NULL);
        const struct manifest *m = real ? tree_owner(&w->s.tree, real) : NULL;

        if (!m && i < first && (!real || !is_noted(&w->s.rec, real)))
            break;
        items[i].owner_vm = arena_strdup(o->arena, w->s.vm);
        items[i].owner_snapshot = m ? arena_strdup(o->arena, m->id) : NULL;
        if (!items[i].owner_vm || (m && !items[i].owner_snapshot))
            return err_nomem(err);
    }
    return 0;
}

/* All layers of a disk stand on its first image: only of a VM whose first image
 * is among them the snapshots are read. */
static int find_of(struct base_owners *o, const char *vm,
                   struct manifest_disk *items, size_t count,
                   struct qstill_error *err)
{
    CLEANUP(closep) int vmfd = -1;
    CLEANUP(vmrecord_fini) struct vm_record rec = {.arena = ARENA_INIT};
    struct qstill_error ignored = {0};

    if (store_open_vm(o->s->store, vm, &vmfd, &ignored) < 0 ||
        vmrecord_load(vmfd, &rec, &ignored) < 0)
        return 0;
    for (size_t i = 0; i < count; i++) {
        struct base_owner *w;

        if (!items[i].ino || !is_first_image(&rec, items[i].path))
            continue;
        if (read_owner(o, vm, &w, err) < 0 ||
            (w->known && name_run(o, w, items, i, err) < 0))
            return err->code;
    }
    return 0;
}

int base_owners_find(struct base_owners *o, struct manifest_disk *items,
                     size_t count, struct qstill_error *err)
{
    CLEANUP(closep) int top = -1;
    char **names = NULL;
    size_t n = 0;

    if (count == 0)
        return 0;
    if (store_open_dir(o->s->store, &top, err) < 0 ||
        store_names(top, &names, &n, err) < 0)
        return err->code;
    for (size_t i = 0; i < n && err->code == 0; i++)
        if (store_is_vm(top, names[i]) && strcmp(names[i], o->s->vm) != 0)
            find_of(o, names[i], items, count, err);
    store_names_free(names, n);
    return err->code;
}

/* ------------------------------------------------------------------ vouching
 */

static int check_idle(const struct base_owner *w, const char *path,
                      struct qstill_error *err)
{
    struct qstill_error ignored = {0};
    struct lock_info holder = {0};

    lock_holder(w->s.vmfd, &holder, &ignored);
    if (!holder.held && !journal_exists(w->s.vmfd))
        return 0;
    err_set(err, QSTILL_E_BUSY,
            "whether %s is what it was cannot be told now: it is a layer of VM "
            "%s, %s",
            path, w->s.vm,
            holder.held ? "at which another command is at work"
                        : "where a command was cut off");
    return holder.held ? err_hint(err, "try again when that is done")
                       : err_hint(err, "run qstill recover %s", w->s.vm);
}

/* What no record of the VM knows is compared as any base. */
static bool is_as_then(const struct manifest_disk *then, size_t count,
                       const struct manifest_disk *now)
{
    struct qstill_error ignored = {0};

    for (size_t i = 0; i < count; i++)
        if (then[i].ino && session_same_file(then[i].path, now->path))
            return layer_check_base(&then[i], now, &ignored) == 0;
    return false;
}

enum standing { GOOD, AS_THEN, BAD, NOT_ITS };

static enum standing stand(struct base_owner *w,
                           const struct manifest_disk *then, size_t count,
                           const struct manifest_disk *now)
{
    CLEANUP(freep) char *real = realpath(now->path, NULL);
    struct qstill_error why = {0};
    const struct manifest_disk *d;

    if (!real)
        return BAD;
    d = disk_of(tree_owner(&w->s.tree, real), real);
    if (d)
        return d->ino && layer_check(d, &why) == 0 ? GOOD : BAD;
    if (is_noted(&w->s.rec, real))
        return layer_check_unnamed(&w->s, real, &why) == 0 ? GOOD : BAD;
    if (!is_first_image(&w->s.rec, real))
        return NOT_ITS;
    return is_as_then(then, count, now) ? AS_THEN : BAD;
}

/* The snapshot's layer, and what of the same VM is below. */
static size_t count_good(struct base_owner *w, const struct manifest_disk *then,
                         size_t then_count, const struct manifest_disk *now,
                         size_t now_count)
{
    const struct manifest *m =
        w->known ? tree_find(&w->s.tree, then->owner_snapshot) : NULL;
    CLEANUP(freep)
    char *real = m && now_count > 0 ? realpath(now->path, NULL) : NULL;
    bool by_records = true;
    size_t n = 0;

    if (!real || !disk_of(m, real))
        return 0;
    if (w->now == now && strcmp(w->snapshot, then->owner_snapshot) == 0)
        return w->good;
    for (; n < now_count; n++) {
        enum standing how = stand(w, then, then_count, &now[n]);

        if (how == BAD)
            return 0;
        if (how == NOT_ITS)
            break;
        by_records &= how == GOOD;
    }
    if (by_records) {
        w->now = now;
        w->snapshot = then->owner_snapshot;
        w->good = n;
    }
    return n;
}

int base_owners_vouch(struct base_owners *o, const struct manifest *m,
                      const struct manifest_disk *then, size_t then_count,
                      const struct manifest_disk *now, size_t now_count,
                      size_t *matched, struct qstill_error *err)
{
    struct base_owner *w;

    *matched = 0;
    if (!then->owner_snapshot || read_owner(o, then->owner_vm, &w, err) < 0 ||
        w->s.vmfd < 0)
        return err->code;
    if (check_idle(w, then->path, err) < 0)
        return err->code;
    if (w->s.rec.accepted_ns < m->created_ns)
        *matched = count_good(w, then, then_count, now, now_count);
    return check_idle(w, then->path, err);
}
