/* SPDX-License-Identifier: MIT */
#include "media.h"

#include <stdlib.h>

#include "client.h"
#include "field.h"

static void medium_fini(struct qmp_medium *m)
{
    free(m->qdev);
    free(m->device);
    free(m->path);
    free(m->format);
}

void qmp_media_fini(struct qmp_media *m)
{
    for (size_t i = 0; i < m->count; i++)
        medium_fini(&m->items[i]);
    free(m->items);
    *m = (struct qmp_media)QMP_MEDIA_INIT;
}

static int medium_fill(struct qmp_medium *m, const json_t *v,
                       struct qstill_error *err)
{
    const json_t *inserted = json_object_get(v, "inserted");

    m->writable = inserted && !field_bool(inserted, "ro", false);
    m->tray_open = field_bool(v, "tray_open", false);
    if (field_need(v, "qdev", &m->qdev, err) < 0 ||
        field_dup(v, "device", &m->device, err) < 0 ||
        field_dup(inserted, "file", &m->path, err) < 0)
        return err->code;
    return field_dup(inserted, "drv", &m->format, err);
}

int qmp_media_read(struct qstill_qmp *q, struct qmp_media *out,
                   struct qstill_error *err)
{
    CLEANUP(qmp_media_fini) struct qmp_media m = QMP_MEDIA_INIT;
    CLEANUP(json_decrefp) json_t *list = NULL;
    size_t i;
    json_t *v;

    if (client_ask(q, "query-block", &list, err) < 0)
        return err->code;
    m.items = calloc(json_array_size(list) + 1, sizeof(*m.items));
    if (!m.items)
        return err_nomem(err);
    json_array_foreach(list, i, v)
    {
        /* a -drive that no device uses counts as removable, too */
        if (!field_bool(v, "removable", false) || !*field_string(v, "qdev", ""))
            continue;
        if (medium_fill(&m.items[m.count++], v, err) < 0)
            return err_wrap(err, "reading what is in the VM's drives");
    }
    *out = m;
    m = (struct qmp_media)QMP_MEDIA_INIT;
    return 0;
}

int qmp_medium_insert(struct qstill_qmp *q, const char *qdev, const char *path,
                      const char *format, struct qstill_error *err)
{
    return client_call(q, "blockdev-change-medium",
                       json_pack("{s:s, s:s, s:s, s:s, s:b}", "id", qdev,
                                 "filename", path, "format", format,
                                 "read-only-mode", "read-only", "force", true),
                       NULL, err);
}

int qmp_medium_eject(struct qstill_qmp *q, const char *qdev,
                     struct qstill_error *err)
{
    return client_call(q, "eject",
                       json_pack("{s:s, s:b}", "id", qdev, "force", true), NULL,
                       err);
}

int qmp_medium_close_tray(struct qstill_qmp *q, const char *qdev,
                          struct qstill_error *err)
{
    return client_call(q, "blockdev-close-tray", json_pack("{s:s}", "id", qdev),
                       NULL, err);
}
