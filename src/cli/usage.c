/* SPDX-License-Identifier: MIT */
/* Usage and --help, made from the tables of the verbs, and the verb "help". */
#include "usage.h"

#include <string.h>

#include "args.h"

#define LINE_WIDTH   79
#define NAME_COLUMN  12 /* verbs */
#define OPTION_WIDTH 24 /* "--longest-option ARG" */

const struct option_spec global_options[] = {
    {"store", "DIR", OPTION_FILE, false,
     "the store, instead of $QSTILL_STORE or the user's default"},
    {"json", NULL, OPTION_FLAG, false, "print results and errors as JSON"},
    {"verbose", NULL, OPTION_FLAG, false, "(-v) say more on standard error"},
    {"quiet", NULL, OPTION_FLAG, false, "(-q) no progress and no notes"},
    {"version", NULL, OPTION_FLAG, false, "print the version"},
    {"help", NULL, OPTION_FLAG, false, "(-h) help, also of one verb"},
    {0},
};

/* One "[--option ARG]" or "VM" of a synopsis, on a new line when it does not
 * fit; returns the column reached. */
static size_t put_item(FILE *f, size_t column, size_t indent, const char *item)
{
    size_t len = strlen(item);

    if (column + 1 + len > LINE_WIDTH) {
        fprintf(f, "\n%*s", (int)indent, "");
        column = indent;
    }
    fprintf(f, " %s", item);
    return column + 1 + len;
}

static void synopsis(FILE *f, const struct verb *verb)
{
    size_t indent = (size_t)fprintf(f, "usage: qstill %s", verb->name);
    size_t column = indent;
    char item[160];

    for (size_t i = 0; i < OPERANDS_MAX && verb->operands[i].name; i++) {
        const struct operand_spec *o = &verb->operands[i];

        snprintf(item, sizeof(item), "%s%s%s%s", o->optional ? "[" : "",
                 o->name, o->repeated ? "..." : "", o->optional ? "]" : "");
        column = put_item(f, column, indent, item);
    }
    for (const struct option_spec *o = verb->options; o && o->name; o++) {
        snprintf(item, sizeof(item), "%s--%s%s%s%s%s", o->required ? "" : "[",
                 o->name, o->argument ? " " : "",
                 o->argument ? o->argument : "", o->required ? "" : "]",
                 o->kind == OPTION_LIST ? "..." : "");
        column = put_item(f, column, indent, item);
    }
    fputc('\n', f);
}

/* The words of `text` from `indent` on, broken before the line's end. */
static void put_wrapped(FILE *f, size_t indent, const char *text)
{
    size_t column = indent;

    while (*text) {
        size_t word = strcspn(text, " ");

        if (column > indent && column + 1 + word > LINE_WIDTH) {
            fprintf(f, "\n%*s", (int)indent, "");
            column = indent;
        }
        column += (size_t)fprintf(f, "%s%.*s", column > indent ? " " : "",
                                  (int)word, text);
        text += word + (text[word] == ' ');
    }
    fputc('\n', f);
}

static void option_lines(FILE *f, const struct option_spec *table)
{
    for (const struct option_spec *o = table; o && o->name; o++) {
        char left[160];
        int width =
            snprintf(left, sizeof(left), "--%s%s%s", o->name,
                     o->argument ? " " : "", o->argument ? o->argument : "");

        if (width > OPTION_WIDTH)
            fprintf(f, "  %s\n  %*s  ", left, OPTION_WIDTH, "");
        else
            fprintf(f, "  %-*s  ", OPTION_WIDTH, left);
        put_wrapped(f, OPTION_WIDTH + 4, o->help);
    }
}

void usage_verb(FILE *f, const struct verb *verb)
{
    synopsis(f, verb);
    fprintf(f, "\n%s.\n", verb->summary);
    for (const char *const *a = verb->aliases; *a; a++)
        fprintf(f, "Also called '%s'.\n", *a);
    if (verb->options) {
        fputc('\n', f);
        option_lines(f, verb->options);
    }
    fputs("\nThe options of all verbs: qstill --help. Manual: qstill(1).\n", f);
}

void usage_all(FILE *f)
{
    fputs("usage: qstill [--store DIR] [--json] [-v|-q] VERB ...\n\n"
          "Snapshots of virtual machines under plain QEMU: disks and live "
          "memory.\n\n",
          f);
    for (const struct verb *const *v = verbs; *v; v++)
        fprintf(f, "  %-*s  %s\n", NAME_COLUMN + 2, (*v)->name, (*v)->summary);
    fputs("\nOptions, before or after the verb:\n", f);
    option_lines(f, global_options);
    fputs("\nqstill VERB --help tells the options of a verb.\n", f);
}

static const struct verb *verb_of_words(const struct args *args)
{
    const char *first = args_operand(args, 0), *second = args_operand(args, 1);
    char name[64];

    snprintf(name, sizeof(name), "%s%s%s", first, second ? " " : "",
             second ? second : "");
    for (const struct verb *const *v = verbs; *v; v++)
        if (strcmp((*v)->name, name) == 0 || verb_has_alias(*v, name))
            return *v;
    return NULL;
}

static int help_run(struct cli *cli, const struct args *args,
                    struct qstill_error *err)
{
    const struct verb *verb;

    if (!args_operand(args, 0)) {
        usage_all(stdout);
        return 0;
    }
    verb = verb_of_words(args);
    if (!verb)
        return cli_usage(cli, err, "unknown verb '%s'", args_operand(args, 0));
    usage_verb(stdout, verb);
    return 0;
}

const struct verb verb_help = {
    .name = "help",
    .summary = "Explains a verb",
    .operands = {{"VERB", true, true}},
    .run = help_run,
};
