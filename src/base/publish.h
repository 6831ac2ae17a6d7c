/* SPDX-License-Identifier: MIT */
/*
 * Durability lives here: write aside, sync, rename, sync the parent. After a
 * call returned 0 the new name survives a power cut; when it failed, the old
 * content still stands under it.
 */
#ifndef QSTILL_BASE_PUBLISH_H
#define QSTILL_BASE_PUBLISH_H

#include <stdbool.h>

#include "error.h"

/* Replaces (or makes) dirfd/name, 0600, with the given bytes. */
int publish_bytes(int dirfd, const char *name, const void *data, size_t len,
                  struct qstill_error *err);

/* The same, with the room of the file fromfd/from, which takes the name: for
 * when there is no other room. On the same file system; it may be left with
 * other content, or shorter, when that fails. */
int publish_with(int fromfd, const char *from, int dirfd, const char *name,
                 const void *data, size_t len, struct qstill_error *err);

/* A name that publish_bytes() writes to before its rename: a leftover, when
 * nobody is writing. */
bool publish_is_aside(const char *name);

/* Renames dirfd/from to dirfd/to (both in the same directory); an existing
 * target is BUSY unless `replace` says otherwise. */
enum publish_replace { PUBLISH_NEW, PUBLISH_REPLACE };
int publish_rename(int dirfd, const char *from, const char *to,
                   enum publish_replace replace, struct qstill_error *err);

/* Unlinks and makes it durable; a name that is gone already is fine. */
int publish_unlink(int dirfd, const char *name, struct qstill_error *err);
/* The same, durable when the directory is synced. */
int publish_unlink_later(int dirfd, const char *name, struct qstill_error *err);

/* fsync of a directory. */
int publish_sync_dir(int dirfd, struct qstill_error *err);

#endif
