/* SPDX-License-Identifier: MIT */
#include "json.h"

#include <string.h>

#include "base/file.h"
#include "base/publish.h"

/* U+F8FF (private use): a string that starts with it holds bytes, not text. */
#define BYTES_MARK     "\xef\xa3\xbf"
#define BYTES_MARK_LEN 3

int json_file_read(int dirfd, const char *name, int version, json_t **out,
                   struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf b = BUF_INIT;
    CLEANUP(json_decrefp) json_t *root = NULL;
    json_error_t je;
    const json_t *v;

    if (file_slurpat(dirfd, name, JSON_FILE_MAX, &b, err) < 0)
        return err->code;
    root = json_loadb((const char *)b.data, b.len, JSON_REJECT_DUPLICATES, &je);
    err_clear(err); /* the readers stop at a code that is set */
    if (!root || !json_is_object(root)) {
        err_set(err, QSTILL_E_CORRUPT, "%s is damaged: line %d: %s", name,
                root ? 1 : je.line, root ? "no JSON object" : je.text);
        return err_hint(err, "restore the file from a backup of the store");
    }
    v = json_object_get(root, "version");
    if (!json_is_integer(v))
        return err_set(err, QSTILL_E_CORRUPT, "%s is damaged: no version",
                       name);
    if (json_integer_value(v) != version) {
        err_set(err, QSTILL_E_PRECONDITION,
                "%s has version %lld, this qstill knows version %d", name,
                (long long)json_integer_value(v), version);
        return err_hint(err, "use the qstill that wrote it, or a newer one");
    }
    *out = take_ptr(&root);
    return 0;
}

int json_file_write(int dirfd, const char *name, const json_t *root,
                    struct qstill_error *err)
{
    char *text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
    int r;

    if (!text)
        return err_nomem(err);
    r = publish_bytes(dirfd, name, text, strlen(text), err);
    free(text);
    return r;
}

static void bad(struct json_in *in, const char *key, const char *want)
{
    if (in->err->code < 0)
        return;
    err_set(in->err, QSTILL_E_CORRUPT, "%s is damaged: \"%s\" is %s", in->file,
            key, want);
    err_hint(in->err, "restore the file from a backup of the store");
}

static const json_t *member(struct json_in *in, const json_t *obj,
                            const char *key, enum json_need need)
{
    const json_t *v;

    if (in->err->code < 0)
        return NULL;
    v = json_object_get(obj, key);
    if (json_is_null(v))
        v = NULL;
    if (!v && need == JSON_REQUIRED)
        bad(in, key, "missing");
    return v;
}

/* Undoes json_out_string for bytes: each code point below U+0100 is one. */
static const char *bytes_of_text(struct json_in *in, const char *key,
                                 const char *s)
{
    const unsigned char *p = (const unsigned char *)s + BYTES_MARK_LEN;
    char *out = arena_alloc(in->arena, strlen(s) + 1);
    size_t n = 0;

    if (!out) {
        err_nomem(in->err);
        return NULL;
    }
    for (; *p; p++) {
        if (*p < 0x80) {
            out[n++] = (char)*p;
        } else if ((*p == 0xc2 || *p == 0xc3) && p[1]) {
            out[n++] = (char)((*p & 3) << 6 | (p[1] & 0x3f));
            p++;
        } else {
            bad(in, key, "no byte string");
            return NULL;
        }
    }
    return out;
}

const char *json_in_string(struct json_in *in, const json_t *obj,
                           const char *key, enum json_need need)
{
    const json_t *v = member(in, obj, key, need);
    const char *s, *copy;

    if (!v)
        return NULL;
    s = json_string_value(v);
    if (!s) {
        bad(in, key, "no string");
        return NULL;
    }
    if (strncmp(s, BYTES_MARK, BYTES_MARK_LEN) == 0)
        return bytes_of_text(in, key, s);
    copy = arena_strdup(in->arena, s);
    if (!copy)
        err_nomem(in->err);
    return copy;
}

const char *json_in_path(struct json_in *in, const json_t *obj, const char *key,
                         enum json_need need)
{
    const char *s = json_in_string(in, obj, key, need);

    for (const char *p = s; p; p = strchr(p + 1, '/'))
        if (*p != '/' ||
            (strncmp(p, "/..", 3) == 0 && (!p[3] || p[3] == '/'))) {
            bad(in, key, "no absolute path");
            return NULL;
        }
    return s;
}

uint64_t json_in_u64(struct json_in *in, const json_t *obj, const char *key,
                     enum json_need need)
{
    const json_t *v = member(in, obj, key, need);

    if (!v)
        return 0;
    if (!json_is_integer(v) || json_integer_value(v) < 0) {
        bad(in, key, "no size");
        return 0;
    }
    return (uint64_t)json_integer_value(v);
}

double json_in_real(struct json_in *in, const json_t *obj, const char *key)
{
    const json_t *v = member(in, obj, key, JSON_OPTIONAL);

    if (!v)
        return 0;
    if (!json_is_number(v)) {
        bad(in, key, "no number");
        return 0;
    }
    return json_number_value(v);
}

bool json_in_bool(struct json_in *in, const json_t *obj, const char *key)
{
    const json_t *v = member(in, obj, key, JSON_OPTIONAL);

    if (v && !json_is_boolean(v))
        bad(in, key, "no boolean");
    return json_is_true(v);
}

const json_t *json_in_object(struct json_in *in, const json_t *obj,
                             const char *key, enum json_need need)
{
    const json_t *v = member(in, obj, key, need);

    if (v && !json_is_object(v)) {
        bad(in, key, "no object");
        return NULL;
    }
    return v;
}

size_t json_in_array(struct json_in *in, const json_t *obj, const char *key,
                     size_t max, const json_t **array)
{
    const json_t *v = member(in, obj, key, JSON_OPTIONAL);

    *array = NULL;
    if (!v)
        return 0;
    if (!json_is_array(v) || json_array_size(v) > max) {
        bad(in, key, json_is_array(v) ? "too long" : "no array");
        return 0;
    }
    *array = v;
    return json_array_size(v);
}

char **json_in_strings(struct json_in *in, const json_t *obj, const char *key,
                       size_t max, size_t *count)
{
    const json_t *array;
    size_t n = json_in_array(in, obj, key, max, &array);
    char **list = arena_array(in->arena, n + 1, sizeof(char *));

    *count = 0;
    if (!list) {
        err_nomem(in->err);
        return NULL;
    }
    for (size_t i = 0; i < n && in->err->code == 0; i++) {
        CLEANUP(json_decrefp)
        json_t *one = json_pack("{sO}", key, json_array_get(array, i));

        list[i] =
            (char *)(uintptr_t)json_in_string(in, one, key, JSON_REQUIRED);
    }
    *count = in->err->code == 0 ? n : 0;
    return list;
}

json_t *json_out_string(const char *s)
{
    CLEANUP(buf_fini) struct buf b = BUF_INIT;
    json_t *plain;

    if (!s)
        return json_null();
    plain = strncmp(s, BYTES_MARK, BYTES_MARK_LEN) == 0 ? NULL : json_string(s);
    if (plain)
        return plain;
    if (buf_puts(&b, BYTES_MARK) < 0)
        return NULL;
    for (const unsigned char *p = (const unsigned char *)s; *p; p++) {
        uint8_t two[2] = {(uint8_t)(0xc0 | *p >> 6),
                          (uint8_t)(0x80 | (*p & 0x3f))};

        if ((*p < 0x80 ? buf_append(&b, p, 1) : buf_append(&b, two, 2)) < 0)
            return NULL;
    }
    return json_stringn((const char *)b.data, b.len);
}

json_t *json_out_strings(char *const *list, size_t count)
{
    json_t *array = json_array();

    for (size_t i = 0; array && i < count; i++)
        if (json_array_append_new(array, json_out_string(list[i])) < 0) {
            json_decref(array);
            return NULL;
        }
    return array;
}

char *json_text_of_strings(char *const *list)
{
    CLEANUP(json_decrefp) json_t *array = NULL;
    size_t n = 0;

    while (list[n])
        n++;
    array = json_out_strings(list, n);
    return array ? json_dumps(array, JSON_COMPACT) : NULL;
}
