/* SPDX-License-Identifier: MIT */
/* What a snapshot's manifest says: disks, memory, machine and host. */
#include "create_impl.h"

#include <stdio.h>
#include <string.h>

#include "bases.h"
#include "hostinfo.h"
#include "layer_file.h"
#include "qmp/topology.h"
#include "userdevs.h"

static int fill_disks(struct create *c, struct manifest *m,
                      struct qstill_error *err)
{
    m->disks = arena_array(&m->arena, c->j.disk_count + 1, sizeof(*m->disks));
    if (!m->disks)
        return err_nomem(err);
    for (size_t i = 0; i < c->j.disk_count; i++) {
        const struct journal_disk *jd = &c->j.disks[i];
        const struct vm_disk *d = &c->s.rec.disks[i];
        const struct qmp_disk *q = session_live_disk(&c->s, d);
        struct manifest_disk *md = &m->disks[i];

        md->name = d->name;
        md->qdev = d->qdev;
        md->device = d->device;
        md->node = q ? q->node : NULL;
        md->path = jd->old_path;
        md->format = jd->old_format;
        md->virtual_size = d->virtual_size;
        if (layer_identify(m, md, err) < 0)
            return err->code;
    }
    m->disk_count = c->j.disk_count;
    return bases_keep(&c->s, m, err);
}

static int fill_blocks(struct create *c, struct manifest *m,
                       const struct capture_result *r, struct qstill_error *err)
{
    const struct qmp_memdevs *devs = &c->memdevs;

    m->blocks = arena_array(&m->arena, r->block_count + 1, sizeof(*m->blocks));
    if (!m->blocks)
        return err_nomem(err);
    for (size_t i = 0; i < r->block_count; i++) {
        struct manifest_block *b = &m->blocks[i];
        const struct qmp_ram_block *live =
            qmp_ram_find(&c->ram, r->blocks[i].id);

        b->id = arena_strdup(&m->arena, r->blocks[i].id);
        if (!b->id)
            return err_nomem(err);
        b->size = r->blocks[i].size;
        b->page_size = live ? live->page_size : r->blocks[i].page_size;
        for (size_t k = 0; k < devs->count; k++) {
            const char *tail = strrchr(b->id, '/');

            if (strcmp(devs->items[k].id, b->id) != 0 &&
                (!tail || strncmp(b->id, "/objects/", 9) != 0 ||
                 strcmp(devs->items[k].id, tail + 1) != 0))
                continue;
            b->main = true;
            b->shared = devs->items[k].share;
            b->origin = arena_strdup(&m->arena, devs->items[k].type);
        }
    }
    m->block_count = r->block_count;
    return 0;
}

static bool has_line(const struct qmp_names *list, const char *line)
{
    for (size_t i = 0; i < list->count; i++)
        if (strcmp(list->items[i], line) == 0)
            return true;
    return false;
}

/* Which of the two lists the device state belongs to nobody knows. */
static int changed(const char *what, const char *how, struct qstill_error *err)
{
    err_set(err, QSTILL_E_BUSY, "%s was %s while the snapshot was taken", what,
            how);
    return err_hint(err, "create the snapshot again");
}

static int check_device(const struct qmp_names *other, const char *line,
                        const char *how, struct qstill_error *err)
{
    const char *sum = strstr(line, " #");
    char name[256];

    if (has_line(other, line))
        return 0;
    snprintf(name, sizeof(name), "device %.*s",
             (int)(sum ? (size_t)(sum - line) : strlen(line)), line);
    return changed(name, how, err);
}

static int check_devices(const struct create *c, const struct qmp_names *now,
                         struct qstill_error *err)
{
    for (size_t i = 0; i < now->count; i++)
        if (check_device(&c->devices, now->items[i], "plugged in", err) < 0)
            return err->code;
    for (size_t i = 0; i < c->devices.count; i++)
        if (check_device(now, c->devices.items[i], "taken out", err) < 0)
            return err->code;
    return 0;
}

static char **keep_lines(struct manifest *m, const struct qmp_names *names,
                         size_t *count)
{
    char **lines = arena_array(&m->arena, names->count + 1, sizeof(*lines));

    for (*count = 0; lines && *count < names->count; ++*count) {
        lines[*count] = arena_strdup(&m->arena, names->items[*count]);
        if (!lines[*count])
            return NULL;
    }
    return lines;
}

/* What the device state belongs to: a revert in place compares it; and which of
 * the devices a start will not make. */
static int fill_devices(struct create *c, struct manifest *m,
                        struct qstill_error *err)
{
    CLEANUP(qmp_names_fini) struct qmp_names names = QMP_NAMES_INIT;
    CLEANUP(qmp_names_fini) struct qmp_names user = QMP_NAMES_INIT;

    if (qmp_topology_read(c->s.qmp, &names, err) < 0 ||
        check_devices(c, &names, err) < 0)
        return err->code;
    m->devices = keep_lines(m, &names, &m->device_count);
    if (!m->devices)
        return err_nomem(err);
    if (userdevs_read(c->s.qmp, &user, err) < 0)
        return err->code;
    m->user_devices = keep_lines(m, &user, &m->user_device_count);
    return m->user_devices ? 0 : err_nomem(err);
}

/* What a restore will want to know of the VM that has the memory. */
static int ask_memory(struct create *c, struct manifest *m,
                      struct qstill_error *err)
{
    CLEANUP(qmp_cpus_fini) struct qmp_cpus cpus = QMP_CPUS_INIT;

    if (qmp_cpus_read(c->s.qmp, &cpus, err) < 0 ||
        fill_devices(c, m, err) < 0 ||
        qmp_ram_read(c->s.qmp, &c->ram, err) < 0 ||
        qmp_memdevs_read(c->s.qmp, &c->ram, &c->memdevs, err) < 0)
        return err->code;
    if (cpus.count != c->vcpus)
        return changed("a CPU",
                       cpus.count > c->vcpus ? "plugged in" : "taken out", err);
    m->vcpus = cpus.count;
    m->cpu_type = cpus.type ? arena_strdup(&m->arena, cpus.type) : NULL;
    return 0;
}

static int fill_memory(struct create *c, struct manifest *m,
                       struct qstill_error *err)
{
    struct capture_result r;

    if (memcap_finish(&c->mem, &r, err) < 0)
        return err->code;
    m->memory_included = true;
    m->memory_bytes = r.memory_bytes;
    m->memory_written = r.written_bytes;
    m->stall_ms = r.longest_stall_ms;
    return fill_blocks(c, m, &r, err);
}

static int fill_qemu(struct create *c, struct manifest *m,
                     struct qstill_error *err)
{
    CLEANUP(qmp_machine_fini) struct qmp_machine machine = QMP_MACHINE_INIT;
    struct qstill_error ignored = {0};
    char sum[HOSTINFO_SUM_MAX];

    if (qmp_machine_read(c->s.qmp, &machine, err) < 0)
        return err->code;
    m->machine = arena_strdup(&m->arena, machine.type);
    m->qemu_version = arena_strdup(&m->arena, machine.version);
    m->accel = machine.kvm ? "kvm" : "tcg";
    if (c->s.rec.has_launch &&
        hostinfo_file_sum(c->s.rec.launch.exe, sum, &ignored) == 0)
        m->qemu_sum = arena_strdup(&m->arena, sum);
    if (!m->machine || !m->qemu_version)
        return err_nomem(err);
    return 0;
}

/* A guest under KVM sees the host's clock. */
static int fill_host(struct manifest *m, struct qstill_error *err)
{
    struct hostinfo *h = arena_alloc(&m->arena, sizeof(*h));

    if (!h)
        return err_nomem(err);
    if (hostinfo_read(h, err) < 0)
        return err->code;
    if (m->accel && strcmp(m->accel, "kvm") == 0)
        hostinfo_need_tsc(h);
    m->host.cpu_model = h->cpu_model;
    m->host.cpu_vendor = h->cpu_vendor;
    m->host.microcode = h->microcode;
    m->host.tsc_khz = h->tsc_khz;
    m->host.kernel = h->kernel;
    m->host.hostname = h->hostname;
    return 0;
}

/* The guest's disk has the size of the overlay now. */
static int check_sizes(struct create *c, struct qstill_error *err)
{
    for (size_t i = 0; i < c->j.disk_count; i++) {
        const struct journal_disk *d = &c->j.disks[i];
        uint64_t size;

        if (layer_virtual_size(d->old_path, d->old_format, &size, err) < 0)
            return err->code;
        if (size != c->sizes[i])
            return err_set(err, QSTILL_E_BUSY,
                           "disk %s was resized while the snapshot was made",
                           d->disk);
    }
    return 0;
}

/* One may have been plugged in since the plan. */
static int check_known(struct create *c, struct qstill_error *err)
{
    if (session_refresh(&c->s, err) < 0)
        return err->code;
    return session_check_known(&c->s, err) < 0 ? err->code
                                               : check_sizes(c, err);
}

int create_manifest_ask(struct create *c, struct qstill_error *err)
{
    struct manifest *m = &c->manifest;

    if (c->manifest_asked)
        return 0;
    c->manifest_asked = true;
    if (c->s.qmp && (check_known(c, err) < 0 || fill_qemu(c, m, err) < 0))
        return err->code;
    if (fill_host(m, err) < 0)
        return err->code;
    return c->o.memory ? ask_memory(c, m, err) : 0;
}

int create_manifest_look(struct create *c, struct qstill_error *err)
{
    CLEANUP(qmp_cpus_fini) struct qmp_cpus cpus = QMP_CPUS_INIT;

    if (qmp_cpus_read(c->s.qmp, &cpus, err) < 0)
        return err->code;
    c->vcpus = cpus.count;
    if (qmp_topology_read(c->s.qmp, &c->devices, err) < 0 ||
        media_read(&c->s, &c->manifest.arena, &c->manifest.media, err) < 0)
        return err->code;
    return modes_look_again(&c->s, &c->modes, c->mode, err);
}

/* A VM without such a drive is not asked again, for its pause is the guest's.
 */
int create_manifest_media(struct create *c, struct qstill_error *err)
{
    struct manifest *m = &c->manifest;

    return m->media.count > 0 ? media_read(&c->s, &m->arena, &m->media, err)
                              : 0;
}

int create_manifest_look_back(struct create *c, struct qstill_error *err)
{
    if (c->mode != MODE_COW && c->mode != MODE_BACKGROUND)
        return 0;
    if (modes_look_again(&c->s, &c->modes, c->mode, err) < 0 &&
        err->code == QSTILL_E_UNREACHABLE)
        err_clear(err); /* a VM that ends now has its snapshot */
    if (err->code < 0)
        return err->code;
    return c->mode == MODE_BACKGROUND
               ? modes_look_for_ksm(&c->s, &c->modes, err)
               : 0;
}

int create_manifest(struct create *c, struct qstill_error *err)
{
    struct manifest *m = &c->manifest;

    if (create_manifest_ask(c, err) < 0)
        return err->code;
    m->id = c->id;
    m->name = c->name;
    m->description = c->description;
    m->parent_id = c->s.rec.current;
    m->created_at = c->stamp;
    m->created_ns = c->stamp_ns;
    m->labels = c->labels;
    m->label_count = c->label_count;
    m->protect = !c->o.no_protect;
    m->quiesced = c->quiesce.filesystems > 0 && !c->quiesce.early;
    m->frozen_ms = c->quiesce.frozen_ms;
    /* one at least: how many somebody else froze is not known */
    m->frozen_filesystems = c->found_frozen ? 1 : c->quiesce.filesystems;
    m->mounted_filesystems = c->quiesce.mounted;
    m->mode = c->o.memory ? mode_name(c->mode) : MANIFEST_MODE_DISK;
    m->mode_reason = c->why;
    m->run_state = !c->s.qmp        ? "stopped"
                   : c->was_running ? "running"
                                    : "paused";
    m->pause_ms = c->pause_ms;
    if (fill_disks(c, m, err) < 0)
        return err->code;
    return c->o.memory ? fill_memory(c, m, err) : 0;
}
