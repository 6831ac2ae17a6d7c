/* SPDX-License-Identifier: MIT */
#include "preflight.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "bases.h"
#include "hostinfo.h"
#include "layer_file.h"
#include "layers.h"
#include "memstate/ramset.h"
#include "qmp/ram.h"
#include "session.h"

static bool differ(const char *a, const char *b)
{
    return a && b && *a && *b && strcmp(a, b) != 0;
}

static int mismatch(struct qstill_error *err, const char *what,
                    const char *then, const char *now)
{
    return err_set(err, QSTILL_E_PRECONDITION,
                   "the %s is not the snapshot's: it was %s, now it is %s",
                   what, then, now);
}

/* What the device state is bound to: QEMU would not load it, or the guest
 * would not live. */
static int fatal(struct qstill_error *err, const char *what, const char *then,
                 const char *now)
{
    mismatch(err, what, then, now);
    return err_hint(err,
                    "start the VM with the %s that it had: --force does "
                    "not help here",
                    what);
}

/* What a guest may survive: told, and gone on with, when that is forced. */
static int risky(struct session *s, bool force, struct qstill_error *err,
                 const char *what, const char *then, const char *now)
{
    mismatch(err, what, then, now);
    if (!force)
        return err_hint(err, "bring the old one back, or use --force at your "
                             "own risk");
    store_note(s->store, "%s", err->message);
    return err_clear(err);
}

/* With force the file must only be there. */
static int check_layer(const struct manifest_disk *d, bool force,
                       struct qstill_error *err)
{
    struct manifest_disk loose = *d;

    if (!force)
        return layer_check(d, err);
    loose.mtime_ns = loose.ino = 0;
    loose.header_hash = NULL;
    return layer_check(&loose, err);
}

/* What the snapshot's layers read from: those of its ancestors. */
static int check_ancestors(struct session *s, const struct manifest *m,
                           bool force, struct qstill_error *err)
{
    const struct manifest *up = m;

    while (up->parent_id && (up = tree_find(&s->tree, up->parent_id)) != NULL)
        for (size_t i = 0; i < up->disk_count; i++)
            if (manifest_disk(m, up->disks[i].name) &&
                check_layer(&up->disks[i], force, err) < 0)
                return err_wrap(err, "below it, snapshot %s", up->name);
    return 0;
}

static int check_unnamed_below(struct session *s, const struct layers *all,
                               const char *path, struct qstill_error *err)
{
    const struct layer *l = layers_find(all, path);

    for (size_t left = all->count; l && left; left--, l = l->below)
        if ((l->hidden || l->trash) && layer_check_unnamed(s, l->path, err) < 0)
            return err->code;
    return 0;
}

/* And those of deleted ones, as long as they are not merged or undo may bring
 * them back. */
static int check_hidden(struct session *s, const struct manifest *m, bool force,
                        struct qstill_error *err)
{
    CLEANUP(layers_fini) struct layers all = {0};

    if (force || (s->rec.hidden_count == 0 && s->rec.trash_count == 0))
        return 0;
    if (layers_load(s, &all, err) < 0)
        return err->code;
    for (size_t i = 0; i < m->disk_count; i++)
        if (check_unnamed_below(s, &all, m->disks[i].path, err) < 0)
            return err_wrap(err, "below it");
    return 0;
}

int preflight_ancestry(struct session *s, const struct manifest *m,
                       struct qstill_error *err)
{
    if (check_ancestors(s, m, false, err) < 0)
        return err->code;
    return check_hidden(s, m, false, err);
}

/* The same of what the heads stand on: no snapshot need be listed, or a
 * deleted one lies between them and the current one. */
static int check_below_heads(struct session *s, struct qstill_error *err)
{
    CLEANUP(layers_fini) struct layers all = {0};

    if (s->rec.hidden_count == 0 && s->rec.trash_count == 0)
        return 0;
    if (layers_load(s, &all, err) < 0)
        return err->code;
    for (size_t i = 0; i < s->rec.disk_count; i++)
        if (check_unnamed_below(s, &all, s->rec.disks[i].head_path, err) < 0)
            return err->code;
    return 0;
}

static int check_below(struct session *s, const struct manifest *m,
                       struct qstill_error *err)
{
    if (check_below_heads(s, err) < 0 || !m)
        return err->code;
    for (size_t i = 0; i < m->disk_count; i++)
        if (vmrecord_disk(&s->rec, m->disks[i].name) &&
            layer_check(&m->disks[i], err) < 0)
            return err_wrap(err, "snapshot %s", m->name);
    return check_ancestors(s, m, false, err);
}

int preflight_below(struct session *s, struct qstill_error *err)
{
    const struct manifest *m =
        s->rec.current ? tree_find(&s->tree, s->rec.current) : NULL;

    return check_below(s, m, err) < 0
               ? err_wrap(err, "a new snapshot would stand on it")
               : 0;
}

int preflight_foundation(struct session *s, const struct manifest *m,
                         bool start, struct qstill_error *err)
{
    for (size_t i = 0; i < m->disk_count; i++) {
        const struct manifest_disk *d = &m->disks[i], *below;
        const struct manifest *up = m;

        while (up->parent_id &&
               (up = tree_find(&s->tree, up->parent_id)) != NULL &&
               (below = manifest_disk(up, d->name)) != NULL)
            d = below;
        if (session_reach(s, d->path, d->format,
                          start ? SESSION_REACH_START : 0, err) < 0) {
            err_wrap(err, "snapshot %s", m->name);
            return err_hint(err, "the disk cannot be opened without it: put it "
                                 "back");
        }
    }
    return 0;
}

static int check_disks(struct session *s, const struct manifest *m, bool force,
                       struct qstill_error *err)
{
    for (size_t i = 0; i < m->disk_count; i++) {
        const struct manifest_disk *d = &m->disks[i];

        if (!vmrecord_disk(&s->rec, d->name)) {
            err_set(err, QSTILL_E_PRECONDITION,
                    "VM %s has no disk %s, which the snapshot has", s->vm,
                    d->name);
            return err_hint(err, "attach the VM with that disk");
        }
        if (check_layer(d, force, err) < 0)
            return err->code;
    }
    if (check_ancestors(s, m, force, err) < 0 ||
        check_hidden(s, m, force, err) < 0)
        return err->code;
    return 0;
}

int preflight_memory(struct session *s, const struct manifest *m,
                     struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1, memfd = -1;
    CLEANUP(ramset_closep) struct ramset *set = NULL;

    if (store_opendirat(s->snapsfd, m->id, &fd, err) < 0 ||
        store_opendirat(fd, STORE_MEMORY, &memfd, err) < 0)
        return err->code;
    if (ramset_open(&set, memfd, err) < 0)
        return err_wrap(err, "memory of snapshot %s", m->name);
    for (size_t i = 0; i < m->block_count; i++) {
        const struct ramset_block *b = ramset_find(set, m->blocks[i].id, NULL);

        if (!b || b->size != m->blocks[i].size)
            return err_set(err, QSTILL_E_CORRUPT,
                           "memory of snapshot %s: block %s is not as the "
                           "manifest says",
                           m->name, m->blocks[i].id);
    }
    return 0;
}

/* What a snapshot is compared with, read once. */
struct today {
    struct qmp_machine machine;
    struct qmp_cpus cpus;
    struct hostinfo host;
    bool host_read;
};

static void today_fini(struct today *t)
{
    qmp_machine_fini(&t->machine);
    qmp_cpus_fini(&t->cpus);
}

static int read_process(struct session *s, struct today *t,
                        struct qstill_error *err)
{
    return qmp_machine_read(s->qmp, &t->machine, err) < 0
               ? err->code
               : qmp_cpus_read(s->qmp, &t->cpus, err);
}

static int compare_process(struct session *s, const struct manifest *m,
                           const struct today *t, bool force,
                           struct qstill_error *err)
{
    const char *accel = t->machine.kvm ? "kvm" : "tcg";

    if (differ(m->machine, t->machine.type))
        return fatal(err, "machine type", m->machine, t->machine.type);
    if (differ(m->accel, accel))
        return fatal(err, "accelerator", m->accel, accel);
    if (differ(m->cpu_type, t->cpus.type))
        return fatal(err, "CPU type", m->cpu_type, t->cpus.type);
    if (differ(m->qemu_version, t->machine.version))
        return risky(s, force, err, "QEMU version", m->qemu_version,
                     t->machine.version);
    return 0;
}

int preflight_process(struct session *s, const struct manifest *m, bool force,
                      struct qstill_error *err)
{
    CLEANUP(today_fini) struct today t = {0};

    return read_process(s, &t, err) < 0 ? err->code
                                        : compare_process(s, m, &t, force, err);
}

static bool is_same_file(const char *a, const char *b)
{
    struct stat x, y;

    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev &&
           x.st_ino == y.st_ino;
}

int preflight_binary(struct session *s, const struct manifest *m, bool force,
                     struct qstill_error *err)
{
    struct qstill_error ignored = {0};
    char running[64], sum[HOSTINFO_SUM_MAX], then[128], now[128];

    snprintf(running, sizeof(running), "/proc/%d/exe", s->pid);
    if (!s->rec.has_launch || !m->qemu_sum ||
        (s->pid > 0 && is_same_file(running, s->rec.launch.exe)) ||
        hostinfo_file_sum(s->rec.launch.exe, sum, &ignored) < 0 ||
        strcmp(m->qemu_sum, sum) == 0)
        return 0;
    snprintf(then, sizeof(then), "%.40s (%s)",
             m->qemu_version ? m->qemu_version : "?", m->qemu_sum);
    snprintf(now, sizeof(now), "another one (%s)", sum);
    if (s->qmp)
        return risky(s, force, err, "QEMU binary", then, now);
    /* nothing runs that could be lost: the new process tells its version */
    store_note(s->store, "%s is another binary than the snapshot's QEMU %s",
               s->rec.launch.exe, m->qemu_version ? m->qemu_version : "?");
    return 0;
}

/* TCG emulates its CPU; only under KVM the host's shows through. */
static int check_host(struct session *s, const struct manifest *m,
                      struct today *t, bool force, struct qstill_error *err)
{
    char then_khz[32], now_khz[32];

    if (!m->accel || strcmp(m->accel, "kvm") != 0)
        return 0;
    if (!t->host_read && hostinfo_read(&t->host, err) < 0)
        return err->code;
    t->host_read = true;
    if (differ(m->host.cpu_model, t->host.cpu_model) &&
        risky(s, force, err, "CPU model", m->host.cpu_model,
              t->host.cpu_model) < 0)
        return err->code;
    if (m->host.tsc_khz)
        hostinfo_need_tsc(&t->host);
    if (!hostinfo_same_tsc(m->host.tsc_khz, t->host.tsc_khz)) {
        snprintf(then_khz, sizeof(then_khz), "%llu kHz",
                 (unsigned long long)m->host.tsc_khz);
        snprintf(now_khz, sizeof(now_khz), "%llu kHz",
                 (unsigned long long)t->host.tsc_khz);
        return risky(s, force, err, "TSC frequency", then_khz, now_khz);
    }
    return 0;
}

/* A guest whose memory is of then would find the disk as it is now; one that
 * boots finds it so after each reset. */
static int check_known(struct session *s, bool memory, bool force,
                       struct qstill_error *err)
{
    if (session_check_known(s, err) == 0)
        return 0;
    if (memory && !force)
        return err_hint(err, "unplug it, or use --force: it stays as it is");
    store_note(s->store, "%s: it stays as it is", err->message);
    return err_clear(err);
}

int preflight(struct session *s, const struct manifest *m, bool memory,
              bool force, struct qstill_error *err)
{
    CLEANUP(today_fini) struct today t = {0};

    if (check_disks(s, m, force, err) < 0)
        return err_wrap(err, "snapshot %s", m->name);
    if (preflight_foundation(s, m, false, err) < 0 ||
        session_check_bases(s, err) < 0 ||
        bases_check_one(s, m, force, err) < 0)
        return err->code;
    if (s->qmp && check_known(s, memory, force, err) < 0)
        return err->code;
    if (!memory)
        return 0;
    if (preflight_memory(s, m, err) < 0)
        return err->code;
    if (s->qmp && preflight_process(s, m, force, err) < 0)
        return err->code;
    return check_host(s, m, &t, force, err);
}

/* The running process is as it was; one that is started would be another. */
static void note_binary(struct session *s)
{
    const struct manifest *m = NULL;
    struct qstill_error why = {0};

    for (size_t i = 0; i < s->tree.count; i++)
        if (s->tree.nodes[i].memory_included)
            m = &s->tree.nodes[i]; /* the binary is read once: one will do */
    if (m && preflight_binary(s, m, false, &why) < 0)
        store_note(s->store,
                   "snapshot %s: a revert that needs a new process is refused: "
                   "%s",
                   m->name, why.message);
}

int preflight_foresee(struct session *s, preflight_tell_fn *tell, void *user,
                      struct qstill_error *err)
{
    CLEANUP(today_fini) struct today t = {0};

    note_binary(s);

    if (s->qmp && read_process(s, &t, err) < 0)
        return err->code;
    for (size_t i = 0; i < s->tree.count; i++) {
        const struct manifest *m = &s->tree.nodes[i];
        struct qstill_error why = {0};

        if (!m->memory_included ||
            ((!s->qmp || compare_process(s, m, &t, false, &why) == 0) &&
             check_host(s, m, &t, false, &why) == 0))
            continue;
        err_wrap(&why, "snapshot %s", m->name);
        tell(user, &why);
    }
    return 0;
}

int preflight_plugged(struct session *s, struct qstill_error *err)
{
    CLEANUP(qmp_ram_fini) struct qmp_ram ram = QMP_RAM_INIT;
    CLEANUP(qmp_memdevs_fini) struct qmp_memdevs devs = QMP_MEMDEVS_INIT;
    CLEANUP(freep) const char **ids = NULL;
    size_t n = 0;

    if (!s->rec.has_launch || s->rec.launcher)
        return 0;
    if (qmp_ram_read(s->qmp, &ram, err) < 0 ||
        qmp_memdevs_read(s->qmp, &ram, &devs, err) < 0)
        return err->code;
    ids = calloc(devs.count + 1, sizeof(*ids));
    if (!ids)
        return err_nomem(err);
    for (size_t i = 0; i < devs.count; i++)
        if (devs.items[i].block)
            ids[n++] = devs.items[i].id;
    if (launch_check_ram(&s->rec.launch, ids, n, err) == 0)
        return 0;
    return err_hint(err,
                    "a snapshot with it can be brought back by this process "
                    "alone: start the VM with this memory, or attach it with "
                    "a --launcher CMD that does");
}

bool preflight_mappable(const struct manifest *m, const char **why)
{
    const char *reason = NULL;
    bool any = false;

    for (size_t i = 0; i < m->block_count; i++) {
        const struct manifest_block *b = &m->blocks[i];

        if (!b->main)
            continue;
        any = true;
        if (b->shared)
            reason = "its RAM is shared, and a mapping would be private";
        else if (b->page_size > RAMSET_PAGE)
            reason = "its RAM is of huge pages";
    }
    if (!any)
        reason = "its RAM has no memory backend";
    if (why)
        *why = reason;
    return !reason;
}
