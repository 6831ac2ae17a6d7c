/* SPDX-License-Identifier: MIT */
/* All snapshots of a VM, loaded at once: oldest first, parents known. */
#ifndef QSTILL_ENGINE_TREE_H
#define QSTILL_ENGINE_TREE_H

#include "manifest.h"

struct tree {
    size_t count;
    struct manifest *nodes;
};

/*
 * Loads every STORE/VM/snapshots/ID. CORRUPT names the snapshot whose
 * manifest is damaged, whose id is not its directory's name, whose parent is
 * unknown, or a loop of parents.
 */
int tree_load(int vmfd, struct tree *out, struct qstill_error *err);
void tree_fini(struct tree *t);

struct manifest *tree_find(const struct tree *t, const char *id);
/* By id, else by name (names are unique within a VM): NOT_FOUND. */
int tree_resolve(const struct tree *t, const char *snap, struct manifest **out,
                 struct qstill_error *err);
size_t tree_children(const struct tree *t, const char *id);
/* The snapshot that names `path` as its frozen layer of `disk`, or NULL. */
struct manifest *tree_owner(const struct tree *t, const char *path);

#endif
