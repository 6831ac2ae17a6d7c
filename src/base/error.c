/* SPDX-License-Identifier: MIT */
#include "error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const struct {
    int errno_value;
    int code;
} errno_codes[] = {
    {ENOSPC, QSTILL_E_NO_SPACE},     {EDQUOT, QSTILL_E_NO_SPACE},
    {EFBIG, QSTILL_E_NO_SPACE},      {EACCES, QSTILL_E_PERMISSION},
    {EPERM, QSTILL_E_PERMISSION},    {EROFS, QSTILL_E_PERMISSION},
    {ENOENT, QSTILL_E_NOT_FOUND},    {EEXIST, QSTILL_E_BUSY},
    {EBUSY, QSTILL_E_BUSY},          {ECONNREFUSED, QSTILL_E_UNREACHABLE},
    {EPIPE, QSTILL_E_UNREACHABLE},   {ECONNRESET, QSTILL_E_UNREACHABLE},
    {ECANCELED, QSTILL_E_CANCELLED},
};

static int code_of_errno(int errno_value)
{
    for (size_t i = 0; i < ARRAY_LEN(errno_codes); i++)
        if (errno_codes[i].errno_value == errno_value)
            return errno_codes[i].code;
    return QSTILL_E_FAILED;
}

/* Names and paths in a message are anybody's: a newline or a terminal's
 * control sequence in them must not get through. */
static void one_line(char *s)
{
    for (; *s; s++)
        if ((unsigned char)*s < 0x20 || *s == 0x7f)
            *s = '?';
}

int err_set(struct qstill_error *err, int code, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(err->message, sizeof(err->message), fmt, ap);
    va_end(ap);
    one_line(err->message);
    err->hint[0] = '\0';
    err->code = code;
    return code;
}

int err_errno(struct qstill_error *err, int errno_value, const char *fmt, ...)
{
    char what[sizeof(err->message)];
    char why[128];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(what, sizeof(what), fmt, ap);
    va_end(ap);
    /* strerror_r never fails into `why` being unset: it fills or points */
    snprintf(err->message, sizeof(err->message), "%.360s: %s", what,
             strerror_r(errno_value, why, sizeof(why)));
    one_line(err->message);
    err->hint[0] = '\0';
    err->code = code_of_errno(errno_value);
    return err->code;
}

int err_nomem(struct qstill_error *err)
{
    return err_set(err, QSTILL_E_FAILED, "out of memory");
}

int err_wrap(struct qstill_error *err, const char *fmt, ...)
{
    char old[sizeof(err->message)];
    va_list ap;
    int n;

    memcpy(old, err->message, sizeof(old));
    va_start(ap, fmt);
    n = vsnprintf(err->message, sizeof(err->message), fmt, ap);
    va_end(ap);
    if (n >= 0 && (size_t)n < sizeof(err->message))
        snprintf(err->message + n, sizeof(err->message) - (size_t)n, ": %s",
                 old);
    one_line(err->message);
    return err->code;
}

int err_hint(struct qstill_error *err, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(err->hint, sizeof(err->hint), fmt, ap);
    va_end(ap);
    one_line(err->hint);
    return err->code;
}
