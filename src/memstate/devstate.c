/* SPDX-License-Identifier: MIT */
#include "devstate.h"

#include <string.h>

#include "base/bytes.h"

#define SECTION_FULL  0x04
#define VMDESCRIPTION 0x06
#define FOOTER        0x7e
#define FOOTER_LEN    5u /* 7E be32 id */
#define VMDESC_HEAD   5u /* 06 be32 len */
#define VMDESC_MIN    7u /* ... {} */

/* Magic, version, the type of a section and its id: anything less is none. */
#define DEVSTATE_MIN (DEVSTATE_HEADER + 1u + 4u + 1u)

/*
 * Where the EOF in front of a vmdescription stands, or 0: a 06 whose length
 * reaches exactly to the end, behind a 00 and with JSON's braces. Searched
 * from the back, since the text may hold anything but is one object.
 */
static size_t find_vmdescription(const uint8_t *data, size_t len)
{
    if (data[len - 1] != '}')
        return 0;
    for (size_t at = len - VMDESC_MIN; at > DEVSTATE_HEADER; at--)
        if (data[at] == VMDESCRIPTION && data[at - 1] == 0 &&
            data[at + VMDESC_HEAD] == '{' &&
            get_be32(data + at + 1) == len - at - VMDESC_HEAD)
            return at - 1;
    return 0;
}

bool devstate_begins(const uint8_t *head)
{
    return memcmp(head, "QEVM\0\0\0\3", 8) == 0 &&
           head[DEVSTATE_HEADER] == SECTION_FULL;
}

int devstate_parse(struct devstate *out, const uint8_t *data, size_t len,
                   struct qstill_error *err)
{
    size_t eof;

    if (len < DEVSTATE_MIN || memcmp(data, "QEVM\0\0\0\3", 8) != 0)
        return err_set(err, QSTILL_E_CORRUPT,
                       "this is no device state of QEMU (%zu bytes)", len);
    if (data[DEVSTATE_HEADER] != SECTION_FULL)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the device state begins with a section of type %u, "
                       "not with a device",
                       data[DEVSTATE_HEADER]);
    eof = find_vmdescription(data, len);
    out->vmdescription = eof != 0;
    if (!out->vmdescription)
        eof = len - 1;
    if (data[eof] != 0)
        return err_set(err, QSTILL_E_CORRUPT,
                       "the device state ends without its end mark: it is cut "
                       "short");
    out->footers =
        eof >= DEVSTATE_MIN + FOOTER_LEN && data[eof - FOOTER_LEN] == FOOTER;
    out->sections_len = eof + 1;
    return 0;
}
