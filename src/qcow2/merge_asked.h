/* SPDX-License-Identifier: MIT */
/*
 * Which layers the merges of one top were asked to drop. Those that are no
 * neighbours go one after another, so a merge can end with some gone and the
 * others not. Then this list stays, as all there is in the journal: a command
 * that names what has gone, too, is right. So is one that names an overlay
 * which stands on nothing since it has taken in what it needs. The list ends
 * with the first merge or recovery after which none of the layers is in the
 * chain.
 */
#ifndef QSTILL_QCOW2_MERGE_ASKED_H
#define QSTILL_QCOW2_MERGE_ASKED_H

#include "merge_journal.h"

/* Unless it is in the list. `id` NULL: it had gone before. */
int merge_asked_add(struct merge_asked *a, const char *path,
                    const struct merge_id *id, struct qstill_error *err);
/* The same of an overlay; it is known by its name, since it may become another
 * file. */
int merge_asked_add_child(struct merge_asked *a, const char *path,
                          struct qstill_error *err);
/* Whether an overlay of the list stands on nothing. */
bool merge_asked_is_alone(const struct io *io, const struct merge_asked *a,
                          const char *path);
/* Whether a path that nothing has any more is in the list. */
bool merge_asked_has_gone(const struct merge_asked *a, const char *path);

/* Nothing is under way: removes the journal, or leaves it with this list. */
int merge_journal_end(struct merge_journal *j, struct qstill_error *err);
/* Does that with each in a directory that has but a list, and that nobody has
 * at hand; no harm if it fails. */
void merge_journal_end_idle(const struct io *io, int dirfd);

#endif
