/* SPDX-License-Identifier: MIT */
#include "name.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

static bool name_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
}

int name_check(const char *what, const char *name, struct qstill_error *err)
{
    size_t len = name ? strlen(name) : 0;

    if (len == 0 || len > NAME_MAX_LEN) {
        err_set(err, QSTILL_E_USAGE, "%s must have 1 to %d characters", what,
                NAME_MAX_LEN);
        return err->code;
    }
    for (size_t i = 0; i < len; i++)
        if (!name_char(name[i])) {
            err_set(err, QSTILL_E_USAGE,
                    "%s '%.64s' has a character that is not allowed", what,
                    name);
            return err_hint(err, "allowed are letters, digits and . _ -");
        }
    /* ".." would climb, ".x" is ours, "-x" looks like an option */
    if (name[0] == '.' || name[0] == '-') {
        err_set(err, QSTILL_E_USAGE, "%s '%.64s' must not start with '%c'",
                what, name, name[0]);
        return err_hint(err, "start it with a letter, a digit or _");
    }
    return 0;
}

int id_new(char out[ID_LEN + 1], struct qstill_error *err)
{
    static const char alphabet[] = "abcdefghijkmnpqrstuvwxyz23456789";
    uint8_t raw[ID_LEN];

    if (getrandom(raw, sizeof(raw), 0) != (ssize_t)sizeof(raw))
        return err_errno(err, errno, "no random bytes");
    for (size_t i = 0; i < ID_LEN; i++)
        out[i] = alphabet[raw[i] % 32];
    out[0] = alphabet[raw[0] % 24];
    out[ID_LEN] = '\0';
    return 0;
}
