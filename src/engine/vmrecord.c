/* SPDX-License-Identifier: MIT */
#include "vmrecord.h"

#include <string.h>

#include "json.h"
#include "store.h"

#define RECORD_VERSION 1
#define ARGV_MAX       65536

static void read_disks(struct json_in *in, const struct json_value *root,
                       struct vm_record *rec)
{
    const struct json_value *o;
    size_t n =
        json_in_array(in, root, "disks", VM_DISKS_MAX, JSON_OPTIONAL, &o);

    rec->disks = arena_array(&rec->arena, n + 1, sizeof(*rec->disks));
    if (!rec->disks) {
        err_nomem(in->err);
        return;
    }
    for (size_t i = 0; i < n; i++, o = o->next) {
        struct vm_disk *d = &rec->disks[i];

        d->name = json_in_string(in, o, "name", JSON_REQUIRED);
        d->qdev = json_in_string(in, o, "qdev", JSON_OPTIONAL);
        d->device = json_in_string(in, o, "device", JSON_OPTIONAL);
        d->attach_path = json_in_string(in, o, "attachPath", JSON_REQUIRED);
        d->attach_format = json_in_string(in, o, "attachFormat", JSON_REQUIRED);
        d->first_path = json_in_path(in, o, "firstPath", JSON_OPTIONAL);
        d->head_path = json_in_path(in, o, "headPath", JSON_REQUIRED);
        d->head_format = json_in_string(in, o, "headFormat", JSON_REQUIRED);
        d->virtual_size = json_in_u64(in, o, "virtualSize", JSON_REQUIRED);
    }
    rec->disk_count = n;
}

static struct vm_hidden *read_layers(struct json_in *in,
                                     const struct json_value *root,
                                     const char *key, size_t max, size_t *count)
{
    const struct json_value *o;
    size_t n = json_in_array(in, root, key, max, JSON_OPTIONAL, &o);
    struct vm_hidden *list = arena_array(in->arena, n + 1, sizeof(*list));

    *count = 0;
    if (!list) {
        err_nomem(in->err);
        return NULL;
    }
    for (size_t i = 0; i < n; i++, o = o->next) {

        list[i].disk = json_in_string(in, o, "disk", JSON_REQUIRED);
        list[i].path = json_in_path(in, o, "path", JSON_REQUIRED);
        list[i].format = json_in_string(in, o, "format", JSON_REQUIRED);
        list[i].keep = json_in_bool(in, o, "keep", JSON_OPTIONAL);
        list[i].dev = json_in_u64(in, o, "dev", JSON_OPTIONAL);
        list[i].ino = json_in_u64(in, o, "ino", JSON_OPTIONAL);
        list[i].file_size = json_in_u64(in, o, "fileSize", JSON_OPTIONAL);
        list[i].mtime_ns = json_in_u64(in, o, "mtimeNs", JSON_OPTIONAL);
        list[i].header_hash =
            json_in_string(in, o, "headerHash", JSON_OPTIONAL);
    }
    *count = n;
    return list;
}

static void read_links(struct json_in *in, const struct json_value *root,
                       struct vm_trash *t)
{
    const struct json_value *o;
    size_t n =
        json_in_array(in, root, "links", VM_TRASH_FILES_MAX, JSON_OPTIONAL, &o);

    t->links = arena_array(in->arena, n + 1, sizeof(*t->links));
    if (!t->links) {
        err_nomem(in->err);
        return;
    }
    for (size_t i = 0; i < n; i++, o = o->next) {

        t->links[i].child = json_in_string(in, o, "child", JSON_REQUIRED);
        t->links[i].parent = json_in_string(in, o, "parent", JSON_REQUIRED);
    }
    t->link_count = n;
}

static void read_trash(struct json_in *in, const struct json_value *root,
                       struct vm_record *rec)
{
    const struct json_value *o;
    size_t n =
        json_in_array(in, root, "trash", VM_TRASH_MAX, JSON_OPTIONAL, &o);

    rec->trash = arena_array(&rec->arena, n + 1, sizeof(*rec->trash));
    if (!rec->trash) {
        err_nomem(in->err);
        return;
    }
    for (size_t i = 0; i < n; i++, o = o->next) {
        struct vm_trash *t = &rec->trash[i];

        t->tag = json_in_string(in, o, "tag", JSON_REQUIRED);
        t->snapshot = json_in_string(in, o, "snapshot", JSON_OPTIONAL);
        t->current = json_in_string(in, o, "current", JSON_OPTIONAL);
        t->keep = json_in_u64(in, o, "keep", JSON_REQUIRED);
        t->redo = json_in_bool(in, o, "redo", JSON_OPTIONAL);
        t->layers =
            read_layers(in, o, "layers", VM_TRASH_FILES_MAX, &t->layer_count);
        t->ids = json_in_strings(in, o, "ids", VM_TRASH_FILES_MAX,
                                 JSON_OPTIONAL, &t->id_count);
        read_links(in, o, t);
    }
    rec->trash_count = n;
}

static void read_thaw(struct json_in *in, const struct json_value *root,
                      struct vm_record *rec)
{
    const struct json_value *o =
        json_in_object(in, root, "thawOwed", JSON_OPTIONAL);

    if (!o)
        return;
    rec->thaw.owed = true;
    rec->thaw.pid = json_in_u64(in, o, "pid", JSON_REQUIRED);
    rec->thaw.pid_start = json_in_u64(in, o, "pidStart", JSON_REQUIRED);
}

static void read_launch(struct json_in *in, const struct json_value *root,
                        struct vm_record *rec)
{
    const struct json_value *o =
        json_in_object(in, root, "launch", JSON_OPTIONAL);
    struct launch_record *l = &rec->launch;
    size_t n;

    if (!o)
        return;
    l->argv = json_in_strings(in, o, "argv", ARGV_MAX, JSON_OPTIONAL, &n);
    if (n == 0 && in->err->code == 0)
        err_set(in->err, QSTILL_E_CORRUPT, "%s is damaged: empty argv",
                in->file);
    l->env = json_in_strings(in, o, "env", ARGV_MAX, JSON_OPTIONAL, &n);
    l->cwd = (char *)(uintptr_t)json_in_string(in, o, "cwd", JSON_REQUIRED);
    l->exe = (char *)(uintptr_t)json_in_string(in, o, "exe", JSON_REQUIRED);
    l->uid = (uint32_t)json_in_u64(in, o, "uid", JSON_REQUIRED);
    l->gid = (uint32_t)json_in_u64(in, o, "gid", JSON_REQUIRED);
    if (in->err->code == 0)
        limits_parse(json_in_string(in, o, "limits", JSON_OPTIONAL), &l->limits,
                     in->err);
    if (in->err->code == 0)
        confine_parse(json_in_string(in, o, "confined", JSON_OPTIONAL),
                      &l->confine, in->err);
    if (in->err->code == 0)
        groups_parse(json_in_string(in, o, "groups", JSON_OPTIONAL), &l->groups,
                     in->err);
    rec->has_launch = in->err->code == 0;
}

int vmrecord_load(int vmfd, struct vm_record *out, struct qstill_error *err)
{
    CLEANUP(json_file_fini) struct json_file file = JSON_FILE_INIT;
    const struct json_value *root;
    struct vm_record rec = {.arena = ARENA_INIT};
    struct json_in in = {STORE_RECORD, &rec.arena, err};

    if (json_file_read(vmfd, STORE_RECORD, RECORD_VERSION, &file, err) < 0)
        return err->code;
    root = file.root;
    rec.name = json_in_string(&in, root, "name", JSON_REQUIRED);
    rec.qmp = json_in_string(&in, root, "qmp", JSON_REQUIRED);
    rec.agent = json_in_string(&in, root, "agent", JSON_OPTIONAL);
    rec.launcher = json_in_string(&in, root, "launcher", JSON_OPTIONAL);
    rec.uuid = json_in_string(&in, root, "uuid", JSON_OPTIONAL);
    rec.current = json_in_string(&in, root, "current", JSON_OPTIONAL);
    rec.mapped = json_in_string(&in, root, "mapped", JSON_OPTIONAL);
    read_disks(&in, root, &rec);
    rec.hidden =
        read_layers(&in, root, "hidden", VM_HIDDEN_MAX, &rec.hidden_count);
    rec.aged = json_in_string(&in, root, "aged", JSON_OPTIONAL);
    rec.accepted_ns = json_in_u64(&in, root, "acceptedNs", JSON_OPTIONAL);
    read_trash(&in, root, &rec);
    read_thaw(&in, root, &rec);
    read_launch(&in, root, &rec);
    json_in_string(&in, root, "sum", JSON_OPTIONAL);
    json_in_strict(&in, root);
    if (err->code < 0) {
        vmrecord_fini(&rec);
        return err->code;
    }
    *out = rec;
    return 0;
}

static json_t *disks_json(const struct vm_record *rec)
{
    json_t *array = json_array();

    for (size_t i = 0; array && i < rec->disk_count; i++) {
        const struct vm_disk *d = &rec->disks[i];

        json_array_append_new(
            array,
            json_pack("{so so so so so so* so so sI}", "name",
                      json_out_string(d->name), "qdev",
                      json_out_string(d->qdev), "device",
                      json_out_string(d->device), "attachPath",
                      json_out_string(d->attach_path), "attachFormat",
                      json_out_string(d->attach_format), "firstPath",
                      d->first_path ? json_out_string(d->first_path) : NULL,
                      "headPath", json_out_string(d->head_path), "headFormat",
                      json_out_string(d->head_format), "virtualSize",
                      (json_int_t)d->virtual_size));
    }
    return array;
}

static json_t *layers_json(const struct vm_hidden *list, size_t count)
{
    json_t *array = json_array();

    for (size_t i = 0; array && i < count; i++) {
        const struct vm_hidden *h = &list[i];

        json_array_append_new(
            array, json_pack("{so so so sb sI sI sI sI so}", "disk",
                             json_out_string(h->disk), "path",
                             json_out_string(h->path), "format",
                             json_out_string(h->format), "keep", h->keep, "dev",
                             (json_int_t)h->dev, "ino", (json_int_t)h->ino,
                             "fileSize", (json_int_t)h->file_size, "mtimeNs",
                             (json_int_t)h->mtime_ns, "headerHash",
                             json_out_string(h->header_hash)));
    }
    return array;
}

static json_t *links_json(const struct vm_trash *t)
{
    json_t *array = json_array();

    for (size_t i = 0; array && i < t->link_count; i++)
        json_array_append_new(
            array,
            json_pack("{so so}", "child", json_out_string(t->links[i].child),
                      "parent", json_out_string(t->links[i].parent)));
    return array;
}

static json_t *trash_json(const struct vm_record *rec)
{
    json_t *array = json_array();

    for (size_t i = 0; array && i < rec->trash_count; i++) {
        const struct vm_trash *t = &rec->trash[i];

        json_array_append_new(
            array, json_pack("{so so so sI sb so so so}", "tag",
                             json_out_string(t->tag), "snapshot",
                             json_out_string(t->snapshot), "current",
                             json_out_string(t->current), "keep",
                             (json_int_t)t->keep, "redo", t->redo, "layers",
                             layers_json(t->layers, t->layer_count), "ids",
                             json_out_strings(t->ids, t->id_count), "links",
                             links_json(t)));
    }
    return array;
}

static size_t strings_count(char *const *list)
{
    size_t n = 0;

    while (list && list[n])
        n++;
    return n;
}

static json_t *launch_json(const struct vm_record *rec)
{
    CLEANUP(arena_fini) struct arena a = ARENA_INIT;
    const struct launch_record *l = &rec->launch;
    struct qstill_error ignored = {0};
    char *limits = NULL, *confined = NULL, *groups = NULL;

    if (!rec->has_launch)
        return json_null();
    if (limits_format(&l->limits, &a, &limits, &ignored) < 0 ||
        confine_format(&l->confine, &a, &confined, &ignored) < 0 ||
        groups_format(&l->groups, &a, &groups, &ignored) < 0)
        return NULL;
    return json_pack("{so so so so so so so sI sI}", "limits",
                     json_out_string(limits), "confined",
                     json_out_string(confined), "groups",
                     json_out_string(groups), "argv",
                     json_out_strings(l->argv, strings_count(l->argv)), "env",
                     json_out_strings(l->env, strings_count(l->env)), "cwd",
                     json_out_string(l->cwd), "exe", json_out_string(l->exe),
                     "uid", (json_int_t)l->uid, "gid", (json_int_t)l->gid);
}

static json_t *thaw_json(const struct vm_thaw *t)
{
    return t->owed ? json_pack("{sI sI}", "pid", (json_int_t)t->pid, "pidStart",
                               (json_int_t)t->pid_start)
                   : json_null();
}

int vmrecord_save(int vmfd, const struct vm_record *rec,
                  struct qstill_error *err)
{
    CLEANUP(json_decrefp)
    json_t *root = json_pack(
        "{si so so so so so so so so so so so so so}", "version",
        RECORD_VERSION, "name", json_out_string(rec->name), "qmp",
        json_out_string(rec->qmp), "agent", json_out_string(rec->agent),
        "launcher", json_out_string(rec->launcher), "uuid",
        json_out_string(rec->uuid), "current", json_out_string(rec->current),
        "mapped", json_out_string(rec->mapped), "disks", disks_json(rec),
        "hidden", layers_json(rec->hidden, rec->hidden_count), "trash",
        trash_json(rec), "thawOwed", thaw_json(&rec->thaw), "aged",
        json_out_string(rec->aged), "launch", launch_json(rec));

    if (root && rec->accepted_ns)
        json_object_set_new(root, "acceptedNs",
                            json_integer((json_int_t)rec->accepted_ns));
    return json_file_write_summed(vmfd, STORE_RECORD, root, vmfd, err);
}

int vmrecord_check_sum(int vmfd, struct qstill_error *err)
{
    return json_file_check_sum(vmfd, STORE_RECORD, err);
}

void vmrecord_fini(struct vm_record *rec)
{
    arena_fini(&rec->arena);
    memset(rec, 0, sizeof(*rec));
}

struct vm_disk *vmrecord_disk(const struct vm_record *rec, const char *name)
{
    for (size_t i = 0; i < rec->disk_count; i++)
        if (strcmp(rec->disks[i].name, name) == 0)
            return &rec->disks[i];
    return NULL;
}

/* NULL stays NULL. */
static int dup_into(struct vm_record *rec, const char **dst, const char *src,
                    struct qstill_error *err)
{
    char *copy = src ? arena_strdup(&rec->arena, src) : NULL;

    if (src && !copy)
        return err_nomem(err);
    *dst = copy;
    return 0;
}

int vmrecord_set_head(struct vm_record *rec, const char *disk, const char *path,
                      const char *format, struct qstill_error *err)
{
    struct vm_disk *d = vmrecord_disk(rec, disk);

    if (!d)
        return err_set(err, QSTILL_E_NOT_FOUND, "VM %s has no disk %s",
                       rec->name, disk);
    if (dup_into(rec, &d->head_path, path, err) < 0 ||
        dup_into(rec, &d->head_format, format, err) < 0)
        return err->code;
    vmrecord_unhide(rec, d->head_path);
    return 0;
}

int vmrecord_set_current(struct vm_record *rec, const char *id,
                         struct qstill_error *err)
{
    return dup_into(rec, &rec->current, id, err);
}

int vmrecord_set_mapped(struct vm_record *rec, const char *id,
                        struct qstill_error *err)
{
    return dup_into(rec, &rec->mapped, id, err);
}

static int dup_strings(struct vm_record *rec, char ***dst, char *const *src,
                       struct qstill_error *err)
{
    size_t n = strings_count(src);
    char **list = arena_array(&rec->arena, n + 1, sizeof(*list));

    if (!list)
        return err_nomem(err);
    for (size_t i = 0; i < n; i++) {
        list[i] = arena_strdup(&rec->arena, src[i]);
        if (!list[i])
            return err_nomem(err);
    }
    *dst = list;
    return 0;
}

int vmrecord_set_launch(struct vm_record *rec,
                        const struct launch_record *launch,
                        struct qstill_error *err)
{
    struct launch_record *l = &rec->launch;

    l->uid = launch->uid;
    l->gid = launch->gid;
    l->limits = launch->limits;
    l->confine = launch->confine;
    l->groups = launch->groups;
    l->cwd = arena_strdup(&rec->arena, launch->cwd);
    l->exe = arena_strdup(&rec->arena, launch->exe);
    if (!l->cwd || !l->exe)
        return err_nomem(err);
    if (dup_strings(rec, &l->argv, launch->argv, err) < 0 ||
        dup_strings(rec, &l->env, launch->env, err) < 0)
        return err->code;
    rec->has_launch = true;
    return 0;
}
