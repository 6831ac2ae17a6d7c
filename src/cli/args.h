/* SPDX-License-Identifier: MIT */
/* The parsed command line of one verb, read by the names of its tables. */
#ifndef QSTILL_CLI_ARGS_H
#define QSTILL_CLI_ARGS_H

#include "cli.h"

struct arg_given {
    const struct option_spec *option;
    const char *text;
    uint64_t number; /* of NUMBER and SIZE */
};

struct args {
    struct arg_given *given;
    size_t given_count;
    const char **operands;
    size_t operand_count;
};

/*
 * Parses the command line: global options into `cli`, the verb into
 * cli->verb, the rest into `args`, all of it checked against the tables
 * (operands too, unless --help or --version was given). The texts stay those
 * of argv. On failure cli->json is still right, so that the error can be told
 * in the way that was asked for.
 */
int args_parse(struct args *args, struct cli *cli, int argc, char **argv,
               struct qstill_error *err);
void args_fini(struct args *args);

/* Operand `i`, or NULL when it was left out. */
const char *args_operand(const struct args *args, size_t i);

/* The readers of options. `name` must be in the verb's table with the right
 * kind. Not given: false, NULL, 0. The last one given counts. */
bool args_flag(const struct args *args, const char *name);
const char *args_text(const struct args *args, const char *name);
uint64_t args_number(const struct args *args, const char *name);

/* --keep-trash N of revert and delete, as the library has it: 0 when it was
 * not given, negative for N = 0. */
int args_keep_trash(const struct args *args);

/* The values of a LIST option in their order: an array for free(), NULL when
 * there are none (*count is 0) or memory is out (*count is not). */
const char **args_list(const struct args *args, const char *name,
                       size_t *count);

/* Bytes with K M G T (also KiB, KB, k; all 1024), fractions allowed ("1.5G").
 * -1 when `text` is no size or too large. */
int args_size(const char *text, uint64_t *out);

#endif
