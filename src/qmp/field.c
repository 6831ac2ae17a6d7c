/* SPDX-License-Identifier: MIT */
#include "field.h"

#include <string.h>

const char *field_string(const json_t *object, const char *key,
                         const char *or_else)
{
    const char *s = json_string_value(json_object_get(object, key));

    return s ? s : or_else;
}

bool field_bool(const json_t *object, const char *key, bool or_else)
{
    const json_t *v = json_object_get(object, key);

    return json_is_boolean(v) ? json_is_true(v) : or_else;
}

int64_t field_i64(const json_t *object, const char *key, int64_t or_else)
{
    const json_t *v = json_object_get(object, key);

    return json_is_integer(v) ? json_integer_value(v) : or_else;
}

uint64_t field_u64(const json_t *object, const char *key, uint64_t or_else)
{
    int64_t v = field_i64(object, key, -1);

    return v >= 0 ? (uint64_t)v : or_else;
}

int field_dup(const json_t *object, const char *key, char **out,
              struct qstill_error *err)
{
    char *s = strdup(field_string(object, key, ""));

    if (!s)
        return err_nomem(err);
    *out = s;
    return 0;
}

static int missing(const char *key, struct qstill_error *err)
{
    return err_set(err, QSTILL_E_FAILED, "QEMU's answer has no usable '%s'",
                   key);
}

int field_need(const json_t *object, const char *key, char **out,
               struct qstill_error *err)
{
    if (!field_string(object, key, NULL))
        return missing(key, err);
    return field_dup(object, key, out, err);
}

int field_need_u64(const json_t *object, const char *key, uint64_t *out,
                   struct qstill_error *err)
{
    int64_t v = field_i64(object, key, -1);

    if (v < 0)
        return missing(key, err);
    *out = (uint64_t)v;
    return 0;
}

void field_printable(char *out, size_t size, const char *in)
{
    size_t n = 0;

    for (; in[n] && n + 1 < size; n++)
        out[n] = (unsigned char)in[n] < 0x20 || in[n] == 0x7f ? ' ' : in[n];
    out[n] = '\0';
}
