/* SPDX-License-Identifier: MIT */
/*
 * What each snapshot's disks hold, before a delete and after it.
 *
 * A first image of a format that is not known here (vdi, vmdk, ...) is not
 * read. No merge changes it while a snapshot stands on it: it must be the same
 * file, and show where it did. Where a layer has something now and it showed
 * before, QEMU has filled clusters of another size from it: that is not
 * compared, and told.
 */
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
void paranoid_fini(struct paranoid *p);

#endif
