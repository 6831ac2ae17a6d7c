/* SPDX-License-Identifier: MIT */
/* All snapshots of a VM, loaded at once: oldest first, parents known. */
#ifndef QSTILL_ENGINE_TREE_H
#define QSTILL_ENGINE_TREE_H

#include "manifest.h"

/* A snapshot whose manifest cannot be used: CORRUPT, or PRECONDITION when it is
 * whole and of a version that we do not know. */
struct tree_damage {
    int code;
    char *id; /* its directory's name */
    char *message;
    char *hint; /* may be "" */
};

struct tree {
    size_t count;
    struct manifest *nodes;
    size_t damaged_count;
    struct tree_damage *damaged;
};

/*
 * Loads every STORE/VM/snapshots/ID. One whose manifest is damaged or of
 * another version, whose id is not its directory's name, or that is its own
 * ancestor, is no node: it is among the damaged, and a known parent still. One
 * whose parent is not there is a root, with `lost_parent` set: its parent was
 * deleted while it was damaged itself, or somebody removed that one's
 * directory.
 *
 * Which layers a damaged one needs is not known: as long as there is one,
 * nothing is merged and no layer is removed (collapse.c).
 */
int tree_load(int vmfd, struct tree *out, struct qstill_error *err);
void tree_fini(struct tree *t);

struct manifest *tree_find(const struct tree *t, const char *id);
const struct tree_damage *tree_find_damaged(const struct tree *t,
                                            const char *id);
/* What it is called in a sentence: "damaged". */
const char *tree_damage_word(const struct tree_damage *d);
/* The next one of that name behind `after` (NULL: the first), or NULL. */
struct manifest *tree_named(const struct tree *t, const char *name,
                            const struct manifest *after);
/* Whose name or id it is: nobody else is to get it. NULL: it is free. */
struct manifest *tree_taken(const struct tree *t, const char *name);
/* By id, else by name: NOT_FOUND, its code for the id of a damaged one, and
 * PRECONDITION for a name that several have: no verb gives one away twice, but
 * a manifest can be brought back from a backup. */
int tree_resolve(const struct tree *t, const char *snap, struct manifest **out,
                 struct qstill_error *err);
size_t tree_children(const struct tree *t, const char *id);
/* The snapshot that names `path` as its frozen layer of `disk`, or NULL. */
struct manifest *tree_owner(const struct tree *t, const char *path);

#endif
