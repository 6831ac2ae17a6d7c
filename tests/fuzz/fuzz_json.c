/* SPDX-License-Identifier: MIT */
/*
 * The parser of our own JSON files beside jansson: what one takes the other
 * takes, too, and both read the same. Ours has limits of its own (depth,
 * members, digits); what it refuses for these is not compared.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json_parse.h"

#define CHECK(x)                                                               \
    do {                                                                       \
        if (!(x))                                                              \
            abort();                                                           \
    } while (0)

static void same(const struct json_value *v, const json_t *j);

static void same_array(const struct json_value *v, const json_t *j)
{
    const struct json_value *item = v->items.first;

    CHECK(json_is_array(j) && json_array_size(j) == v->items.count);
    for (size_t i = 0; i < v->items.count; i++, item = item->next)
        same(item, json_array_get(j, i));
    CHECK(!item);
}

static void same_object(const struct json_value *v, const json_t *j)
{
    size_t n = 0;

    CHECK(json_is_object(j) && json_object_size(j) == v->items.count);
    for (const struct json_value *m = v->items.first; m; m = m->next, n++) {
        CHECK(json_object_get(j, m->key));
        CHECK(json_member(v, m->key) == m);
        same(m, json_object_get(j, m->key));
    }
    CHECK(n == v->items.count);
}

static void same(const struct json_value *v, const json_t *j)
{
    switch (v->kind) {
    case JSON_NULL_VALUE:
        CHECK(json_is_null(j));
        break;
    case JSON_BOOLEAN:
        CHECK(json_is_boolean(j) && json_is_true(j) == v->boolean);
        break;
    case JSON_INTEGER_VALUE:
        CHECK(json_is_integer(j) && json_integer_value(j) == v->integer);
        break;
    case JSON_REAL_VALUE:
        CHECK(json_is_real(j) &&
              !(json_real_value(j) < v->real || json_real_value(j) > v->real));
        break;
    case JSON_STRING_VALUE:
        CHECK(json_is_string(j) &&
              strcmp(json_string_value(j), v->string) == 0);
        break;
    case JSON_ARRAY_VALUE:
        same_array(v, j);
        break;
    case JSON_OBJECT_VALUE:
        same_object(v, j);
        break;
    }
}

static bool is_limit(const char *message)
{
    return strstr(message, "nested too deeply") ||
           strstr(message, "too many members") || strstr(message, "too long");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct arena arena = ARENA_INIT;
    struct qstill_error err = {0};
    const struct json_value *v = NULL;
    char *text = malloc(size + 1);
    json_t *j = json_loadb((const char *)data, size,
                           JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, NULL);

    CHECK(text);
    memcpy(text, data, size);
    if (json_parse(text, size, &arena, &v, &err) == 0) {
        CHECK(j);
        same(v, j);
    } else {
        CHECK(err.code == QSTILL_E_CORRUPT && err.message[0]);
        /* jansson takes a NUL behind a number for the end */
        CHECK(!j || is_limit(err.message) || memchr(data, 0, size));
    }
    json_decref(j);
    arena_fini(&arena);
    free(text);
    return 0;
}
