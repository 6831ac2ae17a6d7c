/* SPDX-License-Identifier: MIT */
/*
 * Merging layers of a running VM with QEMU's own jobs. Files that QEMU has
 * open are never written by us.
 */
#ifndef QSTILL_ENGINE_LIVECHAIN_H
#define QSTILL_ENGINE_LIVECHAIN_H

#include "base/error.h"

struct journal;
struct session;
struct vm_disk;

/* In memory: `to` is the disk's head, and the old one a hidden layer until its
 * file is gone. */
int livechain_set_head(struct session *s, struct vm_disk *d, const char *to,
                       const char *to_format, struct qstill_error *err);

/*
 * Folds the disk's head into the layer `to`, which then is the head: record
 * and journal say so durably. The VM is stopped for the pivot only (both files
 * read the same then, so a crash at any instant leaves a right one), and runs
 * again afterwards if it ran. The old head's file is the caller's to remove.
 * Layers between the two are folded too.
 */
int livechain_commit_head(struct session *s, struct vm_disk *d, const char *to,
                          const char *to_format, struct journal *j,
                          struct qstill_error *err);

/* Pulls all that `layer` lacks of its backing layer `drop` into it, and backs
 * it by what `drop` is backed by. Both are in the disk's live chain. */
int livechain_pull(struct session *s, struct vm_disk *d, const char *layer,
                   const char *drop, struct qstill_error *err);

/* Whether `path` is in the disk's live chain. */
int livechain_has(struct session *s, struct vm_disk *d, const char *path,
                  bool *has, struct qstill_error *err);

/* Cancels or finishes a job of ours that a process which died left behind.
 * Until it is out of QEMU's list it may hold a filter node without a child, at
 * which QEMU 7.2's query-named-block-nodes reads address 0x40 and dies: so this
 * comes before anything that asks for nodes. */
int livechain_settle(struct session *s, struct qstill_error *err);

/* Runs the guest again if `was_running` and something of ours stopped it.
 * Waits for QEMU to leave states in which `cont` is refused. */
int livechain_resume(struct session *s, bool was_running,
                     struct qstill_error *err);

#endif
