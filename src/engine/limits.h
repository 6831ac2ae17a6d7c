/* SPDX-License-Identifier: MIT */
/*
 * The limits of resources (getrlimit(2)) that a VM's QEMU has, kept for the
 * next one: those of who reverts it are made for a command, not for a VM. As
 * text they are words like prlimit(1)'s: "nofile=1024:4096",
 * "as=unlimited:unlimited" (soft:hard; bytes, numbers, ... as setrlimit(2) has
 * them), one blank apart. A resource without a word has none; without a text
 * (NULL) nothing is known.
 */
#ifndef QSTILL_ENGINE_LIMITS_H
#define QSTILL_ENGINE_LIMITS_H

#include <stddef.h>
#include <sys/types.h>

#include "base/arena.h"
#include "base/error.h"
#include "qstill.h"

#define LIMITS_MAX 16

struct limits {
    struct qstill_limit v[LIMITS_MAX];
    size_t n;
};

/* Of a process; what cannot be read leaves *out as it is. */
void limits_read(pid_t pid, struct limits *out);

/* CORRUPT: no such word. One of a resource that is not known is left out. */
int limits_parse(const char *text, struct limits *out,
                 struct qstill_error *err);
/* In the arena; NULL: nothing is known. */
int limits_format(const struct limits *l, struct arena *a, char **out,
                  struct qstill_error *err);

/* Whether a process of ours may have as much of what QEMU does not live
 * without (memory, file sizes): PRECONDITION names the limit. Of others it gets
 * as much as we may give. */
int limits_check(const struct limits *l, struct qstill_error *err);

#endif
