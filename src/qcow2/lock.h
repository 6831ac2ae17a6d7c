/* SPDX-License-Identifier: MIT */
/*
 * QEMU's image locks: shared OFD locks on single bytes that say which use an
 * opener makes of the image and which use by others it does not bear. They
 * live as long as the open file description; closing the fd drops them. Where
 * the filesystem has no OFD locks there is no locking, as with QEMU.
 */
#ifndef QSTILL_QCOW2_LOCK_H
#define QSTILL_QCOW2_LOCK_H

#include "base/error.h"

enum image_lock {
    /* others may read, nobody may write: as QEMU with a backing file */
    IMAGE_LOCK_READ,
    /* we write; nobody else may open it but with --force-share */
    IMAGE_LOCK_WRITE,
    /* we tear it: not even --force-share readers may look at the data */
    IMAGE_LOCK_EXCLUSIVE,
};

/* BUSY when another process (a VM, qemu-img, another qstill) uses the image in
 * a way that does not go together with ours. A stronger lock can follow a
 * weaker one on the same fd. */
int image_lock(int fd, const char *path, enum image_lock lock,
               struct qstill_error *err);
/* Only looks whether it could be had, so that nobody who is just opening the
 * image is in the way of it. A lock of our own on another fd counts. */
int image_lock_look(int fd, const char *path, enum image_lock lock,
                    struct qstill_error *err);

#endif
