/* SPDX-License-Identifier: MIT */
/*
 * What a revert or a delete took away and undo can bring back.
 *
 *   revert   the heads it left: files beside the disks, noted in vm.json
 *   delete   (only when asked for) the layers stay unmerged, the directories
 *            are named snapshots/.ID.trash, and vm.json knows both and which
 *            children got another parent
 *   undo     of a revert: the heads it left, as a revert's, but for a redo
 *
 * Undo takes the newest entry that is not for a redo, so that the undo of an
 * undo does not hide what was before it; only when there is none it takes the
 * newest of those. A redo's own heads are for undo again.
 *
 * An entry says how many more operations it outlives: create, revert, delete
 * and undo count it down when they are sure to succeed; but undo does not count
 * those for a redo down. At 0 it goes: layers become hidden ones, directories
 * .ID.gone, and the collapse does the rest.
 * Layers of the trash are never merged nor written.
 */
#ifndef QSTILL_ENGINE_TRASH_H
#define QSTILL_ENGINE_TRASH_H

#include "base/buf.h"
#include "base/error.h"

struct journal;
struct manifest;
struct session;
struct vm_trash;

/* One entry an operation, so VM_TRASH_MAX is never reached. */
#define TRASH_KEEP_MAX 32
/* What a revert keeps when nobody says otherwise: until the next operation. */
#define TRASH_KEEP_REVERT 1

/* The option keep_trash of the public header: 0 is the default, negative is
 * none; USAGE when it is out of bounds. */
int trash_keep_option(int option, uint64_t by_default, uint64_t *out,
                      struct qstill_error *err);

#define TRASH_NAME_LEN 80
void trash_name(const char *id, char out[TRASH_NAME_LEN]);

/* In memory; the caller saves the record: */

/* Counts the entries down, once for each operation's tag. */
int trash_age(struct session *s, const char *tag, struct qstill_error *err);
int trash_age_undo(struct session *s, const char *tag,
                   struct qstill_error *err);
/* The heads that the journal's operation leaves become trash, or hidden layers
 * when it keeps none. A head that a snapshot names is left alone. */
int trash_put_heads(struct session *s, const struct journal *j, bool redo,
                    struct qstill_error *err);
/* An entry for the snapshots of a delete; the directories are the caller's. */
int trash_put_snapshots(struct session *s, const struct journal *j,
                        struct qstill_error *err);

/* Whose it is: "revert", "delete" or "undo". */
const char *trash_whose(const struct vm_trash *t);
/* Says of each entry that goes with the next operation, an undo of `back` or
 * (NULL) another one, that nothing will bring it back. */
void trash_say_last(const struct session *s, const struct vm_trash *back,
                    struct buf *text);
struct vm_trash *trash_find(struct session *s, const char *tag);
/* A manifest that comes back: what was done to its layers in the trash is found
 * as in any snapshot's. *at: where they are searched for in the entry, which is
 * in the order of its ids; 0 at first. */
int trash_identify_again(const struct vm_trash *t, size_t *at,
                         struct manifest *m, struct qstill_error *err);
/* CORRUPT when a file of the entry is not what was put in. */
int trash_check(const struct session *s, const struct vm_trash *t,
                struct qstill_error *err);
/* Of what nobody has open and whose identity is not known, it is from now on,
 * in memory; whether that was any. */
bool trash_identify(struct session *s);
/* The files of an entry are about to be written; durable. */
int trash_forget(struct session *s, const char *tag, struct qstill_error *err);
bool trash_has_expired(const struct session *s);
/* Of a layer that is trash: whether it stays so when the next operation is
 * done. */
bool trash_outlives(const struct session *s, const char *path);

/* Entries that are at 0 become hidden layers and .ID.gone; durable, and right
 * to run again. */
int trash_expire(struct session *s, struct qstill_error *err);
/* Ends the operation of the journal that stands: removes it, or makes it one
 * that takes away what has expired, and does that. */
int trash_end(struct session *s, struct buf *text, struct qstill_error *err);
/* All of it goes, whatever it was to outlive. */
int trash_empty(struct session *s, struct buf *text, struct qstill_error *err);

#endif
