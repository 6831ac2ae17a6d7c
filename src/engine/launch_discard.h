/* SPDX-License-Identifier: MIT */
/* Whether a disk hands the guest's discards down. No query tells it, overlays
 * have it from the node they were put on, and a reopened node loses it unless
 * it is said again. */
#ifndef QSTILL_ENGINE_LAUNCH_DISCARD_H
#define QSTILL_ENGINE_LAUNCH_DISCARD_H

struct session;
struct vm_disk;

/* "ignore" or "unmap"; NULL when the VM's command line does not tell. */
const char *launch_discard(struct session *s, const struct vm_disk *d);

#endif
