/* SPDX-License-Identifier: MIT */
#include "schema.h"

#include <string.h>

#include "client.h"
#include "field.h"

/* Types that one question may look at. QEMU 10's whole schema has 1,100
 * entries, and the longest honest question passes some 150 of them. */
#define STEPS_MAX 20000
/* Types inside each other on the way of one question; an honest one passes
 * three for each member of its path. */
#define DEPTH_MAX 100

struct schema {
    json_t *list;    /* owns the entries */
    json_t *by_name; /* name -> entry */
};

int schema_parse(json_t *list, struct schema **out, struct qstill_error *err)
{
    struct schema *s = calloc(1, sizeof(*s));
    size_t i;
    json_t *entry;

    if (!s) {
        json_decref(list);
        return err_nomem(err);
    }
    s->list = list;
    s->by_name = json_object();
    if (!s->by_name) {
        schema_free(s);
        return err_nomem(err);
    }
    json_array_foreach(list, i, entry)
    {
        const char *name = field_string(entry, "name", NULL);

        if (!name || json_object_set(s->by_name, name, entry) < 0)
            break;
    }
    if (!json_is_array(list) || i < json_array_size(list)) {
        schema_free(s);
        return err_set(err, QSTILL_E_FAILED,
                       "QEMU's answer to query-qmp-schema is no schema");
    }
    *out = s;
    return 0;
}

void schema_free(struct schema *s)
{
    if (!s)
        return;
    json_decref(s->by_name);
    json_decref(s->list);
    free(s);
}

/* ----------------------------------------------------------------- questions
 */

static const json_t *entry_of(const struct schema *s, const char *name)
{
    return name ? json_object_get(s->by_name, name) : NULL;
}

static bool is_a(const json_t *entry, const char *meta)
{
    return strcmp(field_string(entry, "meta-type", ""), meta) == 0;
}

bool schema_has_command(const struct schema *s, const char *name)
{
    return is_a(entry_of(s, name), "command");
}

bool schema_has_event(const struct schema *s, const char *name)
{
    return is_a(entry_of(s, name), "event");
}

/*
 * A question on its way down from a type: `path` is what is left of the members
 * to pass ("" at the end), `value` the enumeration's value wanted behind it or
 * NULL when the member itself is enough.
 */
struct question {
    const struct schema *schema;
    const char *value;
    int steps;
    int depth;
};

static bool ask(struct question *q, const char *type, const char *path);

/* The values are objects in "members" and strings in "values": the latter is
 * deprecated, and not there in a VM with -compat deprecated-output=hide. */
static bool enum_has(const json_t *entry, const char *value)
{
    const json_t *list = json_object_get(entry, "members");
    size_t i;
    json_t *v;

    if (!list)
        list = json_object_get(entry, "values");
    json_array_foreach(list, i, v)
    {
        const char *name = json_is_string(v) ? json_string_value(v)
                                             : field_string(v, "name", NULL);

        if (name && strcmp(name, value) == 0)
            return true;
    }
    return false;
}

/* Goes down every type that `list` (members, variants) names. */
static bool ask_each(struct question *q, const json_t *list, const char *path)
{
    size_t i;
    json_t *item;

    json_array_foreach(
        list, i,
        item) if (ask(q, field_string(item, "type", NULL), path)) return true;
    return false;
}

static bool ask_object(struct question *q, const json_t *entry,
                       const char *path)
{
    size_t len = strcspn(path, ".");
    const char *rest = path[len] ? path + len + 1 : path + len;
    const json_t *members = json_object_get(entry, "members");
    size_t i;
    json_t *m;

    if (path[0] == '\0')
        return false; /* an object is no enumeration */
    json_array_foreach(members, i, m)
    {
        const char *name = field_string(m, "name", "");

        if (strlen(name) != len || strncmp(name, path, len) != 0)
            continue;
        if (rest[0] == '\0' && !q->value)
            return true;
        if (ask(q, field_string(m, "type", NULL), rest))
            return true;
    }
    return ask_each(q, json_object_get(entry, "variants"), path);
}

static bool ask_type(struct question *q, const json_t *entry, const char *path)
{
    if (is_a(entry, "array"))
        return ask(q, field_string(entry, "element-type", NULL), path);
    if (is_a(entry, "alternate"))
        return ask_each(q, json_object_get(entry, "members"), path);
    if (is_a(entry, "enum"))
        return path[0] == '\0' && q->value && enum_has(entry, q->value);
    return ask_object(q, entry, path);
}

static bool ask(struct question *q, const char *type, const char *path)
{
    const json_t *entry = entry_of(q->schema, type);
    bool yes;

    if (!entry || --q->steps < 0 || q->depth == DEPTH_MAX)
        return false;
    q->depth++;
    yes = ask_type(q, entry, path);
    q->depth--;
    return yes;
}

static bool ask_command(const struct schema *s, const char *command,
                        const char *which, const char *path, const char *value)
{
    struct question q = {.schema = s, .value = value, .steps = STEPS_MAX};
    const json_t *entry = entry_of(s, command);

    return is_a(entry, "command") && path[0] != '\0' &&
           ask(&q, field_string(entry, which, NULL), path);
}

bool schema_has_argument(const struct schema *s, const char *command,
                         const char *path)
{
    return ask_command(s, command, "arg-type", path, NULL);
}

bool schema_has_value(const struct schema *s, const char *command,
                      const char *path, const char *value)
{
    return ask_command(s, command, "arg-type", path, value);
}

bool schema_has_member(const struct schema *s, const char *command,
                       const char *path)
{
    return ask_command(s, command, "ret-type", path, NULL);
}

/* --------------------------------------------------------------- public face
 */

/* The handle's schema, asked for when it is wanted first. */
static int get_schema(struct qstill_qmp *q, const struct schema **out,
                      struct qstill_error *err)
{
    struct schema *s = client_schema(q);
    json_t *list = NULL;

    if (!s) {
        if (client_ask(q, "query-qmp-schema", &list, err) < 0 ||
            schema_parse(list, &s, err) < 0)
            return err_wrap(err, "asking what this QEMU understands");
        client_set_schema(q, s);
    }
    *out = s;
    return 0;
}

QSTILL_PUBLIC
int qstill_qmp_has_command(struct qstill_qmp *q, const char *command, bool *has,
                           struct qstill_error *caller)
{
    struct qstill_error scratch, *err = err_door(caller, &scratch);
    const struct schema *s;

    if (get_schema(q, &s, err) < 0)
        return err->code;
    *has = schema_has_command(s, command);
    return 0;
}

QSTILL_PUBLIC
int qstill_qmp_has_event(struct qstill_qmp *q, const char *event, bool *has,
                         struct qstill_error *caller)
{
    struct qstill_error scratch, *err = err_door(caller, &scratch);
    const struct schema *s;

    if (get_schema(q, &s, err) < 0)
        return err->code;
    *has = schema_has_event(s, event);
    return 0;
}

QSTILL_PUBLIC
int qstill_qmp_has_argument(struct qstill_qmp *q, const char *command,
                            const char *path, bool *has,
                            struct qstill_error *caller)
{
    struct qstill_error scratch, *err = err_door(caller, &scratch);
    const struct schema *s;

    if (get_schema(q, &s, err) < 0)
        return err->code;
    *has = schema_has_argument(s, command, path);
    return 0;
}

QSTILL_PUBLIC
int qstill_qmp_has_value(struct qstill_qmp *q, const char *command,
                         const char *path, const char *value, bool *has,
                         struct qstill_error *caller)
{
    struct qstill_error scratch, *err = err_door(caller, &scratch);
    const struct schema *s;

    if (get_schema(q, &s, err) < 0)
        return err->code;
    *has = schema_has_value(s, command, path, value);
    return 0;
}

QSTILL_PUBLIC
int qstill_qmp_has_member(struct qstill_qmp *q, const char *command,
                          const char *path, bool *has,
                          struct qstill_error *caller)
{
    struct qstill_error scratch, *err = err_door(caller, &scratch);
    const struct schema *s;

    if (get_schema(q, &s, err) < 0)
        return err->code;
    *has = schema_has_member(s, command, path);
    return 0;
}
