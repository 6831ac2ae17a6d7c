/* SPDX-License-Identifier: MIT */
/*
 * A device state, as QEMU or somebody who replaced the file wrote it: what is
 * accepted lies inside the bytes, and cutting it anywhere, or writing behind
 * it, never makes us look further than they reach (the copy is as long as the
 * input, for AddressSanitizer).
 */
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "memstate/devstate.h"

#define CHECK(x)                                                               \
    do {                                                                       \
        if (!(x))                                                              \
            abort();                                                           \
    } while (0)

static void check_parts(const uint8_t *data, size_t len,
                        const struct devstate *d)
{
    size_t rest = len - d->sections_len;

    CHECK(d->sections_len > DEVSTATE_HEADER && d->sections_len <= len);
    CHECK(devstate_begins(data));
    CHECK(data[d->sections_len - 1] == 0);
    CHECK(d->vmdescription == (rest > 0));
    if (d->vmdescription) {
        CHECK(rest >= 7 && data[d->sections_len] == 6);
        CHECK(get_be32(data + d->sections_len + 1) == rest - 5);
        CHECK(data[len - 1] == '}');
    }
    if (d->footers)
        CHECK(data[d->sections_len - 6] == 0x7e);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t step = size < 64 ? 1 : size / 64;

    for (size_t len = 0; len <= size; len += step) {
        CLEANUP(freep) uint8_t *copy = malloc(len ? len : 1);
        struct qstill_error err;
        struct devstate d;

        CHECK(copy != NULL);
        memcpy(copy, data, len);
        if (devstate_parse(&d, copy, len, &err) == 0)
            check_parts(copy, len, &d);
        else
            CHECK(err.code == QSTILL_E_CORRUPT && err.message[0]);
    }
    return 0;
}
