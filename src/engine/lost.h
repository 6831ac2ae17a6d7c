/* SPDX-License-Identifier: MIT */
/*
 * The layers of a damaged snapshot that is deleted: what its manifest says can
 * no longer be read as a whole. A file goes when a word of the manifest still
 * names it and the file itself is one of ours: named as create names them, an
 * overlay of the VM's layers, and nobody's else. All others stay, and are told.
 */
#ifndef QSTILL_ENGINE_LOST_H
#define QSTILL_ENGINE_LOST_H

#include <stdbool.h>

#include "base/error.h"

struct layers;
struct session;

/* Whether a file that is about to be removed is a layer of ours, by what the
 * file itself says: its name, and that it stands on the disk's chain. */
bool lost_is_ours(struct session *s, const struct layers *all, const char *disk,
                  const char *path);

/* Hides what the damaged manifest in the directory snapfd still names. */
int lost_hide(struct session *s, int snapfd, struct qstill_error *err);

/* Notes each file that looks like a layer of this VM, and that no snapshot, no
 * disk and no undo needs. For when no damaged snapshot is left. */
int lost_tell(struct session *s, struct qstill_error *err);

#endif
