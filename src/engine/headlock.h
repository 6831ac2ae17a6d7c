/* SPDX-License-Identifier: MIT */
/*
 * The heads of a VM for which nobody answers at its socket. It is off only when
 * nobody writes to them: a QEMU whose socket lost its name runs on, and so may
 * a qemu-nbd or a guestfish. QEMU's own locks tell (qcow2/lock.h), and of a VM
 * that has locking=off on its command line the files that processes have open.
 */
#ifndef QSTILL_ENGINE_HEADLOCK_H
#define QSTILL_ENGINE_HEADLOCK_H

#include "base/error.h"

struct session;

/* BUSY when somebody writes to a head, with who it is as far as can be seen.
 * A QEMU that has closed its socket may still be ending: a verb that holds the
 * VM's lock waits for that a moment. */
int headlock_look(const struct session *s, struct qstill_error *err);

/* The same of a VM whose QEMU has been migrated from and still answers: who
 * took it over, on this host or by a shared filesystem that passes locks on,
 * has its heads. 0 for any other VM. */
int headlock_moved(const struct session *s, struct qstill_error *err);

/* Keeps writers away from the heads, until they are released: whoever opened
 * one now would go on with a file that is frozen or gone in a moment. */
int headlock_take(struct session *s, struct qstill_error *err);
void headlock_release(struct session *s);

#endif
