/* SPDX-License-Identifier: MIT */
#include "options.h"

#include <string.h>

int options_take(void *to, size_t to_size, const void *from, const char *what,
                 struct qstill_error *err)
{
    const unsigned char *bytes = from;
    size_t size;

    memset(to, 0, to_size);
    memcpy(to, &to_size, sizeof(to_size));
    if (!from)
        return 0;
    memcpy(&size, from, sizeof(size));
    if (size < sizeof(size) || size > OPTIONS_MAX)
        return err_set(err, QSTILL_E_USAGE,
                       "%s options have no valid size (%zu)", what, size);
    for (size_t i = to_size; i < size; i++)
        if (bytes[i])
            return err_set(err, QSTILL_E_USAGE,
                           "%s options ask for what this library does not "
                           "know (byte %zu of %zu)",
                           what, i, size);
    if (size > to_size)
        size = to_size;
    memcpy((unsigned char *)to + sizeof(size), bytes + sizeof(size),
           size - sizeof(size));
    return 0;
}
