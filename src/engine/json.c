/* SPDX-License-Identifier: MIT */
#include "json.h"

#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/publish.h"
#include "base/sum.h"
#include "spare.h"

/* U+F8FF (private use): a string that starts with it holds bytes, not text. */
#define BYTES_MARK     "\xef\xa3\xbf"
#define BYTES_MARK_LEN 3

#define SUM_SIZE       (sizeof("xxh3:") + 16)
#define SUM_OF_CHANGED "changed" /* is no sum, and thus never matches */

void json_file_fini(struct json_file *f)
{
    buf_fini(&f->text);
    arena_fini(&f->arena);
    f->root = NULL;
}

static int damaged(const char *name, struct qstill_error *err)
{
    if (err->code != QSTILL_E_CORRUPT)
        return err->code;
    err_wrap(err, "%s is damaged", name);
    return err_hint(err, "restore the file from a backup of the store");
}

/* Who reads values does not change them, but for this. */
static const struct json_value *asked_member(const struct json_value *obj,
                                             const char *key)
{
    const struct json_value *v = json_member(obj, key);

    if (v)
        ((struct json_value *)(uintptr_t)v)->asked = true;
    return v;
}

/* The bytes, and one more behind them for the parser. */
static int read_text(int dirfd, const char *name, struct json_file *f,
                     struct qstill_error *err)
{
    if (file_slurpat(dirfd, name, JSON_FILE_MAX, &f->text, err) < 0)
        return err->code;
    return buf_reserve(&f->text, 1) < 0 ? err_nomem(err) : 0;
}

/* The text is no text any more. */
static int parse_text(const char *name, struct json_file *f,
                      struct qstill_error *err)
{
    err_clear(err); /* the readers stop at a code that is set */
    if (json_parse((char *)f->text.data, f->text.len, &f->arena, &f->root,
                   err) < 0)
        return damaged(name, err);
    if (f->root->kind == JSON_OBJECT_VALUE)
        return 0;
    err_set(err, QSTILL_E_CORRUPT, "no JSON object");
    return damaged(name, err);
}

int json_file_read(int dirfd, const char *name, int version,
                   struct json_file *f, struct qstill_error *err)
{
    const struct json_value *v;

    if (read_text(dirfd, name, f, err) < 0 || parse_text(name, f, err) < 0)
        return err->code;
    v = asked_member(f->root, "version");
    if (!v || v->kind != JSON_INTEGER_VALUE)
        return err_set(err, QSTILL_E_CORRUPT, "%s is damaged: no version",
                       name);
    if (v->integer != version) {
        err_set(err, QSTILL_E_PRECONDITION,
                "%s has version %lld, this qstill knows version %d", name,
                (long long)v->integer, version);
        return err_hint(err, "use the qstill that wrote it, or a newer one");
    }
    return 0;
}

/* Who wrote it may have died before its name was durable. */
static bool is_there(int dirfd, const char *name, const char *text)
{
    CLEANUP(buf_fini) struct buf old = BUF_INIT;
    struct qstill_error ignored = {0};
    size_t len = strlen(text);

    return file_slurpat(dirfd, name, len, &old, &ignored) == 0 &&
           old.len == len && memcmp(old.data, text, len) == 0 &&
           publish_sync_dir(dirfd, &ignored) == 0;
}

static int write_text(int dirfd, const char *name, const char *text,
                      int sparefd, struct qstill_error *err)
{
    int r;

    if (is_there(dirfd, name, text))
        return 0;
    r = publish_bytes(dirfd, name, text, strlen(text), err);
    if (r == QSTILL_E_NO_SPACE && sparefd >= 0)
        r = spare_publish(sparefd, dirfd, name, text, strlen(text), err);
    return r;
}

int json_file_write(int dirfd, const char *name, const json_t *root,
                    int sparefd, struct qstill_error *err)
{
    CLEANUP(freep) char *text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;

    return text ? write_text(dirfd, name, text, sparefd, err) : err_nomem(err);
}

/* ---------------------------------------------------------------------- sum
 */

static void sum_of(const void *text, size_t len, char out[SUM_SIZE])
{
    snprintf(out, SUM_SIZE, "xxh3:%016llx",
             (unsigned long long)sum_bytes(text, len, 0));
}

/* Of what stands in front of the last "sum". In a string, what looks like it
 * has a backslash in front of each quote, and if the member is not the last
 * one, the sum does not match anyway. */
static void sum_of_rest(const struct buf *text, char out[SUM_SIZE])
{
    static const char key[] = "\"sum\"";
    size_t at = text->len;

    while (at > 0 && (text->len - at < sizeof(key) - 1 ||
                      memcmp(text->data + at, key, sizeof(key) - 1) != 0))
        at--;
    sum_of(text->data, at, out);
}

int json_file_check_sum(int dirfd, const char *name, struct qstill_error *err)
{
    CLEANUP(json_file_fini) struct json_file f = JSON_FILE_INIT;
    const struct json_value *v;
    char sum[SUM_SIZE];

    if (read_text(dirfd, name, &f, err) < 0)
        return err->code;
    sum_of_rest(&f.text, sum);
    if (parse_text(name, &f, err) < 0)
        return err->code;
    v = json_member(f.root, "sum");
    if (!v || v->kind == JSON_NULL_VALUE ||
        (v->kind == JSON_STRING_VALUE && !v->next &&
         strcmp(v->string, sum) == 0))
        return 0;
    err_set(err, QSTILL_E_CORRUPT, "%s was changed after it was written", name);
    return err_hint(err, "bring it back from a backup; if the change was "
                         "meant, put null in the place of its \"sum\"");
}

int json_file_write_summed(int dirfd, const char *name, const json_t *root,
                           int sparefd, struct qstill_error *err)
{
    CLEANUP(freep) char *text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
    CLEANUP(buf_fini) struct buf b = BUF_INIT;
    struct qstill_error old = {0};
    char sum[SUM_SIZE] = SUM_OF_CHANGED;

    if (json_file_check_sum(dirfd, name, &old) < 0 &&
        old.code != QSTILL_E_CORRUPT && old.code != QSTILL_E_NOT_FOUND) {
        *err = old;
        return err->code;
    }
    /* "\n}" comes last */
    if (!text || buf_append(&b, text, strlen(text) - 2) < 0 ||
        buf_puts(&b, ",\n  ") < 0)
        return err_nomem(err);
    if (old.code != QSTILL_E_CORRUPT)
        sum_of(b.data, b.len, sum);
    if (buf_printf(&b, "\"sum\": \"%s\"\n}", sum) < 0)
        return err_nomem(err);
    return write_text(dirfd, name, (const char *)b.data, sparefd, err);
}

/* ------------------------------------------------------------------ readers
 */

void json_in_bad(struct json_in *in, const char *key, const char *what)
{
    if (in->err->code < 0)
        return;
    err_set(in->err, QSTILL_E_CORRUPT, "%s is damaged: \"%.64s\" is %s",
            in->file, key, what);
    err_hint(in->err, "restore the file from a backup of the store");
}

static const struct json_value *member(struct json_in *in,
                                       const struct json_value *obj,
                                       const char *key, enum json_need need)
{
    const struct json_value *v;
    bool null;

    if (in->err->code < 0)
        return NULL;
    v = asked_member(obj, key);
    null = v && v->kind == JSON_NULL_VALUE;
    if (v ? null && need == JSON_REQUIRED : need != JSON_OPTIONAL)
        json_in_bad(in, key, "missing");
    return null ? NULL : v;
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
            json_in_bad(in, key, "no byte string");
            return NULL;
        }
    }
    return out;
}

static const char *string_of(struct json_in *in, const char *key,
                             const struct json_value *v)
{
    const char *s = v->kind == JSON_STRING_VALUE ? v->string : NULL, *copy;

    if (!s) {
        json_in_bad(in, key, "no string");
        return NULL;
    }
    if (strncmp(s, BYTES_MARK, BYTES_MARK_LEN) == 0)
        return bytes_of_text(in, key, s);
    copy = arena_strdup(in->arena, s);
    if (!copy)
        err_nomem(in->err);
    return copy;
}

const char *json_in_string(struct json_in *in, const struct json_value *obj,
                           const char *key, enum json_need need)
{
    const struct json_value *v = member(in, obj, key, need);

    return v ? string_of(in, key, v) : NULL;
}

const char *json_in_path(struct json_in *in, const struct json_value *obj,
                         const char *key, enum json_need need)
{
    const char *s = json_in_string(in, obj, key, need);

    for (const char *p = s; p; p = strchr(p + 1, '/'))
        if (*p != '/' ||
            (strncmp(p, "/..", 3) == 0 && (!p[3] || p[3] == '/'))) {
            json_in_bad(in, key, "no absolute path");
            return NULL;
        }
    return s;
}

uint64_t json_in_u64(struct json_in *in, const struct json_value *obj,
                     const char *key, enum json_need need)
{
    const struct json_value *v = member(in, obj, key, need);

    if (!v)
        return 0;
    if (v->kind != JSON_INTEGER_VALUE || v->integer < 0) {
        json_in_bad(in, key, "no size");
        return 0;
    }
    return (uint64_t)v->integer;
}

double json_in_real(struct json_in *in, const struct json_value *obj,
                    const char *key, enum json_need need)
{
    const struct json_value *v = member(in, obj, key, need);

    if (!v)
        return 0;
    if (v->kind == JSON_INTEGER_VALUE)
        return (double)v->integer;
    if (v->kind == JSON_REAL_VALUE)
        return v->real;
    json_in_bad(in, key, "no number");
    return 0;
}

bool json_in_bool(struct json_in *in, const struct json_value *obj,
                  const char *key, enum json_need need)
{
    const struct json_value *v = member(in, obj, key, need);

    if (v && v->kind != JSON_BOOLEAN)
        json_in_bad(in, key, "no boolean");
    return v && v->kind == JSON_BOOLEAN && v->boolean;
}

const struct json_value *json_in_object(struct json_in *in,
                                        const struct json_value *obj,
                                        const char *key, enum json_need need)
{
    const struct json_value *v = member(in, obj, key, need);

    if (v && v->kind != JSON_OBJECT_VALUE) {
        json_in_bad(in, key, "no object");
        return NULL;
    }
    return v;
}

size_t json_in_array(struct json_in *in, const struct json_value *obj,
                     const char *key, size_t max, enum json_need need,
                     const struct json_value **first)
{
    const struct json_value *v = member(in, obj, key, need);

    *first = NULL;
    if (!v)
        return 0;
    if (v->kind != JSON_ARRAY_VALUE || v->items.count > max) {
        json_in_bad(in, key,
                    v->kind == JSON_ARRAY_VALUE ? "too long" : "no array");
        return 0;
    }
    *first = v->items.first;
    return v->items.count;
}

char **json_in_strings(struct json_in *in, const struct json_value *obj,
                       const char *key, size_t max, enum json_need need,
                       size_t *count)
{
    const struct json_value *one;
    size_t n = json_in_array(in, obj, key, max, need, &one);
    char **list = arena_array(in->arena, n + 1, sizeof(char *));

    *count = 0;
    if (!list) {
        err_nomem(in->err);
        return NULL;
    }
    for (size_t i = 0; i < n && in->err->code == 0; i++, one = one->next)
        list[i] = (char *)(uintptr_t)string_of(in, key, one);
    *count = in->err->code == 0 ? n : 0;
    return list;
}

void json_in_strict(struct json_in *in, const struct json_value *v)
{
    if (v->kind != JSON_ARRAY_VALUE && v->kind != JSON_OBJECT_VALUE)
        return;
    for (v = v->items.first; v; v = v->next) {
        if (v->key && !v->asked)
            json_in_bad(in, v->key, "unknown");
        json_in_strict(in, v);
    }
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
