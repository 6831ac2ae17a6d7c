/* SPDX-License-Identifier: MIT */
/* The public list of snapshots, made from the tree; and rename. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "lock.h"
#include "name.h"
#include "recover.h"
#include "store.h"
#include "tree.h"
#include "vmrecord.h"

struct list_obj {
    struct qstill_snapshot_list list; /* first: the public pointer */
    struct tree tree;
    struct vm_record rec;
    struct arena arena;
    size_t *parent; /* by index in the tree */
};

static uint64_t layer_usage(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 ? (uint64_t)st.st_blocks * 512 : 0;
}

static int fill_disks(struct list_obj *o, const struct manifest *m,
                      struct qstill_snapshot *s, struct qstill_error *err)
{
    struct qstill_disk_info *disks =
        arena_array(&o->arena, m->disk_count + 1, sizeof(*disks));

    if (!disks)
        return err_nomem(err);
    for (size_t i = 0; i < m->disk_count; i++) {
        disks[i].name = m->disks[i].name;
        disks[i].path = m->disks[i].path;
        disks[i].format = m->disks[i].format;
        disks[i].virtual_size = m->disks[i].virtual_size;
        s->size_bytes += layer_usage(m->disks[i].path);
    }
    s->disks = disks;
    s->disk_count = m->disk_count;
    return 0;
}

static int by_id(const void *a, const void *b)
{
    return strcmp((*(struct manifest *const *)a)->id,
                  (*(struct manifest *const *)b)->id);
}

/* The index of each one's parent, or SIZE_MAX. */
static int find_parents(struct list_obj *o, struct qstill_error *err)
{
    const struct tree *t = &o->tree;
    CLEANUP(freep)
    struct manifest **sorted = calloc(t->count + 1, sizeof(*sorted));

    o->parent = arena_array(&o->arena, t->count + 1, sizeof(*o->parent));
    if (!sorted || !o->parent)
        return err_nomem(err);
    for (size_t i = 0; i < t->count; i++)
        sorted[i] = &t->nodes[i];
    if (t->count > 1)
        qsort(sorted, t->count, sizeof(*sorted), by_id);
    for (size_t i = 0; i < t->count; i++) {
        struct manifest key = {.id = t->nodes[i].parent_id}, *k = &key;
        struct manifest **up =
            key.id ? bsearch(&k, sorted, t->count, sizeof(k), by_id) : NULL;

        o->parent[i] = up ? (size_t)(*up - t->nodes) : SIZE_MAX;
    }
    return 0;
}

static int fill_children(struct list_obj *o, struct qstill_snapshot *s,
                         struct qstill_error *err)
{
    size_t n = o->tree.count;
    const char ***lists = arena_array(&o->arena, n + 1, sizeof(*lists));

    if (!lists)
        return err_nomem(err);
    for (size_t i = 0; i < n; i++)
        if (o->parent[i] != SIZE_MAX)
            s[o->parent[i]].child_count++;
    for (size_t i = 0; i < n; i++) {
        lists[i] =
            arena_array(&o->arena, s[i].child_count + 1, sizeof(**lists));
        if (!lists[i])
            return err_nomem(err);
        s[i].children = lists[i];
    }
    for (size_t i = 0; i < n; i++)
        if (o->parent[i] != SIZE_MAX)
            *lists[o->parent[i]]++ = s[i].id;
    return 0;
}

static int fill(struct list_obj *o, int snapsfd, const struct manifest *m,
                struct qstill_snapshot *s, struct qstill_error *err)
{
    s->id = m->id;
    s->name = m->name;
    s->description = m->description ? m->description : "";
    s->parent_id = m->parent_id;
    s->created_at = m->created_at;
    s->mode = m->mode;
    s->mode_reason = m->mode_reason ? m->mode_reason : "";
    s->memory_included = m->memory_included;
    s->quiesced = m->quiesced;
    s->current = o->rec.current && strcmp(o->rec.current, m->id) == 0;
    s->pause_ms = m->pause_ms;
    s->longest_stall_ms = m->stall_ms;
    s->frozen_ms = m->frozen_ms;
    s->frozen_filesystems = m->frozen_filesystems;
    s->mounted_filesystems = m->mounted_filesystems;
    s->memory_bytes = m->memory_bytes;
    s->memory_written = m->memory_written;
    s->label_count = m->label_count;
    s->labels = (const char *const *)m->labels;
    if (m->memory_included)
        s->size_bytes = store_tree_usage(snapsfd, m->id);
    return fill_disks(o, m, s, err);
}

/* What stands below: the parent's own layers and what is below those. Parents
 * are older and thus known, unless the clock went back: then it is a walk. */
static uint64_t below(const struct list_obj *o, const uint64_t *disks,
                      const struct qstill_snapshot *s, size_t i)
{
    uint64_t sum = 0;

    for (size_t at = o->parent[i]; at != SIZE_MAX; at = o->parent[at]) {
        sum += disks[at];
        if (at < i)
            return sum + s[at].shared_bytes;
    }
    return sum;
}

static int fill_bytes(struct list_obj *o, int snapsfd,
                      struct qstill_snapshot *s, struct qstill_error *err)
{
    uint64_t *disks = arena_array(&o->arena, o->tree.count + 1, sizeof(*disks));

    if (!disks)
        return err_nomem(err);
    for (size_t i = 0; i < o->tree.count; i++) {
        uint64_t memory =
            s[i].memory_included ? store_tree_usage(snapsfd, s[i].id) : 0;

        s[i].own_bytes = s[i].size_bytes;
        disks[i] = s[i].size_bytes > memory ? s[i].size_bytes - memory : 0;
        s[i].freed_bytes =
            s[i].child_count == 0 && !s[i].current ? s[i].size_bytes : memory;
    }
    for (size_t i = 0; i < o->tree.count; i++)
        s[i].shared_bytes = below(o, disks, s, i);
    return 0;
}

static int fill_damaged(struct list_obj *o, struct qstill_error *err)
{
    const struct tree *t = &o->tree;
    struct qstill_damaged_snapshot *d =
        arena_array(&o->arena, t->damaged_count + 1, sizeof(*d));

    if (!d)
        return err_nomem(err);
    for (size_t i = 0; i < t->damaged_count; i++)
        d[i] = (struct qstill_damaged_snapshot){
            t->damaged[i].id, t->damaged[i].message, t->damaged[i].hint};
    o->list.damaged = d;
    o->list.damaged_count = t->damaged_count;
    return 0;
}

static int list_load(struct list_obj *o, int vmfd, struct qstill_error *err)
{
    CLEANUP(closep) int snapsfd = -1;
    struct qstill_snapshot *s;

    if (vmrecord_load(vmfd, &o->rec, err) < 0 ||
        tree_load(vmfd, &o->tree, err) < 0 ||
        store_open_snapshots(vmfd, &snapsfd, err) < 0)
        return err->code;
    s = arena_array(&o->arena, o->tree.count + 1, sizeof(*s));
    if (!s)
        return err_nomem(err);
    for (size_t i = 0; i < o->tree.count; i++)
        if (fill(o, snapsfd, &o->tree.nodes[i], &s[i], err) < 0)
            return err->code;
    if (find_parents(o, err) < 0 || fill_children(o, s, err) < 0)
        return err->code;
    if (fill_bytes(o, snapsfd, s, err) < 0 || fill_damaged(o, err) < 0)
        return err->code;
    o->list.count = o->tree.count;
    o->list.snapshots = s;
    o->list.current = o->rec.current;
    return 0;
}

QSTILL_PUBLIC int qstill_snapshot_list(struct qstill_store *store,
                                       const char *vm,
                                       struct qstill_snapshot_list **out,
                                       struct qstill_error *caller_err)
{
    struct qstill_error scratch, *err = err_door(caller_err, &scratch);
    CLEANUP(closep) int vmfd = -1;
    struct list_obj *o;

    if (store_open_vm(store, vm, &vmfd, err) < 0)
        return err->code;
    recover_if_abandoned(store, vm, vmfd);
    o = calloc(1, sizeof(*o));
    if (!o)
        return err_nomem(err);
    if (list_load(o, vmfd, err) < 0) {
        qstill_snapshot_list_free(&o->list);
        return err_wrap(err, "VM %s", vm);
    }
    *out = &o->list;
    return 0;
}

QSTILL_PUBLIC void qstill_snapshot_list_free(struct qstill_snapshot_list *list)
{
    struct list_obj *o = (struct list_obj *)list;

    if (!o)
        return;
    tree_fini(&o->tree);
    vmrecord_fini(&o->rec);
    arena_fini(&o->arena);
    free(o);
}

QSTILL_PUBLIC int qstill_snapshot_find(const struct qstill_snapshot_list *list,
                                       const char *snap,
                                       const struct qstill_snapshot **out,
                                       struct qstill_error *caller_err)
{
    struct qstill_error scratch, *err = err_door(caller_err, &scratch);
    struct manifest *m = NULL;

    if (tree_resolve(&((const struct list_obj *)list)->tree, snap, &m, err) < 0)
        return err->code;
    for (size_t i = 0; i < list->count; i++)
        if (strcmp(list->snapshots[i].id, m->id) == 0)
            *out = &list->snapshots[i];
    return 0;
}

static int rename_locked(int vmfd, const char *snap, const char *new_name,
                         struct qstill_error *err)
{
    CLEANUP(closep) int snapsfd = -1, fd = -1;
    CLEANUP(tree_fini) struct tree tree = {0};
    const struct manifest *other;
    struct manifest *m = NULL;

    if (tree_load(vmfd, &tree, err) < 0 ||
        tree_resolve(&tree, snap, &m, err) < 0)
        return err->code;
    other = tree_taken(&tree, new_name);
    if (other && other != m)
        return err_set(err, QSTILL_E_BUSY, "a snapshot named %s exists already",
                       new_name);
    m->name = arena_strdup(&m->arena, new_name);
    if (!m->name)
        return err_nomem(err);
    if (store_open_snapshots(vmfd, &snapsfd, err) < 0 ||
        store_opendirat(snapsfd, m->id, &fd, err) < 0)
        return err->code;
    return manifest_save(fd, m, vmfd, err);
}

QSTILL_PUBLIC int qstill_snapshot_rename(struct qstill_store *store,
                                         const char *vm, const char *snap,
                                         const char *new_name,
                                         struct qstill_error *caller_err)
{
    struct qstill_error scratch, *err = err_door(caller_err, &scratch);
    CLEANUP(closep) int vmfd = -1;
    int lockfd = -1;

    if (name_check("snapshot name", new_name, err) < 0 ||
        store_open_vm(store, vm, &vmfd, err) < 0)
        return err->code;
    recover_if_abandoned(store, vm, vmfd);
    if (lock_take(vmfd, "rename", &lockfd, err) < 0)
        return err->code;
    rename_locked(vmfd, snap, new_name, err);
    lock_release(&lockfd);
    return err->code;
}
