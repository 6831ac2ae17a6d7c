/* SPDX-License-Identifier: MIT */
#include "monitor.h"

#include <inttypes.h>
#include <string.h>

#include "client.h"
#include "deadline.h"
#include "field.h"

/* --------------------------------------------------------- object properties
 */

/* QEMU tells a missing property in free text only, so look for it. */
static bool lacks_property(struct qstill_qmp *q, const char *path,
                           const char *property)
{
    CLEANUP(json_decrefp) json_t *list = NULL;
    struct qstill_error ignored;
    size_t i;
    json_t *item;

    if (client_call(q, "qom-list", json_pack("{s:s}", "path", path), &list,
                    &ignored) < 0)
        return false; /* nothing learnt */
    json_array_foreach(list, i, item) if (strcmp(field_string(item, "name", ""),
                                                 property) == 0) return false;
    return true;
}

/* Tells "not found" apart in the result of a qom command. */
static int qom_result(struct qstill_qmp *q, int rc, const char *path,
                      const char *property, struct qstill_error *err)
{
    if (rc != QSTILL_E_FAILED)
        return rc;
    if (strcmp(qstill_qmp_error_class(q), "DeviceNotFound") == 0 ||
        lacks_property(q, path, property))
        err->code = QSTILL_E_NOT_FOUND;
    return err->code;
}

static int qom_get(struct qstill_qmp *q, const char *path, const char *property,
                   json_t **out, struct qstill_error *err)
{
    json_t *args = json_pack("{s:s, s:s}", "path", path, "property", property);
    int rc = client_call(q, "qom-get", args, out, err);

    return qom_result(q, rc, path, property, err);
}

static int wrong_type(const char *path, const char *property, const char *type,
                      struct qstill_error *err)
{
    return err_set(err, QSTILL_E_FAILED, "QEMU's %s.%s is no %s", path,
                   property, type);
}

int qmp_qom_get_string(struct qstill_qmp *q, const char *path,
                       const char *property, char **out,
                       struct qstill_error *err)
{
    CLEANUP(json_decrefp) json_t *v = NULL;
    char *s;

    if (qom_get(q, path, property, &v, err) < 0)
        return err->code;
    if (!json_is_string(v))
        return wrong_type(path, property, "string", err);
    s = strdup(json_string_value(v));
    if (!s)
        return err_nomem(err);
    *out = s;
    return 0;
}

int qmp_qom_get_bool(struct qstill_qmp *q, const char *path,
                     const char *property, bool *out, struct qstill_error *err)
{
    CLEANUP(json_decrefp) json_t *v = NULL;

    if (qom_get(q, path, property, &v, err) < 0)
        return err->code;
    if (!json_is_boolean(v))
        return wrong_type(path, property, "bool", err);
    *out = json_is_true(v);
    return 0;
}

int qmp_qom_get_u64(struct qstill_qmp *q, const char *path,
                    const char *property, uint64_t *out,
                    struct qstill_error *err)
{
    CLEANUP(json_decrefp) json_t *v = NULL;

    if (qom_get(q, path, property, &v, err) < 0)
        return err->code;
    if (!json_is_integer(v) || json_integer_value(v) < 0)
        return wrong_type(path, property, "number", err);
    *out = (uint64_t)json_integer_value(v);
    return 0;
}

int qmp_qom_set_string(struct qstill_qmp *q, const char *path,
                       const char *property, const char *value,
                       struct qstill_error *err)
{
    json_t *args = json_pack("{s:s, s:s, s:s}", "path", path, "property",
                             property, "value", value);
    int rc = client_call(q, "qom-set", args, NULL, err);

    return qom_result(q, rc, path, property, err);
}

/* ------------------------------------------------------------- human monitor
 */

int qmp_has_command(struct qstill_qmp *q, const char *command, bool *has,
                    struct qstill_error *err)
{
    CLEANUP(json_decrefp) json_t *list = NULL;
    size_t i;
    json_t *v;

    *has = false;
    if (client_ask(q, "query-commands", &list, err) < 0)
        return err->code;
    json_array_foreach(list, i, v)
    {
        if (strcmp(field_string(v, "name", ""), command) == 0)
            *has = true;
    }
    return 0;
}

int qmp_type_has_property(struct qstill_qmp *q, const char *type,
                          const char *property, bool *has,
                          struct qstill_error *err)
{
    CLEANUP(json_decrefp) json_t *list = NULL;
    size_t i;
    json_t *v;

    *has = false;
    if (client_call(q, "qom-list-properties",
                    json_pack("{s:s}", "typename", type), &list, err) < 0)
        return err->code == QSTILL_E_UNREACHABLE ? err->code : err_clear(err);
    json_array_foreach(list, i, v)
    {
        if (strcmp(field_string(v, "name", ""), property) == 0)
            *has = true;
    }
    return 0;
}

int qmp_send_sysrq(struct qstill_qmp *q, const char *key,
                   struct qstill_error *err)
{
    return client_call(q, "send-key",
                       json_pack("{s:[{s:s,s:s},{s:s,s:s},{s:s,s:s}]}", "keys",
                                 "type", "qcode", "data", "alt", "type",
                                 "qcode", "data", "sysrq", "type", "qcode",
                                 "data", key),
                       NULL, err);
}

int qmp_hmp(struct qstill_qmp *q, const char *line, char **out,
            struct qstill_error *err)
{
    CLEANUP(json_decrefp) json_t *v = NULL;
    char *s;

    if (client_call(q, "human-monitor-command",
                    json_pack("{s:s}", "command-line", line), &v, err) < 0)
        return err->code;
    if (!json_is_string(v))
        return err_set(err, QSTILL_E_FAILED, "QEMU's answer to '%s' is no text",
                       line);
    s = strdup(json_string_value(v));
    if (!s)
        return err_nomem(err);
    *out = s;
    return 0;
}

/* ---------------------------------------------------------- file descriptors
 */

static int call_with_fd(struct qstill_qmp *q, const char *command,
                        json_t *arguments, int fd, json_t **ret,
                        struct qstill_error *err)
{
    if (!arguments)
        return err_set(err, QSTILL_E_USAGE, "cannot make a message of '%s'",
                       command);
    return qstill_qmp_execute_fd(q, command, arguments, fd, 0, ret, err);
}

int qmp_getfd(struct qstill_qmp *q, const char *name, int fd,
              struct qstill_error *err)
{
    return call_with_fd(q, "getfd", json_pack("{s:s}", "fdname", name), fd,
                        NULL, err);
}

int qmp_closefd(struct qstill_qmp *q, const char *name,
                struct qstill_error *err)
{
    int rc = client_call(q, "closefd", json_pack("{s:s}", "fdname", name), NULL,
                         err);

    /* QEMU has no other reason to refuse it than that the name is gone */
    return rc == QSTILL_E_FAILED ? err_clear(err) : rc;
}

int qmp_add_fd(struct qstill_qmp *q, int fd, const char *opaque, int64_t *fdset,
               struct qstill_error *err)
{
    int number;

    return qmp_lend_fd(q, fd, opaque, fdset, &number, err);
}

int qmp_lend_fd(struct qstill_qmp *q, int fd, const char *opaque,
                int64_t *fdset, int *number, struct qstill_error *err)
{
    CLEANUP(json_decrefp) json_t *ret = NULL;
    int64_t id, there;

    if (call_with_fd(q, "add-fd", json_pack("{s:s}", "opaque", opaque), fd,
                     &ret, err) < 0)
        return err->code;
    id = field_i64(ret, "fdset-id", -1);
    if (id < 0)
        return err_set(err, QSTILL_E_FAILED, "QEMU names no fd set");
    there = field_i64(ret, "fd", -1);
    *fdset = id;
    *number = there >= 0 && there <= INT_MAX ? (int)there : -1;
    return 0;
}

int qmp_add_fd_to(struct qstill_qmp *q, int64_t fdset, int fd,
                  struct qstill_error *err)
{
    return call_with_fd(q, "add-fd",
                        json_pack("{s:I}", "fdset-id", (json_int_t)fdset), fd,
                        NULL, err);
}

int qmp_remove_fd(struct qstill_qmp *q, int64_t fdset, struct qstill_error *err)
{
    int rc = client_call(q, "remove-fd",
                         json_pack("{s:I}", "fdset-id", (json_int_t)fdset),
                         NULL, err);

    return rc == QSTILL_E_FAILED ? err_clear(err) : rc; /* as for closefd */
}

static bool is_one_of(const char *text, const char *const *list)
{
    for (; *list; list++)
        if (strcmp(text, *list) == 0)
            return true;
    return false;
}

static int remove_one(struct qstill_qmp *q, const json_t *set, const json_t *fd,
                      struct qstill_error *err)
{
    int rc = client_call(q, "remove-fd",
                         json_pack("{s:I, s:I}", "fdset-id",
                                   (json_int_t)field_i64(set, "fdset-id", -1),
                                   "fd", (json_int_t)field_i64(fd, "fd", -1)),
                         NULL, err);

    return rc == QSTILL_E_FAILED ? err_clear(err) : rc;
}

int qmp_take_fds_back(struct qstill_qmp *q, const char *const *opaques,
                      size_t *taken, struct qstill_error *err)
{
    CLEANUP(json_decrefp) json_t *sets = NULL;
    const json_t *set, *fd;
    size_t i, k;

    *taken = 0;
    if (client_ask(q, "query-fdsets", &sets, err) < 0)
        return err->code;
    json_array_foreach(sets, i, set)
    {
        json_array_foreach(json_object_get(set, "fds"), k, fd)
        {
            if (!is_one_of(field_string(fd, "opaque", ""), opaques))
                continue;
            if (remove_one(q, set, fd, err) < 0)
                return err->code;
            ++*taken;
        }
    }
    return 0;
}

/* -------------------------------------------------------------------- events
 */

static void event_fill(const json_t *v, struct qmp_event *out)
{
    const json_t *data = json_object_get(v, "data");
    const json_t *stamp = json_object_get(v, "timestamp");
    const char *id = field_string(data, "id", field_string(data, "device", ""));

    field_printable(out->name, sizeof(out->name), field_string(v, "event", ""));
    field_printable(out->status, sizeof(out->status),
                    field_string(data, "status", ""));
    field_printable(out->id, sizeof(out->id), id);
    field_printable(out->error, sizeof(out->error),
                    field_string(data, "error", ""));
    out->seconds = field_i64(stamp, "seconds", -1);
    out->microseconds = field_i64(stamp, "microseconds", -1);
}

static bool is_named(const void *user, const json_t *event)
{
    const char *const *names = user;
    const char *name = field_string(event, "event", "");

    for (; *names; names++)
        if (strcmp(name, *names) == 0)
            return true;
    return false;
}

int qmp_wait_event(struct qstill_qmp *q, const char *const *names,
                   uint32_t timeout_ms, struct qmp_event *out, bool *found,
                   struct qstill_error *err)
{
    CLEANUP(json_decrefp) json_t *v = NULL;
    uint64_t deadline = timeout_ms ? deadline_in(timeout_ms) : DEADLINE_PAST;

    if (client_take_event(q, is_named, names, deadline, &v, err) < 0)
        return err->code;
    *found = v != NULL;
    if (v)
        event_fill(v, out);
    return 0;
}

/* Takes all events of that name that have arrived. */
static int take_all(struct qstill_qmp *q, const char *name, bool *yes,
                    struct qstill_error *err)
{
    const char *const names[] = {name, NULL};
    struct qmp_event event;
    bool found = true;

    *yes = false;
    /* no more than one queue's worth, as below */
    for (int i = 0; found && i < QSTILL_QMP_EVENTS_MAX; i++) {
        if (qmp_wait_event(q, names, 0, &event, &found, err) < 0)
            return err->code;
        *yes = *yes || found;
    }
    return 0;
}

int qmp_was_resumed(struct qstill_qmp *q, bool *yes, struct qstill_error *err)
{
    return take_all(q, "RESUME", yes, err);
}

int qmp_was_stopped(struct qstill_qmp *q, bool *yes, struct qstill_error *err)
{
    return take_all(q, "STOP", yes, err);
}

int qmp_was_reset(struct qstill_qmp *q, bool *yes, struct qstill_error *err)
{
    return take_all(q, "RESET", yes, err);
}

int qmp_was_unplugged(struct qstill_qmp *q, bool *yes, struct qstill_error *err)
{
    return take_all(q, "DEVICE_DELETED", yes, err);
}

int qmp_drop_events(struct qstill_qmp *q, struct qstill_error *err)
{
    /* no more than one queue's worth: a peer that never stops is left alone */
    for (int i = 0; i < QSTILL_QMP_EVENTS_MAX; i++) {
        CLEANUP(json_decrefp) json_t *v = NULL;

        if (client_take_event(q, NULL, NULL, DEADLINE_PAST, &v, err) < 0)
            return err->code;
        if (!v)
            break;
    }
    return 0;
}
