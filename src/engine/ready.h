/* SPDX-License-Identifier: MIT */
/*
 * What must be true of a VM and its files before a verb changes anything; the
 * verbs ask before they begin, check asks to tell. Each says what is in the way
 * and how to mend it, and changes nothing.
 */
#ifndef QSTILL_ENGINE_READY_H
#define QSTILL_ENGINE_READY_H

#include <stdbool.h>

#include "base/error.h"

struct session;
struct vm_disk;

/* In a folder: what a new head needs to begin with. */
#define READY_HEAD_ROOM (64u << 10)

/* Not paused by anybody: the guest, or QEMU, came to a halt by itself. */
bool ready_has_halted(const struct session *s);

/* Of a guest that panicked, met an I/O error, ... the disks are worth keeping,
 * the memory is not. */
int ready_state(const struct session *s, bool memory, struct qstill_error *err);

/* Nobody migrates the VM, or has: whoever takes it over knows the heads of
 * before, and would write to files that are frozen or gone. */
#define READY_MIGRATING "a migration of this VM is under way"
int ready_settled(const struct session *s, struct qstill_error *err);

/* QEMU can write to its images, or will when it is asked to: before 10.0 it has
 * no way back from a migration but `cont`. */
int ready_images(const struct session *s, struct qstill_error *err);

/* NOT_FOUND, CORRUPT: a head that no QEMU could open. */
int ready_head(const struct vm_disk *d, struct qstill_error *err);

/* The folders of all new heads, disk_dir or (NULL) each disk's own: files can
 * be made there, with `room` bytes for each head. PERMISSION, NO_SPACE. */
int ready_folders(struct session *s, const char *disk_dir, uint64_t room,
                  struct qstill_error *err);

/* PRECONDITION: a head's name is too long for the header of an overlay. */
int ready_names(const struct session *s, struct qstill_error *err);

/* Files in folders that were looked at already; they outlive this. */
struct ready_seen {
    const char *paths[16];
    size_t count;
};
/* The folder of a layer, unless it was seen: merges make files there. */
int ready_beside(struct ready_seen *seen, const char *path,
                 struct qstill_error *err);

/* The VM's folder in the store. */
int ready_store(const struct session *s, uint64_t room,
                struct qstill_error *err);

/* BUSY: somebody's job (backup, mirror, ...) works on a disk of the VM. QEMU
 * may allow a snapshot all the same, if the disk is none of the record. */
int ready_jobs(const struct session *s, struct qstill_error *err);

#endif
