/* SPDX-License-Identifier: MIT */
/* Both texts are for people: what is looked for in them is a device's TYPE at
 * the beginning of a "dev:" line, and "type=" of a network backend. */
#include "hazards.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "client.h"
#include "monitor.h"

static const struct {
    const char *type; /* how it begins */
    size_t field;
} kinds[] = {
#define KIND(t, f)                                                             \
    {                                                                          \
        t, offsetof(struct qmp_hazards, f)                                     \
    }
    KIND("vfio-", vfio),
    KIND("vhost-user-", vhost),
    KIND("vhost-vdpa", vhost),
    KIND("ivshmem-", ivshmem),
    KIND("virtio-mem", virtio_mem),
    KIND("virtio-pmem", virtio_pmem),
    KIND("virtio-balloon", balloon),
#undef KIND
};

/* TYPE, id "ID" */
static void put_device(char *out, const char *text, size_t len)
{
    size_t type = 0;
    const char *id = memchr(text, '"', len);
    size_t id_len = 0;

    while (type < len && text[type] != ',')
        type++;
    if (id) {
        const char *end = memchr(id + 1, '"', len - (size_t)(id + 1 - text));

        id_len = end ? (size_t)(end - id - 1) : 0;
    }
    if (id_len > 0)
        snprintf(out, QMP_HAZARD_SIZE, "%.*s '%.*s'", (int)type, text,
                 (int)id_len, id + 1);
    else
        snprintf(out, QMP_HAZARD_SIZE, "%.*s", (int)type, text);
}

static void take_device(struct qmp_hazards *h, const char *text, size_t len)
{
    for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
        size_t n = strlen(kinds[i].type);
        char *field = (char *)h + kinds[i].field;

        if (len >= n && memcmp(text, kinds[i].type, n) == 0 && !field[0])
            put_device(field, text, len);
    }
}

/* "ID: index=0,type=vhost-user,...", or, since QEMU 10.1,
 * "ID: index=0,type=passt,vhost-user,...": the id may be of any words. */
static void take_backend(struct qmp_hazards *h, const char *text, size_t len)
{
    static const char word[] = ",vhost-user";
    const char *end = text + len;
    const char *type = memmem(text, len, "type=", 5);
    const char *more =
        type ? memmem(type, (size_t)(end - type), word, sizeof(word) - 1)
             : NULL;
    bool named = more && (more + sizeof(word) - 1 == end ||
                          more[sizeof(word) - 1] == ',');

    if (!type || h->vhost[0])
        return;
    type += 5;
    if (strncmp(type, "vhost-", 6) == 0 || named)
        snprintf(h->vhost, sizeof(h->vhost), "a netdev (%.*s%s)",
                 (int)strcspn(type, ",\r\n"), type,
                 named ? " by vhost-user" : "");
}

static const char *next_line(const char *text, const char **line, size_t *len)
{
    text += strspn(text, " \\");
    *line = text;
    *len = strcspn(text, "\r\n");
    text += *len;
    return text + strspn(text, "\r\n");
}

void qmp_hazards_parse(const char *qtree, const char *network,
                       struct qmp_hazards *out)
{
    static const char reporting[] = "free-page-reporting = true";
    const char *line;
    size_t len;

    memset(out, 0, sizeof(*out));
    while (*qtree) {
        qtree = next_line(qtree, &line, &len);
        if (len > 5 && memcmp(line, "dev: ", 5) == 0)
            take_device(out, line + 5, len - 5);
        else if (len == strlen(reporting) && memcmp(line, reporting, len) == 0)
            out->balloon_reports = true;
    }
    while (*network) {
        network = next_line(network, &line, &len);
        take_backend(out, line, len);
    }
}

int qmp_hazards_read(struct qstill_qmp *q, struct qmp_hazards *out,
                     struct qstill_error *err)
{
    CLEANUP(freep) char *qtree = NULL;
    CLEANUP(freep) char *network = NULL;

    if (qmp_hmp(q, "info qtree", &qtree, err) < 0 ||
        qmp_hmp(q, "info network", &network, err) < 0)
        return err_wrap(err, "reading the VM's devices");
    qmp_hazards_parse(qtree, network, out);
    return 0;
}
