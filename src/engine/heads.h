/* SPDX-License-Identifier: MIT */
/*
 * The heads of a running VM's disks, exchanged under the devices: nodes are
 * opened, `qom-set DEVICE drive NODE` puts them in place, and those that
 * nothing uses any more are closed.
 */
#ifndef QSTILL_ENGINE_HEADS_H
#define QSTILL_ENGINE_HEADS_H

#include "base/error.h"

struct journal;
struct session;
struct vm_disk;

enum heads_which { HEADS_OLD, HEADS_NEW };

/* Whether the head of a disk can be exchanged in QEMU as it is: PRECONDITION
 * says why not. */
int heads_check(struct session *s, const struct vm_disk *d,
                uint64_t virtual_size, struct qstill_error *err);

/*
 * Opens the journal's new heads, and what QEMU has not got open of the layers
 * below them, with the options of the present heads. `tag` makes the names of
 * the nodes. The guest may run.
 */
int heads_open(struct session *s, const struct journal *j, const char *tag,
               struct qstill_error *err);

/* Puts the old or the new heads under the devices, which is fine where they
 * are already; an old one that QEMU has closed is opened again. The VM is
 * stopped. */
int heads_put(struct session *s, const struct journal *j,
              enum heads_which which, const char *tag,
              struct qstill_error *err);

/* FAILED unless QEMU has each disk of the journal that is still plugged in on
 * that head, by what session_refresh() read last. heads_put() has asked. */
int heads_verify(struct session *s, const struct journal *j,
                 enum heads_which which, struct qstill_error *err);

/* Closes nodes of this VM's layers (of `j` too, unless it is NULL), and others
 * with names that we give, that no disk uses. What QEMU does not close stays.
 */
int heads_sweep(struct session *s, const struct journal *j,
                struct qstill_error *err);

#endif
