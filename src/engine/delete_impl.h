/* SPDX-License-Identifier: MIT */
/* The delete at work: what goes (delete_plan.c), and its going (delete.c). */
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

/* Lock, recovery, which snapshots; with --dry-run in words. */
int delete_plan_enter(void *ctx, struct qstill_error *err);

#endif
