/* SPDX-License-Identifier: MIT */
/*
 * Merging layers of a running VM with QEMU's own jobs. Files that QEMU has
 * open are never written by us.
 */
#ifndef QSTILL_ENGINE_LIVECHAIN_H
#define QSTILL_ENGINE_LIVECHAIN_H

#include "base/error.h"

struct journal;
struct layer;
struct layers;
struct qmp_graph;
struct qmp_node;
struct session;
struct vm_disk;

/* In memory: `to` is the disk's head, and the old one a hidden layer until its
 * file is gone. */
int livechain_set_head(struct session *s, struct vm_disk *d, const char *to,
                       const char *to_format, struct qstill_error *err);

/*
 * Folds the disk's head into the layer `to`, which then is the head: record
 * and journal say so durably. The VM is stopped for the pivot only, and runs
 * again afterwards if it ran. Before QEMU is told to change over, it has done
 * all else, and lets nothing be written: from then on the journal has `to`, so
 * a crash at any instant leaves a right one, also when somebody else lets the
 * guest run on. The old head's file is the caller's to remove.
 * Layers between the two are folded too. `g` is what QEMU has; afterwards the
 * chain of the disk is what is below `to` in it, and the session knows.
 */
int livechain_commit_head(struct session *s, struct qmp_graph *g,
                          struct vm_disk *d, const char *to,
                          const char *to_format, struct journal *j,
                          struct qstill_error *err);

/*
 * Has QEMU pull all that `layer` lacks of the layers first..last below it, and
 * backs it by what `last` is backed by. All are in the disk's live chain. The
 * result is durable when this returns 0; the journal says what is under way.
 */
int livechain_pull(struct session *s, struct vm_disk *d,
                   const struct layer *layer, const struct layer *first,
                   const struct layer *last, struct journal *j,
                   struct qstill_error *err);
/* What a process that died in it, or whose QEMU died, left behind. */
int livechain_settle_pull(struct session *s, struct journal *j,
                          struct qstill_error *err);

/* Sets what layers.h has of a running VM; `g` NULL: it is off. */
int livechain_mark(struct session *s, const struct qmp_graph *g,
                   struct layers *all, struct qstill_error *err);
/* The node of the disk's live chain that has `path` open, or NULL. */
const struct qmp_node *livechain_node(struct session *s,
                                      const struct qmp_graph *g,
                                      const struct vm_disk *d,
                                      const char *path);

/* BUSY in place of FAILED when QEMU says that somebody else has a file open, as
 * a backup that reads a frozen layer: it has not begun, and will when that one
 * is done. */
int livechain_refused(struct qstill_error *err);

/* Whether any node of QEMU's has that file open. */
bool livechain_has_open(struct session *s, const struct qmp_graph *g,
                        const char *path);

/* Closes the nodes of a file that is in no chain any more: those that came by
 * -blockdev or blockdev-add stay open until they are deleted, and keep what is
 * below them from being changed. */
int livechain_release(struct session *s, const struct qmp_graph *g,
                      const char *path, struct qstill_error *err);

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
