/* SPDX-License-Identifier: MIT */
/* Whether a snapshot's memory fits the QEMU that runs, found out before
 * anything is stopped. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "inplace.h"
#include "memstate/procmem.h"
#include "migerror.h"
#include "qmp/machine.h"
#include "qmp/migrate.h"
#include "qmp/monitor.h"
#include "qmp/topology.h"
#include "qmp/unplug.h"
#include "session.h"

#define NOT(err, ...) err_set(err, QSTILL_E_PRECONDITION, __VA_ARGS__)

static int check_state(struct session *s, struct qstill_error *err)
{
    static const char *const good[] = {"running", "paused", "prelaunch"};

    for (size_t i = 0; i < ARRAY_LEN(good); i++)
        if (strcmp(s->status.state, good[i]) == 0)
            return 0;
    return NOT(err, "the VM is in state %s", s->status.state);
}

static int check_rights(struct session *s, struct qstill_error *err)
{
    CLEANUP(procmem_closep) struct procmem *mem = NULL;
    bool has = false;

    if (s->pid == 0)
        return NOT(err, "the QEMU process behind the socket cannot be seen");
    if (procmem_open(&mem, s->pid, err) < 0)
        return err->code;
    if (qmp_has_command(s->qmp, "snapshot-load", &has, err) < 0)
        return err->code;
    if (!has)
        return NOT(err, "this QEMU has no snapshot-load");
    return qmp_save_devices_check(s->qmp, err);
}

/*
 * TCG keeps what it has translated of the guest's code by its address in the
 * RAM. QEMU up to 10.1 threw that away whenever it loaded a CPU's state. Since
 * then it does so only when it stops a running VM for a load: ours is stopped
 * before, and the guest would go on with translations of other code.
 */
static int check_translations(struct session *s, struct qstill_error *err)
{
    CLEANUP(qmp_machine_fini) struct qmp_machine m = QMP_MACHINE_INIT;
    unsigned major, minor;

    if (qmp_machine_read(s->qmp, &m, err) < 0)
        return err->code;
    if (m.kvm || (sscanf(m.version, "%9u.%9u", &major, &minor) == 2 &&
                  (major < 10 || (major == 10 && minor < 2))))
        return 0;
    return NOT(err,
               "QEMU %s with TCG would keep its translations of the code that "
               "is in the memory now",
               m.version);
}

/* The part of a topology line that names the device. */
static size_t label_len(const char *line)
{
    const char *sum = strstr(line, " #");

    return sum ? (size_t)(sum - line) : strlen(line);
}

static const char *find_label(char *const *lines, size_t count,
                              const char *line)
{
    size_t len = label_len(line);

    for (size_t i = 0; i < count; i++)
        if (label_len(lines[i]) == len && strncmp(lines[i], line, len) == 0)
            return lines[i];
    return NULL;
}

/* The devices as they are, with the sums of today and those of before. */
struct devices {
    struct qmp_names now, before;
};

static void devices_fini(struct devices *d)
{
    qmp_names_fini(&d->now);
    qmp_names_fini(&d->before);
}

/* Nothing in a snapshot says which of the two sums it has. */
static bool same_device(const struct devices *d, size_t i, const char *then)
{
    return strcmp(d->now.items[i], then) == 0 ||
           strcmp(d->before.items[i], then) == 0;
}

static int other_devices(const struct manifest *m, const struct devices *d,
                         struct qstill_error *err)
{
    char *const *then = m->devices, *const *now = d->now.items;
    size_t then_count = m->device_count, now_count = d->now.count;

    for (size_t i = 0; i < then_count; i++) {
        const char *is = find_label(now, now_count, then[i]);

        if (!is)
            return NOT(err, "device %.*s of the snapshot is not there",
                       (int)label_len(then[i]), then[i]);
    }
    for (size_t i = 0; i < now_count; i++)
        if (!find_label(then, then_count, now[i]))
            return NOT(err, "device %.*s is not in the snapshot",
                       (int)label_len(now[i]), now[i]);
    for (size_t i = 0; i < now_count && i < then_count; i++)
        if (!same_device(d, i, then[i]))
            return NOT(err,
                       "device %.*s has other properties than in the "
                       "snapshot",
                       (int)label_len(now[i]), now[i]);
    return NOT(err, "the VM has %zu devices, in the snapshot it has %zu",
               now_count, then_count);
}

static int check_devices(struct session *s, const struct manifest *m,
                         struct qstill_error *err)
{
    CLEANUP(devices_fini)
    struct devices d = {QMP_NAMES_INIT, QMP_NAMES_INIT};
    bool same;

    if (m->device_count == 0)
        return NOT(err, "the snapshot does not say which devices it has");
    if (qmp_topology_read_both(s->qmp, &d.now, &d.before, err) < 0)
        return err->code;
    same = d.now.count == m->device_count;
    for (size_t i = 0; same && i < d.now.count; i++)
        same = same_device(&d, i, m->devices[i]);
    return same ? 0 : other_devices(m, &d, err);
}

static int check_cpus(struct session *s, const struct manifest *m,
                      struct qstill_error *err)
{
    CLEANUP(qmp_cpus_fini) struct qmp_cpus cpus = QMP_CPUS_INIT;

    if (qmp_cpus_read(s->qmp, &cpus, err) < 0)
        return err->code;
    if (m->vcpus && cpus.count != m->vcpus)
        return NOT(err, "the VM has %zu CPUs, in the snapshot it has %llu",
                   cpus.count, (unsigned long long)m->vcpus);
    if (m->cpu_type && cpus.type && strcmp(m->cpu_type, cpus.type) != 0)
        return NOT(err, "the VM's CPU is %s, in the snapshot it is %s",
                   cpus.type, m->cpu_type);
    return 0;
}

/* A block has its backend's id, or on old machine types its path. */
static bool has_backend(const struct manifest *m, const char *id)
{
    for (size_t i = 0; i < m->block_count; i++) {
        const char *slash = strrchr(m->blocks[i].id, '/');

        if (strcmp(slash && m->blocks[i].main ? slash + 1 : m->blocks[i].id,
                   id) == 0)
            return true;
    }
    return false;
}

static int check_ram(struct session *s, const struct manifest *m,
                     struct qstill_error *err)
{
    CLEANUP(qmp_ram_fini) struct qmp_ram ram = QMP_RAM_INIT;
    CLEANUP(qmp_memdevs_fini) struct qmp_memdevs devs = QMP_MEMDEVS_INIT;

    if (qmp_ram_read(s->qmp, &ram, err) < 0 ||
        qmp_memdevs_read(s->qmp, &ram, &devs, err) < 0)
        return err->code;
    for (size_t i = 0; i < m->block_count; i++) {
        const struct qmp_ram_block *b = qmp_ram_find(&ram, m->blocks[i].id);

        if (!b)
            return NOT(err, "RAM block %s of the snapshot is not there",
                       m->blocks[i].id);
        if (b->used != m->blocks[i].size)
            return NOT(err,
                       "RAM block %s has %llu bytes, in the snapshot it has "
                       "%llu",
                       b->name, (unsigned long long)b->used,
                       (unsigned long long)m->blocks[i].size);
    }
    for (size_t i = 0; i < devs.count; i++)
        if (devs.items[i].block && !has_backend(m, devs.items[i].id))
            return NOT(err, "RAM block %s is not in the snapshot",
                       devs.items[i].id);
    return 0;
}

/* With these on, the load of our stream fails or ends QEMU, and so does the way
 * back from it. */
static int check_capabilities(struct session *s, struct qstill_error *err)
{
    static const char *const in_the_way[] = {"x-ignore-shared", "mapped-ram",
                                             "multifd"};
    CLEANUP(qmp_names_fini) struct qmp_names on = QMP_NAMES_INIT;

    if (qmp_migrate_capabilities_on(s->qmp, &on, err) < 0)
        return err->code;
    for (size_t i = 0; i < on.count; i++)
        for (size_t k = 0; k < ARRAY_LEN(in_the_way); k++)
            if (strcmp(on.items[i], in_the_way[k]) == 0)
                return NOT(err,
                           "QEMU's migration capability %s is on; switch it "
                           "off with migrate-set-capabilities",
                           in_the_way[k]);
    return 0;
}

int inplace_check_unplug(struct session *s, bool stands,
                         struct qstill_error *err)
{
    CLEANUP(qmp_unplug_fini) struct qmp_unplug u = QMP_UNPLUG_INIT;

    if (qmp_unplug_find(s->qmp, &u, err) < 0)
        return err->code;
    return qmp_unplug_check(s->qmp, &u, stands, err);
}

int inplace_fits(struct session *s, const struct manifest *m,
                 struct qstill_error *err)
{
    if (check_state(s, err) < 0 || check_rights(s, err) < 0 ||
        check_capabilities(s, err) < 0 || migerror_check(s, err) < 0 ||
        check_devices(s, m, err) < 0 || check_cpus(s, m, err) < 0 ||
        check_ram(s, m, err) < 0)
        return err->code;
    return check_translations(s, err);
}
