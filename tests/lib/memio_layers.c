/* SPDX-License-Identifier: MIT */
#include "memio_layers.h"

#include <stdlib.h>

#include "base/bytes.h"
#include "memio_dir.h"

static char *dir;

static void remove_dir(void)
{
    memio_dir_remove(dir);
    dir = NULL;
}

const char *memio_layers_dir(void)
{
    if (!dir) {
        dir = memio_dir_new();
        atexit(remove_dir);
    }
    return dir;
}

unsigned memio_layers_put(const uint8_t *data, size_t size)
{
    static const char *const names[MEMIO_MAX_LAYERS] = {"l0", "l1", "l2"};
    unsigned count = size ? (data[0] & 3) % MEMIO_MAX_LAYERS + 1 : 1;
    size_t at = 1 + 4 * count;

    memio_dir_empty(memio_layers_dir());
    for (unsigned i = 0; i < count; i++) {
        size_t len = size >= 1 + 4 * (i + 1) ? get_be32(data + 1 + 4 * i) : 0;
        size_t left = at < size ? size - at : 0;

        if (len > left || i + 1 == count)
            len = left;
        memio_put(memio_path(dir, names[i]), data + (len ? at : 0), len);
        at += len;
    }
    return count;
}
