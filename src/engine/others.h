/* SPDX-License-Identifier: MIT */
/*
 * Who else stands on a VM's layers: overlays in the folders of its layers that
 * are none of them (a clone, a backup), and the disks of the store's other VMs,
 * wherever they are. A layer that goes would take their backing file away, one
 * that is folded into would change what they read.
 *
 * Not found are overlays elsewhere that no VM of the store has, and images that
 * are not there now (another host, not mounted). While a QEMU runs on those,
 * its lock on the file says so: layer_remove_unused().
 */
#ifndef QSTILL_ENGINE_OTHERS_H
#define QSTILL_ENGINE_OTHERS_H

#include <stdbool.h>

#include "base/error.h"

struct children_seen;
struct layer;
struct layers;
struct session;

/* Sets `other` and `other_fixed` of all layers, or `unsure` of them all when
 * something cannot be looked at. Each folder is read once; `seen` may be NULL.
 */
int others_mark(struct session *s, struct layers *all,
                struct children_seen *seen, struct qstill_error *err);

/* Whether a snapshot's layer could not go for them. A merge of ours gives an
 * overlay of the same folder what it needs, while the VM is off. */
bool others_hold(const struct session *s, const struct layer *l);

/* What is to be done about them. */
#define OTHERS_HINT                                                            \
    "give that image a copy of its own (qstill image flatten, qemu-img "       \
    "rebase -b ''), or remove it"

#endif
