/* SPDX-License-Identifier: MIT */
/*
 * Merging frozen layers of a running VM without writing a file that QEMU has
 * open: the layer that stays and those that go are merged into a new file, and
 * QEMU is given that instead.
 *
 *   open      reopen of the layer above for writing: BUSY when others read it,
 *             and nothing has been done
 *   merge     into the new file, durable
 *   add       blockdev-add of it, over what the old layers stood on
 *   reopen    of the layer above, with the new node below it
 *   header    change-backing-file: the layer above names the new file on disk
 *   close     reopen of the layer above for reading again
 *   verify    QEMU's graph and that header, read back
 *   manifest  the snapshot names the new file; the old one is hidden
 *
 * Old and new file read the same and both are there until all of that is done
 * and durable: whoever dies in between leaves a right disk, and recovery goes
 * on or takes the new file away. The layer above may be a node whose name QEMU
 * made, or one with options that no query tells: see qmp_node_reopen().
 */
#ifndef QSTILL_ENGINE_LIVESWAP_H
#define QSTILL_ENGINE_LIVESWAP_H

#include "base/error.h"

struct collapse;
struct journal;
struct layer;
struct session;
struct step;
struct vm_disk;

/* Whether what stands on this layer in the live chain can be given another
 * backing file. */
bool liveswap_possible(const struct layer *layer);

int liveswap(struct collapse *c, struct vm_disk *d, const struct step *st,
             struct qstill_error *err);

/* What a process or a QEMU that died in it left behind. */
int liveswap_settle(struct session *s, struct journal *j,
                    struct qstill_error *err);

#endif
