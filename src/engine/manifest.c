/* SPDX-License-Identifier: MIT */
#include "manifest.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "json.h"
#include "store.h"
#include "vmrecord.h"

#define MANIFEST_VERSION 1

/* Which earlier versions did not write: NULL is not the same as empty. */
static const struct json_value *later(const struct json_value *o,
                                      const char *key)
{
    const struct json_value *v = o->items.first;

    while (v && !(v->key && strcmp(v->key, key) == 0))
        v = v->next;
    return v && v->kind == JSON_ARRAY_VALUE ? v : NULL;
}

static void read_file(struct json_in *in, const struct json_value *o,
                      struct manifest_disk *d)
{
    d->path = json_in_path(in, o, "path", JSON_REQUIRED);
    d->format = json_in_string(in, o, "format", JSON_REQUIRED);
    d->dev = json_in_u64(in, o, "dev", JSON_REQUIRED);
    d->ino = json_in_u64(in, o, "ino", JSON_REQUIRED);
    d->file_size = json_in_u64(in, o, "fileSize", JSON_REQUIRED);
    d->mtime_ns = json_in_u64(in, o, "mtimeNs", JSON_REQUIRED);
    d->header_hash = json_in_string(in, o, "headerHash", JSON_PRESENT);
}

static void read_bases(struct json_in *in, const struct json_value *disk,
                       struct manifest *m, struct manifest_disk *d)
{
    const struct json_value *o;
    size_t n =
        json_in_array(in, disk, "bases", MANIFEST_BASES_MAX, JSON_OPTIONAL, &o);

    if (!later(disk, "bases"))
        return;
    d->bases = arena_array(&m->arena, n + 1, sizeof(*d->bases));
    if (!d->bases) {
        err_nomem(in->err);
        return;
    }
    for (size_t i = 0; i < n; i++, o = o->next) {
        struct manifest_disk *b = &d->bases[i];

        read_file(in, o, b);
        b->owner_vm = json_in_string(in, o, "ownerVm", JSON_OPTIONAL);
        b->owner_snapshot =
            json_in_string(in, o, "ownerSnapshot", JSON_OPTIONAL);
    }
    d->base_count = n;
}

static void read_disks(struct json_in *in, const struct json_value *root,
                       struct manifest *m)
{
    const struct json_value *o;
    size_t n =
        json_in_array(in, root, "disks", VM_DISKS_MAX, JSON_REQUIRED, &o);

    m->disks = arena_array(&m->arena, n + 1, sizeof(*m->disks));
    if (!m->disks) {
        err_nomem(in->err);
        return;
    }
    for (size_t i = 0; i < n; i++, o = o->next) {
        struct manifest_disk *d = &m->disks[i];

        d->name = json_in_string(in, o, "name", JSON_REQUIRED);
        d->qdev = json_in_string(in, o, "qdev", JSON_PRESENT);
        d->device = json_in_string(in, o, "device", JSON_PRESENT);
        d->node = json_in_string(in, o, "node", JSON_PRESENT);
        d->virtual_size = json_in_u64(in, o, "virtualSize", JSON_REQUIRED);
        read_file(in, o, d);
        read_bases(in, o, m, d);
    }
    m->disk_count = n;
}

static void read_blocks(struct json_in *in, const struct json_value *mem,
                        struct manifest *m)
{
    const struct json_value *o;
    size_t n = json_in_array(in, mem, "blocks", MANIFEST_BLOCKS_MAX,
                             JSON_REQUIRED, &o);

    m->blocks = arena_array(&m->arena, n + 1, sizeof(*m->blocks));
    if (!m->blocks) {
        err_nomem(in->err);
        return;
    }
    for (size_t i = 0; i < n; i++, o = o->next) {
        struct manifest_block *b = &m->blocks[i];

        b->id = json_in_string(in, o, "id", JSON_REQUIRED);
        b->size = json_in_u64(in, o, "size", JSON_REQUIRED);
        b->page_size = json_in_u64(in, o, "pageSize", JSON_REQUIRED);
        b->shared = json_in_bool(in, o, "shared", JSON_REQUIRED);
        b->main = json_in_bool(in, o, "main", JSON_REQUIRED);
        b->origin = json_in_string(in, o, "origin", JSON_PRESENT);
    }
    m->block_count = n;
}

static char **read_later(struct json_in *in, const struct json_value *o,
                         const char *key, size_t *count)
{
    char **list =
        json_in_strings(in, o, key, MANIFEST_DEVICES_MAX, JSON_OPTIONAL, count);

    return later(o, key) ? list : NULL;
}

static void read_memory(struct json_in *in, const struct json_value *root,
                        struct manifest *m)
{
    const struct json_value *o =
        json_in_object(in, root, "memory", JSON_PRESENT);

    if (!o)
        return;
    m->memory_included = true;
    m->machine = json_in_string(in, o, "machine", JSON_REQUIRED);
    m->memory_bytes = json_in_u64(in, o, "bytes", JSON_REQUIRED);
    m->memory_written = json_in_u64(in, o, "written", JSON_REQUIRED);
    m->cpu_type = json_in_string(in, o, "cpuType", JSON_PRESENT);
    m->accel = json_in_string(in, o, "accel", JSON_PRESENT);
    m->vcpus = json_in_u64(in, o, "vcpus", JSON_REQUIRED);
    m->devices = json_in_strings(in, o, "devices", MANIFEST_DEVICES_MAX,
                                 JSON_OPTIONAL, &m->device_count);
    m->user_devices = read_later(in, o, "userDevices", &m->user_device_count);
    media_from_json(in, o, &m->media);
    read_blocks(in, o, m);
}

static void read_host(struct json_in *in, const struct json_value *root,
                      struct manifest *m)
{
    const struct json_value *o =
        json_in_object(in, root, "host", JSON_REQUIRED);

    if (!o)
        return;
    m->host.cpu_model = json_in_string(in, o, "cpuModel", JSON_PRESENT);
    m->host.cpu_vendor = json_in_string(in, o, "cpuVendor", JSON_PRESENT);
    m->host.microcode = json_in_string(in, o, "microcode", JSON_PRESENT);
    m->host.tsc_khz = json_in_u64(in, o, "tscKhz", JSON_REQUIRED);
    m->host.kernel = json_in_string(in, o, "kernel", JSON_PRESENT);
    m->host.hostname = json_in_string(in, o, "hostname", JSON_PRESENT);
}

static bool is_run_state(const char *s)
{
    return strcmp(s, "running") == 0 || strcmp(s, "paused") == 0 ||
           strcmp(s, "stopped") == 0;
}

/* What contradicts itself is damage: one bit must not make of a snapshot with
 * memory one without. */
static void check_sense(struct json_in *in, int snapdirfd,
                        const struct manifest *m)
{
    if (in->err->code < 0)
        return;
    if ((strcmp(m->mode, MANIFEST_MODE_DISK) != 0) != m->memory_included)
        json_in_bad(in, "memory", "not as \"mode\" says");
    if (!m->memory_included &&
        faccessat(snapdirfd, STORE_MEMORY, F_OK, AT_SYMLINK_NOFOLLOW) == 0)
        json_in_bad(in, "memory", "null, but there is a memory directory");
    if (!is_run_state(m->run_state))
        json_in_bad(in, "runState", "no state");
    for (size_t i = 0; i < m->disk_count; i++)
        if (manifest_disk(m, m->disks[i].name) != &m->disks[i])
            json_in_bad(in, "disks", "a list with one of them twice");
}

int manifest_load(int snapdirfd, struct manifest *out, struct qstill_error *err)
{
    CLEANUP(json_file_fini) struct json_file file = JSON_FILE_INIT;
    const struct json_value *root;
    struct manifest m = {.arena = ARENA_INIT};
    struct json_in in = {STORE_MANIFEST, &m.arena, err};

    if (json_file_read(snapdirfd, STORE_MANIFEST, MANIFEST_VERSION, &file,
                       err) < 0)
        return err->code;
    root = file.root;
    m.id = json_in_string(&in, root, "id", JSON_REQUIRED);
    m.name = json_in_string(&in, root, "name", JSON_REQUIRED);
    m.description = json_in_string(&in, root, "description", JSON_PRESENT);
    m.parent_id = json_in_string(&in, root, "parentId", JSON_PRESENT);
    m.created_at = json_in_string(&in, root, "createdAt", JSON_REQUIRED);
    m.created_ns = json_in_u64(&in, root, "createdNs", JSON_REQUIRED);
    m.labels = json_in_strings(&in, root, "labels", MANIFEST_LABELS_MAX,
                               JSON_REQUIRED, &m.label_count);
    m.protect = json_in_bool(&in, root, "protect", JSON_OPTIONAL);
    m.quiesced = json_in_bool(&in, root, "quiesced", JSON_REQUIRED);
    m.frozen_ms = json_in_real(&in, root, "frozenMs", JSON_REQUIRED);
    m.frozen_filesystems =
        json_in_u64(&in, root, "frozenFilesystems", JSON_OPTIONAL);
    m.mounted_filesystems =
        json_in_u64(&in, root, "mountedFilesystems", JSON_OPTIONAL);
    m.mode = json_in_string(&in, root, "mode", JSON_REQUIRED);
    m.mode_reason = json_in_string(&in, root, "modeReason", JSON_PRESENT);
    m.run_state = json_in_string(&in, root, "runState", JSON_REQUIRED);
    m.pause_ms = json_in_real(&in, root, "pauseMs", JSON_REQUIRED);
    m.stall_ms = json_in_real(&in, root, "longestStallMs", JSON_REQUIRED);
    m.qemu_version = json_in_string(&in, root, "qemuVersion", JSON_PRESENT);
    m.qemu_sum = json_in_string(&in, root, "qemuSum", JSON_PRESENT);
    read_disks(&in, root, &m);
    read_memory(&in, root, &m);
    read_host(&in, root, &m);
    json_in_string(&in, root, "sum", JSON_OPTIONAL);
    json_in_strict(&in, root);
    check_sense(&in, snapdirfd, &m);
    if (err->code < 0) {
        manifest_fini(&m);
        return err->code;
    }
    *out = m;
    return 0;
}

static json_t *bases_json(const struct manifest_disk *d)
{
    json_t *array = d->bases ? json_array() : json_null();

    for (size_t i = 0; array && i < d->base_count; i++) {
        const struct manifest_disk *b = &d->bases[i];

        json_array_append_new(
            array, json_pack("{so so sI sI sI sI so so so}", "path",
                             json_out_string(b->path), "format",
                             json_out_string(b->format), "dev",
                             (json_int_t)b->dev, "ino", (json_int_t)b->ino,
                             "fileSize", (json_int_t)b->file_size, "mtimeNs",
                             (json_int_t)b->mtime_ns, "headerHash",
                             json_out_string(b->header_hash), "ownerVm",
                             json_out_string(b->owner_vm), "ownerSnapshot",
                             json_out_string(b->owner_snapshot)));
    }
    return array;
}

static json_t *disks_json(const struct manifest *m)
{
    json_t *array = json_array();

    for (size_t i = 0; array && i < m->disk_count; i++) {
        const struct manifest_disk *d = &m->disks[i];

        json_array_append_new(
            array,
            json_pack(
                "{so so so so so so sI sI sI sI sI so so}", "name",
                json_out_string(d->name), "qdev", json_out_string(d->qdev),
                "device", json_out_string(d->device), "node",
                json_out_string(d->node), "path", json_out_string(d->path),
                "format", json_out_string(d->format), "virtualSize",
                (json_int_t)d->virtual_size, "dev", (json_int_t)d->dev, "ino",
                (json_int_t)d->ino, "fileSize", (json_int_t)d->file_size,
                "mtimeNs", (json_int_t)d->mtime_ns, "headerHash",
                json_out_string(d->header_hash), "bases", bases_json(d)));
    }
    return array;
}

static json_t *blocks_json(const struct manifest *m)
{
    json_t *array = json_array();

    for (size_t i = 0; array && i < m->block_count; i++) {
        const struct manifest_block *b = &m->blocks[i];

        json_array_append_new(
            array,
            json_pack("{so sI sI sb sb so}", "id", json_out_string(b->id),
                      "size", (json_int_t)b->size, "pageSize",
                      (json_int_t)b->page_size, "shared", b->shared, "main",
                      b->main, "origin", json_out_string(b->origin)));
    }
    return array;
}

static json_t *memory_json(const struct manifest *m)
{
    if (!m->memory_included)
        return json_null();
    return json_pack(
        "{so sI sI so so sI so so so so}", "machine",
        json_out_string(m->machine), "bytes", (json_int_t)m->memory_bytes,
        "written", (json_int_t)m->memory_written, "cpuType",
        json_out_string(m->cpu_type), "accel", json_out_string(m->accel),
        "vcpus", (json_int_t)m->vcpus, "blocks", blocks_json(m), "devices",
        json_out_strings(m->devices, m->device_count), "userDevices",
        m->user_devices
            ? json_out_strings(m->user_devices, m->user_device_count)
            : json_null(),
        "media", media_to_json(&m->media));
}

static json_t *host_json(const struct manifest *m)
{
    const struct manifest_host *h = &m->host;

    return json_pack(
        "{so so so sI so so}", "cpuModel", json_out_string(h->cpu_model),
        "cpuVendor", json_out_string(h->cpu_vendor), "microcode",
        json_out_string(h->microcode), "tscKhz", (json_int_t)h->tsc_khz,
        "kernel", json_out_string(h->kernel), "hostname",
        json_out_string(h->hostname));
}

int manifest_save(int snapdirfd, const struct manifest *m, int sparefd,
                  struct qstill_error *err)
{
    CLEANUP(json_decrefp)
    json_t *root = json_pack(
        "{si so so so so so sI so sb sb sf sI sI so so so sf sf so so so so "
        "so}",
        "version", MANIFEST_VERSION, "id", json_out_string(m->id), "name",
        json_out_string(m->name), "description",
        json_out_string(m->description), "parentId",
        json_out_string(m->parent_id), "createdAt",
        json_out_string(m->created_at), "createdNs", (json_int_t)m->created_ns,
        "labels", json_out_strings(m->labels, m->label_count), "protect",
        m->protect, "quiesced", m->quiesced, "frozenMs", m->frozen_ms,
        "frozenFilesystems", (json_int_t)m->frozen_filesystems,
        "mountedFilesystems", (json_int_t)m->mounted_filesystems, "mode",
        json_out_string(m->mode), "modeReason", json_out_string(m->mode_reason),
        "runState", json_out_string(m->run_state), "pauseMs", m->pause_ms,
        "longestStallMs", m->stall_ms, "qemuVersion",
        json_out_string(m->qemu_version), "qemuSum",
        json_out_string(m->qemu_sum), "disks", disks_json(m), "memory",
        memory_json(m), "host", host_json(m));

    return json_file_write_summed(snapdirfd, STORE_MANIFEST, root, sparefd,
                                  err);
}

int manifest_check_sum(int snapsfd, const struct manifest *m,
                       struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;

    if (store_opendirat(snapsfd, m->id, &fd, err) < 0 ||
        json_file_check_sum(fd, STORE_MANIFEST, err) < 0)
        return err_wrap(err, "snapshot %s", m->name);
    return 0;
}

void manifest_fini(struct manifest *m)
{
    arena_fini(&m->arena);
    memset(m, 0, sizeof(*m));
}

struct manifest_disk *manifest_disk(const struct manifest *m, const char *name)
{
    for (size_t i = 0; i < m->disk_count; i++)
        if (strcmp(m->disks[i].name, name) == 0)
            return &m->disks[i];
    return NULL;
}
