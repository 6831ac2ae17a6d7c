/* SPDX-License-Identifier: MIT */
/*
 * `-device loader,addr=A,data=D,data-len=N` writes N bytes to A at each reset,
 * and stands in no list of QEMU's. (With a file, its ROM is in `info roms`.)
 */
#include <stdlib.h>
#include <string.h>

#include "machine.h"
#include "monitor.h"
#include "ram.h"

#define LOADERS_MAX 1024u

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

int qmp_loaders_read(struct qstill_qmp *q, struct qmp_roms *out,
                     struct qstill_error *err)
{
    CLEANUP(qmp_devices_fini) struct qmp_devices devices = QMP_DEVICES_INIT;

    if (qmp_devices_read(q, &devices, err) < 0)
        return err->code;
    for (size_t i = 0; i < devices.count; i++)
        if (strcmp(devices.items[i].type, "loader") == 0 &&
            add_loader(q, devices.items[i].path, out, err) < 0)
            return err_wrap(err, "asking what a loader writes");
    return 0;
}
