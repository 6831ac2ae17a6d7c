/* SPDX-License-Identifier: MIT */
/*
 * Images below a VM's disks that are layers of another VM of the store. A merge
 * of that one's may give such a file another inode, other bytes and less below
 * it, and still shows through it what its snapshot showed: its records tell
 * whether it is what it should be now. They vouch for a layer that a snapshot
 * of that VM needs, and by the snapshot's id: of a file that is only called as
 * it was nobody knows what it shows.
 */
#ifndef QSTILL_ENGINE_BASE_OWNERS_H
#define QSTILL_ENGINE_BASE_OWNERS_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

struct arena;
struct base_owner;
struct manifest;
struct manifest_disk;
struct session;

struct base_owners {
    struct session *s;
    struct arena *arena;
    struct base_owner *read; /* records of other VMs */
};

void base_owners_fini(struct base_owners *o);

/* Sets owner_vm and owner_snapshot of what is some other VM's now. */
int base_owners_find(struct base_owners *o, struct manifest_disk *items,
                     size_t count, struct qstill_error *err);

/*
 * Of `then`, the layers of one VM that followed each other when snapshot m was
 * made, *matched becomes how many of `now` are what they should be in their
 * place, or 0 when that VM does not vouch for them, nor for any since it has
 * taken changed layers as they are. BUSY: it is at work, and nobody can tell.
 */
int base_owners_vouch(struct base_owners *o, const struct manifest *m,
                      const struct manifest_disk *then, size_t then_count,
                      const struct manifest_disk *now, size_t now_count,
                      size_t *matched, struct qstill_error *err);

#endif
