/* SPDX-License-Identifier: MIT */
#include "qstill.h"

#include "base/cleanup.h"

QSTILL_PUBLIC const char *qstill_version(void)
{
    return QSTILL_VERSION;
}

static const char *const code_names[] = {
    "ok",         "failed",      "usage",        "corrupt",
    "not-found",  "busy",        "precondition", "no-space",
    "permission", "unreachable", "cancelled",
};

QSTILL_PUBLIC const char *qstill_code_name(int code)
{
    size_t i = code <= 0 ? (size_t)-code : 1;

    return i < sizeof(code_names) / sizeof(code_names[0]) ? code_names[i]
                                                          : "failed";
}
