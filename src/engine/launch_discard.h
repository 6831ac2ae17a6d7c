/* SPDX-License-Identifier: MIT */
/* How a disk's file is read, and whether the guest's discards are handed down.
 * No query tells them, overlays have them from the node they were put on, and a
 * reopened or new node does not have them unless they are said again. */
#ifndef QSTILL_ENGINE_LAUNCH_DISCARD_H
#define QSTILL_ENGINE_LAUNCH_DISCARD_H

struct session;
struct vm_disk;

/* "qcow2" or "raw", the driver of the image's own node (-blockdev); NULL when
 * the VM's command line does not tell. */
const char *launch_format(struct session *s, const struct vm_disk *d);
/* "ignore" or "unmap"; NULL when the VM's command line does not tell. */
const char *launch_discard(struct session *s, const struct vm_disk *d);
/* "off", "on" or "unmap"; NULL as above. QEMU does tell this one, but an
 * overlay does not have it from the node that it was put on. */
const char *launch_detect_zeroes(struct session *s, const struct vm_disk *d);
/* "threads", "native" or "io_uring"; NULL as above. */
const char *launch_aio(struct session *s, const struct vm_disk *d);

#endif
