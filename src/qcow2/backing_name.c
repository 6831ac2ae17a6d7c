/* SPDX-License-Identifier: MIT */
/*
 * What QEMU does with such a name depends on the drivers in it. So no key of a
 * json: is given a meaning: each string may be the name of a file.
 */
#include "backing_name.h"

#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/json_parse.h"
#include "chain.h"

struct walk {
    const char *overlay;
    backing_file_fn *found;
    void *user;
};

/* What follows a prefix, or NULL. */
static const char *behind(const char *name, const char *prefix)
{
    size_t n = strlen(prefix);

    return strncmp(name, prefix, n) == 0 ? name + n : NULL;
}

static int try_file(const struct walk *w, const char *name,
                    struct qstill_error *err)
{
    CLEANUP(freep) char *path = NULL;

    if (!*name)
        return 0;
    if (chain_resolve(w->overlay, name, &path, err) < 0)
        /* another protocol: of a server, a device */
        return err->code == QSTILL_E_PRECONDITION ? err_clear(err) : err->code;
    return w->found(w->user, path, err);
}

static int try_name(const struct walk *w, const char *name,
                    struct qstill_error *err);

static int try_value(const struct walk *w, const struct json_value *v,
                     struct qstill_error *err)
{
    if (v->kind == JSON_STRING_VALUE)
        return try_name(w, v->string, err);
    if (v->kind != JSON_ARRAY_VALUE && v->kind != JSON_OBJECT_VALUE)
        return 0;
    for (v = v->items.first; v; v = v->next)
        if (try_value(w, v, err) < 0)
            return err->code;
    return 0;
}

static int try_json(const struct walk *w, const char *json,
                    struct qstill_error *err)
{
    CLEANUP(arena_fini) struct arena arena = ARENA_INIT;
    CLEANUP(buf_fini) struct buf text = BUF_INIT;
    const struct json_value *v;

    if (buf_puts(&text, json) < 0)
        return err_nomem(err);
    if (json_parse((char *)text.data, text.len, &arena, &v, err) == 0)
        return try_value(w, v, err);
    if (err->code != QSTILL_E_CORRUPT)
        return err->code;
    /* QEMU takes more: 'strings' */
    return err_set(err, QSTILL_E_PRECONDITION,
                   "%s: which file its backing file is cannot be told from "
                   "\"json:%.200s\"",
                   w->overlay, json);
}

/* blkdebug:CONFIG:NAME, blkverify:RAW:NAME: two files, each may be one of
 * these. */
static int try_both(const struct walk *w, const char *two,
                    struct qstill_error *err)
{
    const char *colon = strchr(two, ':');
    CLEANUP(freep) char *one = NULL;

    if (!colon)
        return 0;
    one = strndup(two, (size_t)(colon - two));
    if (!one)
        return err_nomem(err);
    return try_name(w, one, err) < 0 ? err->code : try_name(w, colon + 1, err);
}

static int try_name(const struct walk *w, const char *name,
                    struct qstill_error *err)
{
    const char *file = behind(name, "file:"), *json = behind(name, "json:");
    const char *two = behind(name, "blkdebug:");

    if (two || (two = behind(name, "blkverify:")))
        return try_both(w, two, err);
    return json ? try_json(w, json, err) : try_file(w, file ? file : name, err);
}

int backing_name_files(const char *overlay, const char *name,
                       backing_file_fn *found, void *user,
                       struct qstill_error *err)
{
    struct walk w = {overlay, found, user};

    return try_name(&w, name, err);
}
