/* SPDX-License-Identifier: MIT */
#include "labels.h"

#include <stdbool.h>
#include <string.h>

#include "base/json_parse.h"

/* What JSON shows of the character at *s; steps over it. Bytes that are no
 * UTF-8 all show as the same, U+FFFD. */
static const char *shown(const char **s, size_t *len)
{
    const char *at = *s;

    *len = (unsigned char)*at < 0x80 ? 1 : json_utf8_length(at);
    *s += *len ? *len : 1;
    if (*len)
        return at;
    *len = 3;
    return "\xef\xbf\xbd";
}

static bool has_same_key(const char *a, const char *b)
{
    size_t n, m;

    while (*a != '=' || *b != '=') {
        const char *x = shown(&a, &n), *y = shown(&b, &m);

        if (n != m || memcmp(x, y, n) != 0)
            return false;
    }
    return true;
}

int labels_check(const char *const *labels, size_t count,
                 struct qstill_error *err)
{
    for (size_t i = 0; i < count; i++) {
        const char *eq = strchr(labels[i], '=');

        if (!eq || eq == labels[i])
            return err_set(err, QSTILL_E_USAGE, "label '%.64s' is no KEY=VALUE",
                           labels[i]);
        for (size_t k = 0; k < i; k++)
            if (has_same_key(labels[k], labels[i]))
                return err_set(err, QSTILL_E_USAGE,
                               "the keys of the labels '%.64s' and '%.64s' are "
                               "shown alike",
                               labels[k], labels[i]);
    }
    return 0;
}
