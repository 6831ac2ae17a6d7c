/* SPDX-License-Identifier: MIT */
#include "migrate.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "client.h"
#include "field.h"
#include "monitor.h"
#include "machine.h"

/* How query-migrate begins a reason that is a device without a description of
 * its state: QEMU crashes when told to save it all the same. */
#define NO_DESCRIPTION "non-migratable device:"

/* -------------------------------------------------------------------- names */

void qmp_names_fini(struct qmp_names *n)
{
    for (size_t i = 0; i < n->count; i++)
        free(n->items[i]);
    free(n->items);
    *n = (struct qmp_names)QMP_NAMES_INIT;
}

/* Room for `max` names: then names_add() only copies. */
static int names_init(struct qmp_names *n, size_t max, struct qstill_error *err)
{
    n->items = calloc(max + 1, sizeof(*n->items));
    return n->items ? 0 : err_nomem(err);
}

static int names_add(struct qmp_names *n, const char *name,
                     struct qstill_error *err)
{
    n->items[n->count] = strdup(name);
    if (!n->items[n->count])
        return err_nomem(err);
    n->count++;
    return 0;
}

/* -------------------------------------------------------------- capabilities
 */

int qmp_migrate_knows_capability(struct qstill_qmp *q, const char *name,
                                 bool *knows, struct qstill_error *err)
{
    return qstill_qmp_has_value(q, "migrate-set-capabilities",
                                "capabilities.capability", name, knows, err);
}

static int caps_check(struct qstill_qmp *q, const struct qmp_capability *caps,
                      size_t count, struct qstill_error *err)
{
    for (size_t i = 0; i < count; i++) {
        bool knows;

        if (qmp_migrate_knows_capability(q, caps[i].name, &knows, err) < 0)
            return err->code;
        if (!knows)
            return err_set(err, QSTILL_E_PRECONDITION,
                           "this QEMU has no migration capability '%s'",
                           caps[i].name);
    }
    return 0;
}

int qmp_migrate_set_capabilities(struct qstill_qmp *q,
                                 const struct qmp_capability *caps,
                                 size_t count, struct qstill_error *err)
{
    json_t *list;

    if (caps_check(q, caps, count, err) < 0)
        return err->code;
    list = json_array();
    for (size_t i = 0; i < count; i++)
        if (json_array_append_new(list, json_pack("{s:s, s:b}", "capability",
                                                  caps[i].name, "state",
                                                  caps[i].on)) < 0) {
            json_decref(list);
            return err_nomem(err);
        }
    return client_call(q, "migrate-set-capabilities",
                       json_pack("{s:o}", "capabilities", list), NULL, err);
}

int qmp_migrate_capabilities_on(struct qstill_qmp *q, struct qmp_names *out,
                                struct qstill_error *err)
{
    CLEANUP(qmp_names_fini) struct qmp_names on = QMP_NAMES_INIT;
    CLEANUP(json_decrefp) json_t *list = NULL;
    size_t i;
    json_t *v;

    if (client_ask(q, "query-migrate-capabilities", &list, err) < 0 ||
        names_init(&on, json_array_size(list), err) < 0)
        return err->code;
    json_array_foreach(list, i, v)
    {
        const char *name = field_string(v, "capability", NULL);

        if (name && field_bool(v, "state", false) &&
            names_add(&on, name, err) < 0)
            return err->code;
    }
    *out = on;
    on = (struct qmp_names)QMP_NAMES_INIT;
    return 0;
}

/* --------------------------------------------------------------- parameters */

static int params_check(struct qstill_qmp *q,
                        const struct qmp_parameter *params, size_t count,
                        struct qstill_error *err)
{
    for (size_t i = 0; i < count; i++) {
        bool has;

        if (qstill_qmp_has_argument(q, "migrate-set-parameters", params[i].name,
                                    &has, err) < 0)
            return err->code;
        if (!has)
            return err_set(err, QSTILL_E_PRECONDITION,
                           "this QEMU has no migration parameter '%s'",
                           params[i].name);
    }
    return 0;
}

int qmp_migrate_set_parameters(struct qstill_qmp *q,
                               const struct qmp_parameter *params, size_t count,
                               struct qstill_error *err)
{
    json_t *args;

    if (params_check(q, params, count, err) < 0)
        return err->code;
    args = json_object();
    for (size_t i = 0; i < count; i++)
        if (json_object_set_new(args, params[i].name,
                                json_integer(params[i].value)) < 0) {
            json_decref(args);
            return err_nomem(err);
        }
    return client_call(q, "migrate-set-parameters", args, NULL, err);
}

int qmp_migrate_get_parameter(struct qstill_qmp *q, const char *name,
                              int64_t *out, struct qstill_error *err)
{
    CLEANUP(json_decrefp) json_t *ret = NULL;
    const json_t *v;

    if (client_ask(q, "query-migrate-parameters", &ret, err) < 0)
        return err->code;
    v = json_object_get(ret, name);
    if (!json_is_integer(v))
        return err_set(err, QSTILL_E_NOT_FOUND,
                       "this QEMU has no migration parameter '%s'", name);
    *out = json_integer_value(v);
    return 0;
}

int qmp_migrate_set_text(struct qstill_qmp *q, const char *name,
                         const char *value, struct qstill_error *err)
{
    json_t *args = json_pack("{s:s}", name, value);

    if (!args)
        return err_nomem(err);
    return client_call(q, "migrate-set-parameters", args, NULL, err);
}

int qmp_migrate_get_text(struct qstill_qmp *q, const char *name, char **out,
                         struct qstill_error *err)
{
    CLEANUP(json_decrefp) json_t *ret = NULL;

    if (client_ask(q, "query-migrate-parameters", &ret, err) < 0)
        return err->code;
    *out = strdup(field_string(ret, name, ""));
    return *out ? 0 : err_nomem(err);
}

/* --------------------------------------------------------- out, in, the end */

/* "fd:NAME" for a command's uri. NULL when it cannot be made. */
static json_t *uri_of(const char *fd_name)
{
    return json_pack("{s:s+}", "uri", "fd:", fd_name);
}

static bool names_have(const struct qmp_names *n, const char *name)
{
    for (size_t i = 0; i < n->count; i++)
        if (strcmp(n->items[i], name) == 0)
            return true;
    return false;
}

/* QEMU 7.2.22 started with -S: "invalid runstate transition: 'prelaunch' ->
 * 'paused'", and it aborts, the guest with it. */
static int check_background(struct qstill_qmp *q, struct qstill_error *err)
{
    CLEANUP(qmp_names_fini) struct qmp_names on = QMP_NAMES_INIT;
    struct qmp_status st;

    if (qmp_migrate_capabilities_on(q, &on, err) < 0)
        return err->code;
    if (!names_have(&on, "background-snapshot"))
        return 0;
    if (qmp_status_read(q, &st, err) < 0)
        return err->code;
    if (st.running || strcmp(st.state, "paused") == 0)
        return 0;
    return err_set(err, QSTILL_E_PRECONDITION,
                   "a background snapshot of a VM that is '%s' would make QEMU"
                   " abort",
                   st.state);
}

int qmp_migrate_start(struct qstill_qmp *q, const char *fd_name,
                      struct qstill_error *err)
{
    if (check_background(q, err) < 0)
        return err->code;
    return client_call(q, "migrate", uri_of(fd_name), NULL, err);
}

int qmp_migrate_continue(struct qstill_qmp *q, struct qstill_error *err)
{
    return client_call(q, "migrate-continue",
                       json_pack("{s:s}", "state", "pre-switchover"), NULL,
                       err);
}

int qmp_migrate_cancel(struct qstill_qmp *q, struct qstill_error *err)
{
    return client_ask(q, "migrate_cancel", NULL, err);
}

int qmp_migrate_incoming(struct qstill_qmp *q, const char *fd_name,
                         struct qstill_error *err)
{
    json_t *args;
    bool can_stay;

    if (qstill_qmp_has_argument(q, "migrate-incoming", "exit-on-error",
                                &can_stay, err) < 0)
        return err->code;
    args = uri_of(fd_name);
    if (args && can_stay &&
        json_object_set_new(args, "exit-on-error", json_false()) < 0) {
        json_decref(args);
        return err_nomem(err);
    }
    return client_call(q, "migrate-incoming", args, NULL, err);
}

/* ------------------------------------------------------------------- state */

enum qmp_migration_state qmp_migration_state_of(const char *status)
{
    static const struct {
        const char *status;
        enum qmp_migration_state state;
    } words[] = {
        {"none", QMP_MIGRATION_NONE},
        {"pre-switchover", QMP_MIGRATION_PRE_SWITCHOVER},
        {"completed", QMP_MIGRATION_COMPLETED},
        {"failed", QMP_MIGRATION_FAILED},
        {"cancelled", QMP_MIGRATION_CANCELLED},
    };

    for (size_t i = 0; i < ARRAY_LEN(words); i++)
        if (strcmp(status, words[i].status) == 0)
            return words[i].state;
    return QMP_MIGRATION_ACTIVE;
}

static int blocked_fill(struct qmp_migration *m, const json_t *reasons,
                        struct qstill_error *err)
{
    size_t i;
    json_t *v;

    if (names_init(&m->blocked, json_array_size(reasons), err) < 0)
        return err->code;
    json_array_foreach(reasons, i,
                       v) if (json_is_string(v) &&
                              names_add(&m->blocked, json_string_value(v),
                                        err) < 0) return err->code;
    return 0;
}

static void ram_fill(struct qmp_migration *m, const json_t *ram)
{
    m->ram_transferred = field_u64(ram, "transferred", 0);
    m->ram_remaining = field_u64(ram, "remaining", 0);
    m->ram_total = field_u64(ram, "total", 0);
    m->ram_dirty_rate = field_u64(ram, "dirty-pages-rate", 0);
    m->ram_passes = field_u64(ram, "dirty-sync-count", 0);
    m->ram_normal = field_u64(ram, "normal", 0);
    m->ram_duplicate = field_u64(ram, "duplicate", 0);
}

int qmp_migration_read(struct qstill_qmp *q, struct qmp_migration *out,
                       struct qstill_error *err)
{
    CLEANUP(qmp_migration_fini) struct qmp_migration m = QMP_MIGRATION_INIT;
    CLEANUP(json_decrefp) json_t *ret = NULL;
    const char *status;

    if (client_ask(q, "query-migrate", &ret, err) < 0)
        return err->code;
    status = field_string(ret, "status", "none");
    m.state = qmp_migration_state_of(status);
    field_printable(m.status, sizeof(m.status), status);
    m.vfio = json_object_get(ret, "vfio") != NULL;
    m.total_ms = field_u64(ret, "total-time", 0);
    m.setup_ms = field_u64(ret, "setup-time", 0);
    m.downtime_ms = field_u64(ret, "downtime", 0);
    ram_fill(&m, json_object_get(ret, "ram"));
    if (field_dup(ret, "error-desc", &m.error, err) < 0 ||
        blocked_fill(&m, json_object_get(ret, "blocked-reasons"), err) < 0)
        return err->code;
    *out = m;
    m = (struct qmp_migration)QMP_MIGRATION_INIT;
    return 0;
}

void qmp_migration_fini(struct qmp_migration *m)
{
    free(m->error);
    qmp_names_fini(&m->blocked);
    *m = (struct qmp_migration)QMP_MIGRATION_INIT;
}

/* ------------------------------------------------------- device state alone */

int qmp_save_devices_check(struct qstill_qmp *q, struct qstill_error *err)
{
    CLEANUP(qmp_migration_fini) struct qmp_migration m = QMP_MIGRATION_INIT;
    bool has;

    if (qmp_has_command(q, "xen-save-devices-state", &has, err) < 0)
        return err->code;
    if (!has)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "this QEMU has no xen-save-devices-state");
    if (qmp_migration_read(q, &m, err) < 0)
        return err->code;
    if (qmp_migration_is_on(m.state))
        return err_set(err, QSTILL_E_BUSY, "a migration is under way ('%s')",
                       m.status);
    for (size_t i = 0; i < m.blocked.count; i++)
        if (strncmp(m.blocked.items[i], NO_DESCRIPTION,
                    strlen(NO_DESCRIPTION)) == 0)
            return err_set(err, QSTILL_E_PRECONDITION,
                           "the state of a device cannot be saved: %s",
                           m.blocked.items[i]);
    return 0;
}

int qmp_save_devices(struct qstill_qmp *q, int64_t fdset,
                     struct qstill_error *err)
{
    char path[64];

    if (qmp_save_devices_check(q, err) < 0)
        return err->code;
    snprintf(path, sizeof(path), "/dev/fdset/%" PRId64, fdset);
    return client_call(q, "xen-save-devices-state",
                       json_pack("{s:s, s:b}", "filename", path, "live", false),
                       NULL, err);
}
