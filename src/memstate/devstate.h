/* SPDX-License-Identifier: MIT */
/*
 * The normal form of a device state, whatever brought it (device.state):
 *
 *   "QEVM" be32 3                        magic and version
 *   04 ... [7E be32 id]   one or more    FULL sections, opaque to us
 *   00                                   EOF
 *   [06 be32 len bytes[len]]             vmdescription (JSON), perhaps
 *
 * which is what xen-save-devices-state writes, and what stands behind the RAM
 * in a migration stream. Sections carry no length, so only both ends can be
 * checked.
 */
#ifndef QSTILL_MEMSTATE_DEVSTATE_H
#define QSTILL_MEMSTATE_DEVSTATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define DEVSTATE_HEADER 8u /* magic and version */

struct devstate {
    size_t sections_len; /* magic to EOF, both included */
    bool vmdescription;  /* one stands behind the EOF */
    bool footers;        /* the last section ends in a footer */
};

/* Do these DEVSTATE_HEADER + 1 bytes begin a device state? */
bool devstate_begins(const uint8_t *head);

/* CORRUPT when the beginning or the end is not as drawn above. */
int devstate_parse(struct devstate *out, const uint8_t *data, size_t len,
                   struct qstill_error *err);

#endif
