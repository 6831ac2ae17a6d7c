/* SPDX-License-Identifier: MIT */
/*
 * A QEMU command line cut into options: "-opt", "-opt value", or a disk image
 * that stands alone. Put together again it is what it was, but for what was
 * changed.
 */
#ifndef QSTILL_ENGINE_LAUNCH_ARGS_H
#define QSTILL_ENGINE_LAUNCH_ARGS_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

struct launch_arg {
    char *word;      /* as it was spelled ("--drive"); NULL: a lone image */
    const char *opt; /* in `word`, without dashes ("drive"); or "" */
    char *value;     /* NULL when the option has none */
};

struct launch_args {
    struct launch_arg *v;
    size_t count;
    size_t cap;
};

/* argv[0] is skipped. PRECONDITION when there are too many. */
int launch_args_parse(struct launch_args *out, char *const *argv,
                      struct qstill_error *err);
void launch_args_fini(struct launch_args *args);

/* Appends an option; `value` may be NULL. */
int launch_args_add(struct launch_args *args, const char *word,
                    const char *value, struct qstill_error *err);
void launch_args_drop(struct launch_args *args, size_t i);
/* Makes it an option of another word. */
int launch_arg_name(struct launch_arg *arg, const char *word,
                    struct qstill_error *err);
/* Takes the malloc'ed `value` over. */
void launch_arg_replace(struct launch_arg *arg, char *value);

bool launch_arg_is(const struct launch_arg *arg, const char *opt);

/* A malloc'ed argv that begins with `exe` and ends with NULL. */
int launch_args_emit(const struct launch_args *args, const char *exe,
                     char ***out, struct qstill_error *err);

#endif
