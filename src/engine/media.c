/* SPDX-License-Identifier: MIT */
#include "media.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "launch_disk.h"
#include "qmp/media.h"
#include "session.h"

#define MEDIA_MAX 1024

/* -------------------------------------------------------------------- reading
 */

static int take(struct session *s, struct arena *a, const struct qmp_medium *q,
                struct medium *out, struct qstill_error *err)
{
    out->qdev = arena_strdup(a, q->qdev);
    out->device = arena_strdup(a, q->device);
    out->path = *q->path && launch_plain_name(q->path)
                    ? session_resolve(a, &s->rec.launch, q->path)
                    : q->path;
    out->path = out->path ? arena_strdup(a, out->path) : NULL;
    out->format = arena_strdup(a, q->format);
    return out->qdev && out->device && out->path && out->format
               ? 0
               : err_nomem(err);
}

int media_read(struct session *s, struct arena *a, struct media *out,
               struct qstill_error *err)
{
    CLEANUP(qmp_media_fini) struct qmp_media now = QMP_MEDIA_INIT;

    if (qmp_media_read(s->qmp, &now, err) < 0)
        return err->code;
    out->count = 0;
    out->items = arena_array(a, now.count + 1, sizeof(*out->items));
    if (!out->items)
        return err_nomem(err);
    for (size_t i = 0; i < now.count; i++)
        if (!now.items[i].writable &&
            take(s, a, &now.items[i], &out->items[out->count++], err) < 0)
            return err->code;
    return 0;
}

/* A file: what else QEMU may open ("nbd://...") is not looked at. */
static bool is_file(const struct medium *m)
{
    return m->path[0] == '/';
}

static bool is_drive(const struct medium *m, const char *qdev,
                     const char *device)
{
    return strcmp(m->qdev, qdev) == 0 ||
           (*m->device && strcmp(m->device, device) == 0);
}

static bool same_medium(const struct medium *a, const struct medium *b)
{
    if (!*a->path || !*b->path)
        return !*a->path && !*b->path;
    return strcmp(a->format, b->format) == 0 &&
           session_same_file(a->path, b->path);
}

static const struct medium *find(const struct media *list,
                                 const struct medium *m)
{
    for (size_t i = 0; i < list->count; i++)
        if (is_drive(m, list->items[i].qdev, list->items[i].device))
            return &list->items[i];
    return NULL;
}

int media_differing(struct session *s, struct arena *a,
                    const struct media *then, struct media *out,
                    struct qstill_error *err)
{
    struct media now = {0};

    *out = now;
    if (!then->items)
        return 0;
    if (media_read(s, a, &now, err) < 0)
        return err->code;
    out->items = arena_array(a, now.count + 1, sizeof(*out->items));
    if (!out->items)
        return err_nomem(err);
    for (size_t i = 0; i < now.count; i++) {
        const struct medium *was = find(then, &now.items[i]);

        if (was && !same_medium(was, &now.items[i]))
            out->items[out->count++] = now.items[i];
    }
    return 0;
}

/* -------------------------------------------------------------------- checking
 */

static const char *drive_name(const struct medium *m)
{
    return *m->device ? m->device : m->qdev;
}

static int hint_to(struct qstill_error *err)
{
    char first[sizeof(err->hint)];

    snprintf(first, sizeof(first), "%.160s",
             err->code == QSTILL_E_BUSY ? err->hint : "put the file back");
    return err_hint(err, "%s, or go on with what is in the drive: --force",
                    first);
}

int media_check(struct session *s, const struct media *m, bool in_process,
                bool force, struct qstill_error *err)
{
    struct media now = {0};

    if (s->qmp && in_process && m->count > 0 &&
        media_read(s, &s->rec.arena, &now, err) < 0)
        return err->code;
    for (size_t i = 0; i < m->count; i++) {
        const struct medium *want = &m->items[i], *has = find(&now, want);

        if (!is_file(want) || (has && same_medium(has, want)) ||
            session_reach(s, want->path, want->format,
                          SESSION_REACH_LOCKS |
                              (in_process ? 0 : SESSION_REACH_START),
                          err) == 0)
            continue;
        err_wrap(err, "drive %s had %s in it at the snapshot", drive_name(want),
                 want->path);
        if (!force)
            return hint_to(err);
        store_note(s->store, "%s: it is not put back", err->message);
        err_clear(err);
    }
    return 0;
}

/* -------------------------------------------------------------------- putting
 */

/* A medium that could not be put in has had the one before it taken out. */
static int put_old(struct session *s, const struct medium *has,
                   struct qstill_error *err)
{
    CLEANUP(qmp_media_fini) struct qmp_media now = QMP_MEDIA_INIT;
    struct qstill_error why = {0};

    if (qmp_media_read(s->qmp, &now, err) < 0)
        return err->code;
    for (size_t i = 0; i < now.count; i++)
        if (strcmp(now.items[i].qdev, has->qdev) == 0 && !*now.items[i].path &&
            *has->path &&
            qmp_medium_insert(s->qmp, has->qdev, has->path, has->format, &why) <
                0)
            store_note(s->store, "drive %s is empty now: %s", drive_name(has),
                       why.message);
    if (why.code == QSTILL_E_UNREACHABLE)
        *err = why;
    return err->code;
}

static int put_one(struct session *s, const struct qmp_medium *q,
                   const struct medium *has, const struct medium *want,
                   struct qstill_error *err)
{
    struct qstill_error why = {0};
    bool open = q->tray_open;

    if (same_medium(has, want))
        return open ? qmp_medium_close_tray(s->qmp, q->qdev, err) : 0;
    if (!*want->path) {
        if (qmp_medium_eject(s->qmp, q->qdev, err) < 0)
            return err->code;
        return qmp_medium_close_tray(s->qmp, q->qdev, err);
    }
    if (is_file(want) && session_reach(s, want->path, want->format,
                                       SESSION_REACH_LOCKS, &why) == 0) {
        if (qmp_medium_insert(s->qmp, q->qdev, want->path, want->format,
                              &why) == 0)
            return 0;
        if (why.code == QSTILL_E_UNREACHABLE)
            return (*err = why).code;
        if (put_old(s, has, err) < 0)
            return err->code;
        open = true; /* by the change that failed */
    }
    store_note(s->store, "drive %s had %s in it, which cannot be put back (%s)",
               drive_name(want), want->path,
               why.code < 0 ? why.message : "no file");
    return open ? qmp_medium_close_tray(s->qmp, q->qdev, err) : 0;
}

int media_put(struct session *s, const struct media *m,
              struct qstill_error *err)
{
    CLEANUP(qmp_media_fini) struct qmp_media now = QMP_MEDIA_INIT;

    if (m->count == 0)
        return 0;
    if (qmp_media_read(s->qmp, &now, err) < 0)
        return err->code;
    for (size_t i = 0; i < now.count; i++) {
        const struct qmp_medium *q = &now.items[i];
        struct medium has;

        for (size_t k = 0; k < m->count; k++) {
            if (q->writable || !is_drive(&m->items[k], q->qdev, q->device))
                continue;
            if (take(s, &s->rec.arena, q, &has, err) < 0)
                return err->code;
            if (put_one(s, q, &has, &m->items[k], err) < 0)
                return err_wrap(err, "the medium of drive %s",
                                drive_name(&has));
            break;
        }
    }
    return 0;
}

/* ----------------------------------------------------------------------- JSON
 */

void media_from_json(struct json_in *in, const struct json_value *obj,
                     struct media *out)
{
    const struct json_value *o, *v = obj->items.first;
    size_t n = json_in_array(in, obj, "media", MEDIA_MAX, JSON_OPTIONAL, &o);

    *out = (struct media){0};
    while (v && !(v->key && strcmp(v->key, "media") == 0))
        v = v->next;
    if (!v || v->kind != JSON_ARRAY_VALUE)
        return;
    out->items = arena_array(in->arena, n + 1, sizeof(*out->items));
    if (!out->items) {
        err_nomem(in->err);
        return;
    }
    for (size_t i = 0; i < n; i++, o = o->next) {
        struct medium *m = &out->items[i];

        m->qdev = json_in_string(in, o, "qdev", JSON_REQUIRED);
        m->device = json_in_string(in, o, "device", JSON_REQUIRED);
        m->path = json_in_string(in, o, "path", JSON_REQUIRED);
        m->format = json_in_string(in, o, "format", JSON_REQUIRED);
    }
    out->count = n;
}

json_t *media_to_json(const struct media *m)
{
    json_t *array = m->items ? json_array() : json_null();

    for (size_t i = 0; array && i < m->count; i++) {
        const struct medium *d = &m->items[i];

        json_array_append_new(
            array, json_pack("{so so so so}", "qdev", json_out_string(d->qdev),
                             "device", json_out_string(d->device), "path",
                             json_out_string(d->path), "format",
                             json_out_string(d->format)));
    }
    return array;
}
