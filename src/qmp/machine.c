/* SPDX-License-Identifier: MIT */
#include "machine.h"

#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "client.h"
#include "field.h"
#include "monitor.h"

#define MACHINE_SUFFIX "-machine"

/* ----------------------------------------------------------------- run state
 */

int qmp_status_read(struct qstill_qmp *q, struct qmp_status *out,
                    struct qstill_error *err)
{
    CLEANUP(json_decrefp) json_t *ret = NULL;

    if (client_ask(q, "query-status", &ret, err) < 0)
        return err->code;
    out->running = field_bool(ret, "running", false);
    field_printable(out->state, sizeof(out->state),
                    field_string(ret, "status", ""));
    return 0;
}

int qmp_stop(struct qstill_qmp *q, uint32_t timeout_ms,
             struct qstill_error *err)
{
    return qstill_qmp_execute(q, "stop", NULL, timeout_ms, NULL, err);
}

int qmp_cont(struct qstill_qmp *q, struct qstill_error *err)
{
    return client_ask(q, "cont", NULL, err);
}

int qmp_system_reset(struct qstill_qmp *q, struct qstill_error *err)
{
    return client_ask(q, "system_reset", NULL, err);
}

int qmp_quit(struct qstill_qmp *q, struct qstill_error *err)
{
    int rc = client_ask(q, "quit", NULL, err);
    struct qstill_error pumped;

    /* no answer and a closed connection: it is what was asked for */
    if (rc == QSTILL_E_UNREACHABLE &&
        qstill_qmp_pump(q, &pumped) == QSTILL_E_UNREACHABLE)
        return err_clear(err);
    return rc;
}

/* ------------------------------------------------------------------- machine
 */

static int read_version(struct qstill_qmp *q, struct qmp_machine *m,
                        struct qstill_error *err)
{
    CLEANUP(json_decrefp) json_t *ret = NULL;
    const json_t *numbers;
    char version[64];

    if (client_ask(q, "query-version", &ret, err) < 0)
        return err->code;
    numbers = json_object_get(ret, "qemu");
    snprintf(version, sizeof(version), "%u.%u.%u",
             (unsigned)field_u64(numbers, "major", 0),
             (unsigned)field_u64(numbers, "minor", 0),
             (unsigned)field_u64(numbers, "micro", 0));
    m->version = strdup(version);
    if (!m->version)
        return err_nomem(err);
    return field_dup(ret, "package", &m->package, err);
}

static int read_member(struct qstill_qmp *q, const char *command,
                       const char *member, char **out, struct qstill_error *err)
{
    CLEANUP(json_decrefp) json_t *ret = NULL;

    if (client_ask(q, command, &ret, err) < 0)
        return err->code;
    return field_dup(ret, member, out, err);
}

static int read_type(struct qstill_qmp *q, struct qmp_machine *m,
                     struct qstill_error *err)
{
    size_t len;

    if (qmp_qom_get_string(q, "/machine", "type", &m->type, err) < 0)
        return err_wrap(err, "asking for the machine's type");
    len = strlen(m->type);
    if (len > strlen(MACHINE_SUFFIX) &&
        strcmp(m->type + len - strlen(MACHINE_SUFFIX), MACHINE_SUFFIX) == 0)
        m->type[len - strlen(MACHINE_SUFFIX)] = '\0';
    return 0;
}

/* QEMU 11 calls query-kvm deprecated: a VM may be started so that QEMU refuses
 * such commands, or so that it aborts (-compat deprecated-input). */
static int read_kvm(struct qstill_qmp *q, struct qmp_machine *m,
                    struct qstill_error *err)
{
    CLEANUP(json_decrefp) json_t *ret = NULL;
    int rc = client_ask(q, "query-accelerators", &ret, err);

    if (rc == 0) {
        m->kvm = strcmp(field_string(ret, "enabled", ""), "kvm") == 0;
        return 0;
    }
    if (rc != QSTILL_E_PRECONDITION) /* it has the command */
        return rc;
    err_clear(err);
    if (client_ask(q, "query-kvm", &ret, err) < 0)
        return err->code;
    m->kvm = field_bool(ret, "enabled", false);
    return 0;
}

int qmp_machine_read(struct qstill_qmp *q, struct qmp_machine *out,
                     struct qstill_error *err)
{
    CLEANUP(qmp_machine_fini) struct qmp_machine m = QMP_MACHINE_INIT;

    if (read_version(q, &m, err) < 0 ||
        read_member(q, "query-name", "name", &m.name, err) < 0 ||
        read_member(q, "query-uuid", "UUID", &m.uuid, err) < 0 ||
        read_type(q, &m, err) < 0 || read_kvm(q, &m, err) < 0)
        return err->code;
    *out = m;
    m = (struct qmp_machine)QMP_MACHINE_INIT;
    return 0;
}

void qmp_machine_fini(struct qmp_machine *m)
{
    free(m->version);
    free(m->package);
    free(m->name);
    free(m->uuid);
    free(m->type);
    *m = (struct qmp_machine)QMP_MACHINE_INIT;
}

/* ---------------------------------------------------------------------- CPUs
 */

/* A property that not every CPU model has. */
static int read_tristate(struct qstill_qmp *q, const char *path,
                         const char *property, enum qmp_tristate *out,
                         struct qstill_error *err)
{
    bool yes;
    int rc = qmp_qom_get_bool(q, path, property, &yes, err);

    if (rc == QSTILL_E_NOT_FOUND)
        *out = QMP_UNKNOWN;
    else if (rc == 0)
        *out = yes ? QMP_YES : QMP_NO;
    return rc == QSTILL_E_NOT_FOUND ? err_clear(err) : rc;
}

static int read_cpu(struct qstill_qmp *q, const char *path, struct qmp_cpus *c,
                    struct qstill_error *err)
{
    int rc;

    if (qmp_qom_get_string(q, path, "type", &c->type, err) < 0)
        return err->code;
    rc = qmp_qom_get_string(q, path, "model-id", &c->model_id, err);
    if (rc == QSTILL_E_NOT_FOUND) {
        c->model_id = strdup("");
        rc = c->model_id ? err_clear(err) : err_nomem(err);
    }
    if (rc < 0)
        return rc;
    if (read_tristate(q, path, "invtsc", &c->invtsc, err) < 0 ||
        read_tristate(q, path, "migratable", &c->migratable, err) < 0)
        return err->code;
    rc = qmp_qom_get_u64(q, path, "tsc-frequency", &c->tsc_frequency, err);
    return rc == QSTILL_E_NOT_FOUND ? err_clear(err) : rc;
}

int qmp_cpus_read(struct qstill_qmp *q, struct qmp_cpus *out,
                  struct qstill_error *err)
{
    CLEANUP(qmp_cpus_fini) struct qmp_cpus c = QMP_CPUS_INIT;
    CLEANUP(json_decrefp) json_t *ret = NULL;
    const char *path;

    if (client_ask(q, "query-cpus-fast", &ret, err) < 0)
        return err->code;
    c.count = json_array_size(ret);
    path = field_string(json_array_get(ret, 0), "qom-path", NULL);
    if (!path)
        return err_set(err, QSTILL_E_FAILED, "QEMU names no CPU");
    if (read_cpu(q, path, &c, err) < 0)
        return err_wrap(err, "asking for the CPU's properties");
    *out = c;
    c = (struct qmp_cpus)QMP_CPUS_INIT;
    return 0;
}

void qmp_cpus_fini(struct qmp_cpus *c)
{
    free(c->type);
    free(c->model_id);
    *c = (struct qmp_cpus)QMP_CPUS_INIT;
}

/* ------------------------------------------------------------------- devices
 */

#define CHILD "child<"

static int device_fill(struct qmp_device *d, const char *container,
                       const char *name, const char *type, bool named,
                       struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf path = BUF_INIT;

    if (buf_printf(&path, "%s/%s", container, name) < 0)
        return err_nomem(err);
    d->path = buf_take_string(&path);
    d->id = strdup(named ? name : "");
    d->type = strndup(type, strcspn(type, ">"));
    return d->path && d->id && d->type ? 0 : err_nomem(err);
}

static int read_container(struct qstill_qmp *q, const char *container,
                          bool named, struct qmp_devices *d,
                          struct qstill_error *err)
{
    CLEANUP(json_decrefp) json_t *list = NULL;
    struct qmp_device *items;
    size_t i;
    json_t *v;

    if (client_call(q, "qom-list", json_pack("{s:s}", "path", container), &list,
                    err) < 0)
        return err->code;
    items = reallocarray(d->items, d->count + json_array_size(list) + 1,
                         sizeof(*items));
    if (!items)
        return err_nomem(err);
    d->items = items;
    json_array_foreach(list, i, v)
    {
        const char *type = field_string(v, "type", "");

        if (strncmp(type, CHILD, strlen(CHILD)) != 0)
            continue; /* a property, not a device */
        d->items[d->count] = (struct qmp_device){0};
        if (device_fill(&d->items[d->count++], container,
                        field_string(v, "name", ""), type + strlen(CHILD),
                        named, err) < 0)
            return err->code;
    }
    return 0;
}

int qmp_devices_read(struct qstill_qmp *q, struct qmp_devices *out,
                     struct qstill_error *err)
{
    CLEANUP(qmp_devices_fini) struct qmp_devices d = QMP_DEVICES_INIT;

    if (read_container(q, "/machine/peripheral", true, &d, err) < 0 ||
        read_container(q, "/machine/peripheral-anon", false, &d, err) < 0)
        return err_wrap(err, "reading the VM's devices");
    *out = d;
    d = (struct qmp_devices)QMP_DEVICES_INIT;
    return 0;
}

void qmp_devices_fini(struct qmp_devices *d)
{
    for (size_t i = 0; i < d->count; i++) {
        free(d->items[i].path);
        free(d->items[i].id);
        free(d->items[i].type);
    }
    free(d->items);
    *d = (struct qmp_devices)QMP_DEVICES_INIT;
}
