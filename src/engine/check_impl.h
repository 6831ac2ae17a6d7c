/* SPDX-License-Identifier: MIT */
/* Within check.c and check_store.c. */
#ifndef QSTILL_ENGINE_CHECK_IMPL_H
#define QSTILL_ENGINE_CHECK_IMPL_H

#include "base/arena.h"
#include "modes.h"

struct session;

#define PROBLEMS_MAX 256

struct report_obj {
    struct qstill_check_report report; /* first: the public pointer */
    struct arena arena;
    struct qstill_problem problems[PROBLEMS_MAX];
    struct qstill_capture_mode modes[MODE_COUNT];
};

/* Told once. */
void problem(struct report_obj *o, const char *code, const char *message,
             const char *hint);
/* Of an error, which is cleared; none is none. */
void problem_of(struct report_obj *o, const char *code, struct qstill_error *e);

void check_store(struct report_obj *o, struct session *s);
/* What the disks were made on, under the VM that runs, too. */
int check_bases(struct report_obj *o, struct session *s,
                struct qstill_error *err);
/* A snapshot whose layer others need cannot be deleted. */
int check_shared(struct report_obj *o, struct session *s,
                 struct qstill_error *err);

#endif
