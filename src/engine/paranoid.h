/* SPDX-License-Identifier: MIT */
/* What each snapshot's disks hold, before a delete and after it. */
#ifndef QSTILL_ENGINE_PARANOID_H
#define QSTILL_ENGINE_PARANOID_H

#include "base/arena.h"
#include "base/error.h"

struct session;

struct paranoid {
    size_t count;
    struct paranoid_sum *sums; /* in the arena it was taken with */
};

/* Sums the guest content of every snapshot but those that `gone` names. */
int paranoid_take(struct paranoid *p, struct arena *a, struct session *s,
                  bool (*gone)(void *user, const char *id), void *user,
                  struct qstill_error *err);
/* CORRUPT when a snapshot reads differently now. */
int paranoid_check(const struct paranoid *p, struct session *s,
                   struct qstill_error *err);

#endif
