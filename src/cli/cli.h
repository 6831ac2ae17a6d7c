/* SPDX-License-Identifier: MIT */
/*
 * What the files of the command share: the tables that describe a verb, and
 * the context it runs in. A verb is one file that defines a `struct verb`;
 * usage, --help, completion and the manual's test are made from its tables,
 * so nothing about a verb is said twice.
 */
#ifndef QSTILL_CLI_CLI_H
#define QSTILL_CLI_CLI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "qstill.h"

#define CLEANUP(fn)            __attribute__((cleanup(fn)))
#define PRINTF_LIKE(fmt, args) __attribute__((format(printf, fmt, args)))
#define ARRAY_LEN(a)           (sizeof(a) / sizeof((a)[0]))

enum option_kind {
    OPTION_FLAG,   /* no argument */
    OPTION_TEXT,   /* any text */
    OPTION_FILE,   /* a path; completion offers files */
    OPTION_LIST,   /* any text, may be given several times */
    OPTION_NUMBER, /* 0 .. 2^32-1 */
    OPTION_SIZE,   /* bytes, with K M G T (1024) */
    OPTION_CHOICE, /* one of the words of `argument`, "a|b|c" */
};

struct option_spec {
    const char *name;     /* without the dashes; NULL ends a table */
    const char *argument; /* what it is called in usage; NULL for a flag */
    enum option_kind kind;
    bool required;
    const char *help; /* one sentence, no full stop */
};

struct operand_spec {
    const char *name; /* "VM", "SNAP", "FILE", ...; NULL ends the list */
    bool optional;
    bool repeated; /* only the last one */
};
#define OPERANDS_MAX 4
#define ALIASES_MAX  2

struct args;
struct cli;

struct verb {
    const char *name;                     /* "create", or "image map" */
    const char *aliases[ALIASES_MAX + 1]; /* NULL ends them */
    const char *summary;
    struct operand_spec operands[OPERANDS_MAX];
    const struct option_spec *options; /* NULL without any */
    int failed; /* exit status of QSTILL_E_FAILED where 1 is an answer; or 0 */
    /* 0, or a negative code with `err` set. What a caller learns from the exit
     * status beyond that goes to cli->status. */
    int (*run)(struct cli *cli, const struct args *args,
               struct qstill_error *err);
};

/* Whether `word` is another name of the verb. */
bool verb_has_alias(const struct verb *verb, const char *word);

/* All verbs, in the order of the manual; NULL ends it (verbs.c). */
extern const struct verb *const verbs[];
extern const struct option_spec global_options[];

struct cli {
    const struct verb *verb; /* NULL before it is known */
    const char *store_dir;   /* --store, or NULL */
    bool json;
    bool quiet;
    bool verbose;
    bool help;
    bool version;
    bool bar_drawn;             /* an unfinished line stands on stderr */
    FILE *say;                  /* for notes and progress: say.h, or stderr */
    int status;                 /* exit status of a verb that returned 0 */
    struct qstill_store *store; /* opened by cli_store() */
};

/* The store of --store, opened once; it belongs to `cli`. */
int cli_store(struct cli *cli, struct qstill_store **out,
              struct qstill_error *err);

/* Sets `err` to QSTILL_E_USAGE and points to the verb's --help. */
int cli_usage(const struct cli *cli, struct qstill_error *err, const char *fmt,
              ...) PRINTF_LIKE(3, 4);

/* Sets `err`, without a hint. Both return the code. */
int cli_fail(struct qstill_error *err, int code, const char *fmt, ...)
    PRINTF_LIKE(3, 4);

#endif
