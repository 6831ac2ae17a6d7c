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
/* By id, else by name (names are unique within a VM): NOT_FOUND, and its code
 * for the id of a damaged one. */
int tree_resolve(const struct tree *t, const char *snap, struct manifest **out,
                 struct qstill_error *err);
size_t tree_children(const struct tree *t, const char *id);
/* The snapshot that names `path` as its frozen layer of `disk`, or NULL. */
struct manifest *tree_owner(const struct tree *t, const char *path);

#endif
