/* SPDX-License-Identifier: MIT */
#include "unplug.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "monitor.h"
#include "topology.h"

/* QEMU's hw/acpi/pcihp.c. Reading "up", at 0, clears it; "down" has a bit for
 * each slot of the selected bus. */
#define DOWN      0x04
#define SELECT    0x10
#define BUSES_MAX 256
#define SLOTS     32

/* The machine's link to what has the registers, whichever device that is. */
#define OWNER    "/machine/acpi-device"
#define PROPERTY "acpi-pcihp-io-base"

/* -------------------------------------------------------------------- find */

/* QEMU gives each PCI bus that is there at the start a number, from 0; these
 * never go. */
static unsigned count_buses(const char *text)
{
    static const char type[] = "type PCI";
    unsigned n = 0;

    while ((text = strstr(text, type))) {
        text += sizeof(type) - 1;
        n++;
    }
    return n < BUSES_MAX ? n : BUSES_MAX;
}

int qmp_unplug_find(struct qstill_qmp *q, struct qmp_unplug *out,
                    struct qstill_error *err)
{
    CLEANUP(freep) char *text = NULL;
    struct qmp_unplug u = QMP_UNPLUG_INIT;

    if (qmp_qom_get_u64(q, OWNER, PROPERTY, &u.registers, err) < 0) {
        if (err->code == QSTILL_E_UNREACHABLE)
            return err->code;
        err_clear(err);
        *out = u;
        return 0;
    }
    if (qmp_hmp(q, "info qtree", &text, err) < 0 ||
        qmp_topology_parse(text, &u.devices, err) < 0) {
        qmp_unplug_fini(&u);
        return err->code;
    }
    u.buses = count_buses(text);
    *out = u;
    return 0;
}

void qmp_unplug_fini(struct qmp_unplug *u)
{
    qmp_names_fini(&u->devices);
    *u = (struct qmp_unplug)QMP_UNPLUG_INIT;
}

/* ------------------------------------------------------------------- check */

/* portl[0xae04] = 0x00000004 */
static bool parse_port(const char *text, uint32_t *value)
{
    const char *equals = strstr(text, "= ");

    return equals && sscanf(equals + 2, "%" SCNx32, value) == 1;
}

/* *known is false where this QEMU's monitor does not tell. */
static int read_port(struct qstill_qmp *q, uint64_t port, uint32_t *value,
                     bool *known, struct qstill_error *err)
{
    CLEANUP(freep) char *text = NULL;
    char line[64];

    snprintf(line, sizeof(line), "i /w 0x%" PRIx64, port);
    if (qmp_hmp(q, line, &text, err) < 0)
        return err->code;
    *known = parse_port(text, value);
    return 0;
}

static int select_bus(struct qstill_qmp *q, const struct qmp_unplug *u,
                      uint32_t bus, struct qstill_error *err)
{
    CLEANUP(freep) char *text = NULL;
    char line[64];

    snprintf(line, sizeof(line), "o /w 0x%" PRIx64 " 0x%" PRIx32,
             u->registers + SELECT, bus);
    return qmp_hmp(q, line, &text, err);
}

/* Of which bus the slot is QEMU does not tell: each device that it may be. */
static int refuse(const struct qmp_unplug *u, uint32_t down,
                  struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf names = BUF_INIT;
    unsigned slot = 0;
    char at[16];

    while (slot < SLOTS - 1 && !(down & (1U << slot)))
        slot++;
    snprintf(at, sizeof(at), "@%02x.0 ", slot);
    for (size_t i = 0; i < u->devices.count; i++) {
        const char *line = u->devices.items[i], *end = strstr(line, at);

        if (end && names.len < sizeof(err->message) / 2)
            buf_printf(&names, "%s%.*s", names.len ? " or " : "",
                       (int)(end - line), line);
    }
    err_set(err, QSTILL_E_PRECONDITION,
            "the guest has not acknowledged that device %.*s is unplugged "
            "(PCI slot 0x%02x), and a reset of the machine would take it away",
            names.len ? (int)names.len : 1,
            names.len ? (const char *)names.data : "?", slot);
    return err_hint(err, "wait until the guest has let the device go");
}

static int look_at_all(struct qstill_qmp *q, const struct qmp_unplug *u,
                       uint32_t selected, uint32_t *down,
                       struct qstill_error *err)
{
    struct qstill_error back = {0};
    bool known = true;
    int rc = 0;

    for (uint32_t bus = 0; rc == 0 && known && !*down && bus < u->buses; bus++)
        if (select_bus(q, u, bus, err) < 0 ||
            read_port(q, u->registers + DOWN, down, &known, err) < 0)
            rc = err->code;
    if (select_bus(q, u, selected, &back) < 0 && rc == 0) {
        *err = back;
        rc = err->code;
    }
    return rc;
}

int qmp_unplug_check(struct qstill_qmp *q, const struct qmp_unplug *u,
                     bool stands, struct qstill_error *err)
{
    uint32_t selected = 0, down = 0;
    bool known;

    if (u->registers == 0)
        return 0;
    if (read_port(q, u->registers + DOWN, &down, &known, err) < 0)
        return err->code;
    if (known && !down && stands) {
        if (read_port(q, u->registers + SELECT, &selected, &known, err) < 0 ||
            (known && (selected != 0 || u->buses > 1) &&
             look_at_all(q, u, selected, &down, err) < 0))
            return err->code;
    }
    return known && down ? refuse(u, down, err) : 0;
}
