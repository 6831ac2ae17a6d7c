/* SPDX-License-Identifier: MIT */
/*
 * `-device loader,addr=A,data=D,data-len=N` writes N bytes to A at each reset,
 * and stands in no list of QEMU's. (With a file, its ROM is in `info roms`.)
 */
#include <stdio.h>
#include <string.h>

#include "client.h"
#include "field.h"
#include "monitor.h"
#include "ram.h"

#define LOADERS_MAX 1024u
#define PATH_SIZE   320

static int add_rom(struct qmp_roms *roms, uint64_t addr, uint64_t size,
                   struct qstill_error *err)
{
    struct qmp_rom *items;

    if (roms->count >= LOADERS_MAX)
        return err_set(err, QSTILL_E_FAILED, "QEMU has over %u loaders",
                       LOADERS_MAX);
    items = reallocarray(roms->items, roms->count + 1, sizeof(*items));
    if (!items)
        return err_nomem(err);
    roms->items = items;
    items[roms->count++] = (struct qmp_rom){
        .name = strdup("loader"),
        .region = strdup(""),
        .addr = addr,
        .size = size,
        .has_addr = true,
    };
    return items[roms->count - 1].name && items[roms->count - 1].region
               ? 0
               : err_nomem(err);
}

static int add_loader(struct qstill_qmp *q, const char *path,
                      struct qmp_roms *roms, struct qstill_error *err)
{
    uint64_t addr, len;

    if (qmp_qom_get_u64(q, path, "addr", &addr, err) < 0 ||
        qmp_qom_get_u64(q, path, "data-len", &len, err) < 0)
        return err->code;
    return len ? add_rom(roms, addr, len, err) : 0;
}

static int add_folder(struct qstill_qmp *q, const char *folder,
                      struct qmp_roms *roms, struct qstill_error *err)
{
    CLEANUP(json_decrefp) json_t *list = NULL;
    size_t i;
    json_t *v;

    if (client_call(q, "qom-list", json_pack("{s:s}", "path", folder), &list,
                    err) < 0)
        return err->code;
    json_array_foreach(list, i, v)
    {
        char path[PATH_SIZE];

        if (strcmp(field_string(v, "type", ""), "child<loader>") != 0)
            continue;
        snprintf(path, sizeof(path), "%s/%.256s", folder,
                 field_string(v, "name", ""));
        if (add_loader(q, path, roms, err) < 0)
            return err->code;
    }
    return 0;
}

int qmp_loaders_read(struct qstill_qmp *q, struct qmp_roms *out,
                     struct qstill_error *err)
{
    if (add_folder(q, "/machine/peripheral", out, err) < 0 ||
        add_folder(q, "/machine/peripheral-anon", out, err) < 0)
        return err_wrap(err, "reading the VM's loaders");
    return 0;
}
