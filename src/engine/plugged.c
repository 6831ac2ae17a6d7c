/* SPDX-License-Identifier: MIT */
#include "plugged.h"

#include <stdio.h>
#include <string.h>

#include "launch_args.h"
#include "manifest.h"
#include "qmp/machine.h"
#include "qmp/monitor.h"
#include "qmp/topology.h"
#include "session.h"
#include "userdevs.h"

#define ID_MAX 128
#define MEMORY "memory/" /* plugged memory is launch_check_ram()'s */

struct id {
    char text[ID_MAX];
    size_t label; /* length of the line's part that names the device */
};

/* "BUS/TYPE,ID@ADDRESS #SUM"; false for a device without an id. */
static bool take_id(const char *line, struct id *out)
{
    const char *sum = strstr(line, " #");
    const char *type = strchr(line, '/'), *comma, *at;
    size_t len;

    out->label = sum ? (size_t)(sum - line) : strlen(line);
    if (!type || type >= line + out->label ||
        strncmp(line, MEMORY, strlen(MEMORY)) == 0)
        return false;
    comma = memchr(type, ',', out->label - (size_t)(type - line));
    if (!comma)
        return false;
    len = out->label - (size_t)(comma + 1 - line);
    at = memchr(comma + 1, '@', len);
    if (at)
        len = (size_t)(at - comma - 1);
    snprintf(out->text, sizeof(out->text), "%.*s", (int)len, comma + 1);
    return len > 0 && len < sizeof(out->text);
}

static bool has_label(const struct qmp_names *now, const char *line, size_t len)
{
    for (size_t i = 0; i < now->count; i++)
        if (strncmp(now->items[i], line, len) == 0 &&
            strncmp(now->items[i] + len, " #", 2) == 0)
            return true;
    return false;
}

/* Of the VM since its start: a machine makes devices with ids of its own, and
 * other options than -device do. */
static int was_there(struct session *s, const struct qmp_names *now,
                     const char *line, const struct id *id, bool *there,
                     struct qstill_error *err)
{
    char path[sizeof("/machine/peripheral/") + ID_MAX];
    bool late = false;

    *there = has_label(now, line, id->label);
    if (!*there)
        return 0;
    snprintf(path, sizeof(path), "/machine/peripheral/%s", id->text);
    if (qmp_qom_get_bool(s->qmp, path, "hotplugged", &late, err) < 0)
        return err->code == QSTILL_E_NOT_FOUND ? err_clear(err) : err->code;
    *there = !late;
    return 0;
}

/* Of one that can be written `check` says more (unknown-disk). */
static bool is_writable_disk(const struct session *s, const char *id)
{
    for (size_t i = 0; i < s->live.count; i++)
        if (strcmp(s->live.items[i].qdev_id, id) == 0)
            return session_takes_part(&s->live.items[i]);
    return false;
}

static int check(struct session *s, const struct launch_args *args,
                 const struct qmp_names *now, char *const *devices,
                 size_t count, bool disks, struct qstill_error *err)
{
    for (size_t i = 0; i < count; i++) {
        struct id id;
        bool there;

        if (!take_id(devices[i], &id) ||
            (!disks && is_writable_disk(s, id.text)) ||
            userdevs_made(args, id.text))
            continue;
        if (was_there(s, now, devices[i], &id, &there, err) < 0)
            return err->code;
        if (there)
            continue;
        err_set(err, QSTILL_E_PRECONDITION,
                "device %.*s was plugged in, and is not on the command line of "
                "QEMU",
                (int)id.label, devices[i]);
        return err_hint(err, "start the VM with this device, or attach it with "
                             "a --launcher CMD that does");
    }
    return 0;
}

/* ------------------------------------------------------------ without an id */

static bool is_nameless(const char *line, const char *type)
{
    const char *is = strchr(line, '/');
    size_t len = strlen(type);

    return is && strncmp(is + 1, type, len) == 0 && is[1 + len] != ',' &&
           strcspn(is + 1, "@ ") == len;
}

static size_t count_nameless(char *const *lines, size_t count, const char *type)
{
    size_t n = 0;

    for (size_t i = 0; i < count; i++)
        n += is_nameless(lines[i], type);
    return n;
}

/* Of that type, plugged in since the start. */
static int count_late_nameless(struct session *s, const struct qmp_devices *all,
                               const char *type, size_t *out,
                               struct qstill_error *err)
{
    *out = 0;
    for (size_t i = 0; i < all->count; i++) {
        const struct qmp_device *d = &all->items[i];
        bool late = false;

        if (*d->id || strcmp(d->type, type) != 0)
            continue;
        if (qmp_qom_get_bool(s->qmp, d->path, "hotplugged", &late, err) < 0)
            return err->code;
        *out += late;
    }
    return 0;
}

/* One is as good as another of its type: there must be as many. `wanted` NULL:
 * those that the VM has. */
static int check_nameless(struct session *s, const struct qmp_names *now,
                          char *const *wanted, size_t count,
                          struct qstill_error *err)
{
    CLEANUP(qmp_devices_fini) struct qmp_devices all = QMP_DEVICES_INIT;

    if (qmp_devices_read(s->qmp, &all, err) < 0)
        return err->code;
    for (size_t i = 0; i < all.count; i++) {
        const char *type = all.items[i].type;
        size_t has = count_nameless(now->items, now->count, type), late;
        size_t needs = wanted ? count_nameless(wanted, count, type) : has;

        if (*all.items[i].id || has == 0)
            continue;
        if (count_late_nameless(s, &all, type, &late, err) < 0)
            return err->code;
        if (late == 0 || needs + late <= has)
            continue;
        err_set(err, QSTILL_E_PRECONDITION,
                "%zu of %zu devices %s without an id were plugged in, and are "
                "not on the command line of QEMU",
                late, has, type);
        return err_hint(err, "start the VM with them, or attach it with a "
                             "--launcher CMD that does");
    }
    return 0;
}

/* CPUs are on no bus, and in no line. */
static bool is_cpu(const struct qmp_device *d)
{
    static const char end[] = "-cpu";
    size_t len = strlen(d->type);

    return len > strlen(end) && strcmp(d->type + len - strlen(end), end) == 0;
}

static int count_late(struct session *s, size_t *out, struct qstill_error *err)
{
    CLEANUP(qmp_devices_fini) struct qmp_devices devices = QMP_DEVICES_INIT;

    *out = 0;
    if (qmp_devices_read(s->qmp, &devices, err) < 0)
        return err->code;
    for (size_t i = 0; i < devices.count; i++) {
        bool late = false;

        if (is_cpu(&devices.items[i]) &&
            qmp_qom_get_bool(s->qmp, devices.items[i].path, "hotplugged", &late,
                             err) < 0)
            return err->code;
        *out += late;
    }
    return 0;
}

/* `wanted` 0: those that the VM has. */
static int check_cpus(struct session *s, uint64_t wanted,
                      struct qstill_error *err)
{
    CLEANUP(qmp_cpus_fini) struct qmp_cpus cpus = QMP_CPUS_INIT;
    size_t late;

    if (qmp_cpus_read(s->qmp, &cpus, err) < 0 || count_late(s, &late, err) < 0)
        return err->code;
    if (late == 0 || (wanted && wanted <= cpus.count - late))
        return 0;
    err_set(err, QSTILL_E_PRECONDITION,
            "%zu of %zu CPUs were plugged in, and are not on the command line "
            "of QEMU",
            late, cpus.count);
    return err_hint(err, "start the VM with these CPUs, or attach it with a "
                         "--launcher CMD that does");
}

/* ---------------------------------------- what a start would make, and more */

/* A snapshot of before the list was kept: of devices on a bus. */
struct old {
    const struct manifest *m;
    const struct qmp_names *now;
};

static bool has_bus_id(char *const *lines, size_t count, const char *id)
{
    for (size_t i = 0; i < count; i++) {
        const char *comma = strchr(lines[i], ',');
        size_t len = strlen(id);

        if (comma && strncmp(comma + 1, id, len) == 0 &&
            (comma[1 + len] == '@' || comma[1 + len] == ' '))
            return true;
    }
    return false;
}

static int check_old_id(void *user, const char *id, struct qstill_error *err)
{
    const struct old *o = user;

    if (has_bus_id(o->m->devices, o->m->device_count, id) ||
        !has_bus_id(o->now->items, o->now->count, id))
        return 0; /* it has it, or nobody knows */
    return userdevs_is_more(id, "the snapshot", err);
}

static int check_more(const struct manifest *m, const struct launch_args *args,
                      const struct qmp_names *now, struct qstill_error *err)
{
    struct old old = {m, now};

    if (m->user_devices)
        return userdevs_check_more(args, m->user_devices, m->user_device_count,
                                   "the snapshot", err);
    return now && m->device_count > 0
               ? userdevs_each_id(args, check_old_id, &old, err)
               : 0;
}

/* One that runs tells what came since its start, also of a snapshot that does
 * not. */
static int check_process(struct session *s, const struct manifest *m,
                         const struct launch_args *args, struct qmp_names *now,
                         struct qstill_error *err)
{
    if (qmp_topology_read(s->qmp, now, err) < 0 ||
        check(s, args, now, m->devices, m->device_count, true, err) < 0 ||
        check_nameless(s, now, m->devices, m->device_count, err) < 0)
        return err->code;
    return m->vcpus ? check_cpus(s, m->vcpus, err) : 0;
}

int plugged_check(struct session *s, const struct manifest *m,
                  struct qstill_error *err)
{
    CLEANUP(launch_args_fini) struct launch_args args = {0};
    CLEANUP(qmp_names_fini) struct qmp_names now = QMP_NAMES_INIT;

    if (!s->rec.has_launch || s->rec.launcher)
        return 0;
    if (launch_args_parse(&args, s->rec.launch.argv, err) < 0)
        return err->code;
    if (s->qmp && check_process(s, m, &args, &now, err) < 0)
        return err->code;
    if (userdevs_check_plugged(&args, m->user_devices, m->user_device_count,
                               m->vcpus, err) < 0)
        return err->code;
    return check_more(m, &args, s->qmp ? &now : NULL, err);
}

int plugged_check_now(struct session *s, struct qstill_error *err)
{
    CLEANUP(launch_args_fini) struct launch_args args = {0};
    CLEANUP(qmp_names_fini) struct qmp_names now = QMP_NAMES_INIT;

    if (!s->qmp || !s->rec.has_launch || s->rec.launcher)
        return 0;
    if (launch_args_parse(&args, s->rec.launch.argv, err) < 0 ||
        qmp_topology_read(s->qmp, &now, err) < 0 ||
        check(s, &args, &now, now.items, now.count, false, err) < 0 ||
        check_nameless(s, &now, NULL, 0, err) < 0)
        return err->code;
    return check_cpus(s, 0, err);
}

int plugged_check_taken_out(struct session *s, struct qstill_error *err)
{
    CLEANUP(launch_args_fini) struct launch_args args = {0};
    CLEANUP(qmp_names_fini) struct qmp_names user = QMP_NAMES_INIT;

    if (!s->qmp || !s->rec.has_launch || s->rec.launcher)
        return 0;
    if (launch_args_parse(&args, s->rec.launch.argv, err) < 0 ||
        userdevs_read(s->qmp, &user, err) < 0)
        return err->code;
    return userdevs_check_more(&args, user.items, user.count, "the VM any more",
                               err);
}
