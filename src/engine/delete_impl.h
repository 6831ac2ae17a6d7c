/* SPDX-License-Identifier: MIT */
/* The delete at work: what goes (delete_plan.c),
 * whether it may (delete_bases.c), and its going (delete.c). */
#ifndef QSTILL_ENGINE_DELETE_IMPL_H
#define QSTILL_ENGINE_DELETE_IMPL_H

#include "journal.h"
#include "name.h"
#include "paranoid.h"
#include "session.h"

struct del {
    struct qstill_store *store;
    struct qstill_job *job;
    struct arena arena;
    struct session s;
    bool session_open;
    const char *vm;
    char **snaps;
    size_t snap_count;
    struct qstill_delete_options o;
    bool *doomed;         /* by index in the tree; while planning */
    bool *doomed_damaged; /* the same of its damaged ones */
    bool any_damaged;
    char tag[ID_LEN + 1];
    struct journal j;
    struct paranoid before;
    struct qstill_delete_result result;
};

static inline size_t delete_index(const struct tree *t,
                                  const struct manifest *m)
{
    return (size_t)(m - t->nodes);
}

/* Lock, recovery, which snapshots; with --dry-run in words. */
int delete_plan_enter(void *ctx, struct qstill_error *err);

/* delete_bases.c */
struct layers;
/* A merge gives the layers of doomed ones and of their children another
 * identity: whatever was done to them behind our back would look right then. */
bool delete_merges(const struct del *c, const struct manifest *m);
/* It is doomed, and so is all that stands on it: its files are not merged. */
bool delete_only_goes(struct del *c, const struct layers *all,
                      const struct manifest *m);
/* CORRUPT, NOT_FOUND: below a layer that must be merged there is another image
 * than then, or none; not when it is forced. PRECONDITION: another than QEMU
 * has open. */
int delete_check_bases(struct del *c, const struct layers *all,
                       struct qstill_error *err);

#endif
