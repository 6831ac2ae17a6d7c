/* SPDX-License-Identifier: MIT */
/*
 * Frozen layers are immutable (chattr +i) where the filesystem has that and we
 * may: a VM that is started on one then fails to start, instead of ruining
 * every snapshot above it. QEMU opens backing files for reading only.
 *
 * Set when a snapshot is published, and again at the end of everything that
 * may have taken it away; taken away, under a journal, from what a merge is
 * going to write, rename or remove. Where it cannot be set nothing is said:
 * changes are found by identity (layers.h) all the same.
 */
#ifndef QSTILL_ENGINE_PROTECT_H
#define QSTILL_ENGINE_PROTECT_H

#include "base/error.h"

struct layers;
struct manifest;
struct session;

/* Whether the file has the attribute; false where there is none. */
bool protect_has(const char *path);
void protect_set(const char *path);
/* Takes it away; fine where it is not. PERMISSION with what to do. */
int protect_clear(const char *path, struct qstill_error *err);

/* The layers of one snapshot, unless it was made with --no-protect. */
void protect_snapshot(const struct manifest *m);
/* Those of all snapshots. */
void protect_all(const struct session *s);
/* Takes it away from what a merge of hidden layers may touch: these, and two
 * layers above them. */
int protect_open_hidden(const struct layers *all, struct qstill_error *err);

#endif
