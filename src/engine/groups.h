/* SPDX-License-Identifier: MIT */
/*
 * The supplementary groups that a VM's QEMU has, kept for the next one: those
 * that its user has in /etc/group, or those of who reverts it, may be let into
 * more. As text they are numbers, one blank apart, "" for none; without a text
 * (NULL) nothing is known.
 */
#ifndef QSTILL_ENGINE_GROUPS_H
#define QSTILL_ENGINE_GROUPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/error.h"

/* A process with more of them is not one that a new one could be kept to. */
#define GROUPS_MAX 1024

struct groups {
    bool known;
    bool more; /* than GROUPS_MAX; `v` has none then */
    size_t n;
    uint32_t v[GROUPS_MAX];
};

/* Of a process, from the text of its /proc/PID/status. */
void groups_read(const char *status, struct groups *out);
bool groups_are_same(const struct groups *a, const struct groups *b);

/* CORRUPT: not numbers. */
int groups_parse(const char *text, struct groups *out,
                 struct qstill_error *err);
/* In the arena; NULL: nothing is known. */
int groups_format(const struct groups *g, struct arena *a, char **out,
                  struct qstill_error *err);

/* Whether a process that we start as this user can have these and no other:
 * PRECONDITION says why not. */
int groups_check(const struct groups *g, uint32_t uid, uint32_t gid,
                 struct qstill_error *err);

#endif
