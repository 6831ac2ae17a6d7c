/* SPDX-License-Identifier: MIT */
/*
 * Descriptors that QEMU has from us (add-fd), each for one command or for the
 * time of a capture. When we are killed meanwhile they stay: QEMU drops a set
 * only when its last monitor goes, and from 9.2 on not even then.
 */
#ifndef QSTILL_ENGINE_LENT_H
#define QSTILL_ENGINE_LENT_H

#define LENT_USERFAULTFD "qstill userfaultfd"
#define LENT_DEVICES     "qstill device state"
#define LENT_VMSTATE     "qstill-vmstate"

struct session;

/* Takes back what a process that died has left in the QEMU that the session is
 * connected to, best effort. Nothing without the VM's lock: it may be of one
 * that lives. Not while an operation of ours has lent something. */
void lent_take_back(const struct session *s);

#endif
