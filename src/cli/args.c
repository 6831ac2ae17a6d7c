/* SPDX-License-Identifier: MIT */
/*
 * The command line against the option tables. Global options may stand before
 * or after the verb, a verb's own only after it; "--" ends them. No
 * abbreviations: scripts that use one would break when an option is added.
 */
#include "args.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "closest.h"

struct parser {
    struct args *args;
    struct cli *cli;
    char **argv;
    int argc;
    int next; /* index of the next word */
    struct qstill_error *err;
};

int args_size(const char *text, uint64_t *out)
{
    static const char units[] = "KMGT";
    uint64_t whole, part = 0, scale = 1, unit = 1;
    const char *at;
    char *end, upper;

    if (text[0] < '0' || text[0] > '9')
        return -1;
    errno = 0;
    whole = strtoull(text, &end, 10);
    if (errno)
        return -1;
    if (*end == '.') {
        for (end++; *end >= '0' && *end <= '9'; end++) {
            if (scale >= 1000000)
                return -1;
            part = part * 10 + (uint64_t)(*end - '0');
            scale *= 10;
        }
        if (scale == 1)
            return -1;
    }
    upper = *end & ~0x20;
    at = upper ? strchr(units, upper) : NULL;
    if (at) {
        unit = (uint64_t)1 << (10 * (at - units + 1));
        end++;
        if (*end == 'i')
            end++;
    }
    if (*end == 'B')
        end++;
    if (*end || (scale > 1 && unit == 1) || whole > UINT64_MAX / unit)
        return -1;
    /* part < 10^6 and unit <= 2^40, so the product fits */
    *out = whole * unit + part * unit / scale;
    return 0;
}

static const struct option_spec *table_find(const struct option_spec *table,
                                            const char *name, size_t len)
{
    for (; table && table->name; table++)
        if (strlen(table->name) == len && memcmp(table->name, name, len) == 0)
            return table;
    return NULL;
}

static bool word_in_choices(const char *word, const char *choices)
{
    size_t len = strlen(word);

    while (*choices) {
        size_t n = strcspn(choices, "|");

        if (n == len && memcmp(word, choices, n) == 0)
            return true;
        choices += n + (choices[n] == '|');
    }
    return false;
}

static int check_value(struct parser *p, struct arg_given *g)
{
    const struct option_spec *o = g->option;
    char *end;

    switch (o->kind) {
    case OPTION_NUMBER:
        errno = 0;
        g->number = strtoull(g->text, &end, 10);
        if (errno || *end || g->text[0] < '0' || g->text[0] > '9' ||
            g->number > UINT32_MAX)
            return cli_usage(p->cli, p->err, "--%s: '%s' is not a number",
                             o->name, g->text);
        return 0;
    case OPTION_SIZE:
        if (args_size(g->text, &g->number) < 0)
            return cli_usage(p->cli, p->err,
                             "--%s: '%s' is not a size (as 4096, 64K, 1.5G)",
                             o->name, g->text);
        return 0;
    case OPTION_CHOICE:
        if (!word_in_choices(g->text, o->argument))
            return cli_usage(p->cli, p->err, "--%s: '%s' is none of %s",
                             o->name, g->text, o->argument);
        return 0;
    default:
        return 0;
    }
}

static void set_global(struct cli *cli, const struct arg_given *g)
{
    static const struct {
        const char *name;
        size_t offset;
    } flags[] = {
        {"json", offsetof(struct cli, json)},
        {"quiet", offsetof(struct cli, quiet)},
        {"verbose", offsetof(struct cli, verbose)},
        {"help", offsetof(struct cli, help)},
        {"version", offsetof(struct cli, version)},
    };

    if (strcmp(g->option->name, "store") == 0)
        cli->store_dir = g->text;
    for (size_t i = 0; i < ARRAY_LEN(flags); i++)
        if (strcmp(g->option->name, flags[i].name) == 0)
            *(bool *)((char *)cli + flags[i].offset) = true;
}

static int unknown_option(struct parser *p, const char *name, size_t len)
{
    const struct verb *verb = p->cli->verb;
    struct closest near = CLOSEST_INIT(name, len);

    for (const struct option_spec *o = global_options; o->name; o++)
        closest_try(&near, o->name);
    for (const struct option_spec *o = verb ? verb->options : NULL;
         o && o->name; o++)
        closest_try(&near, o->name);
    if (near.best)
        return cli_usage(p->cli, p->err,
                         "unknown option '--%.*s' (did you mean '--%s'?)",
                         (int)len, name, near.best);
    if (!verb)
        return cli_usage(p->cli, p->err,
                         "unknown option '--%.*s' before the verb", (int)len,
                         name);
    return cli_usage(p->cli, p->err, "unknown option '--%.*s'", (int)len, name);
}

/* "--name", "--name=value" or "--name value" */
static int parse_long(struct parser *p, const char *word)
{
    struct arg_given g = {0};
    const char *name = word + 2, *value = strchr(name, '=');
    size_t len = value ? (size_t)(value - name) : strlen(name);
    bool global;

    g.option = table_find(global_options, name, len);
    global = g.option != NULL;
    if (!g.option && p->cli->verb)
        g.option = table_find(p->cli->verb->options, name, len);
    if (!g.option)
        return unknown_option(p, name, len);
    if (g.option->kind == OPTION_FLAG && value)
        return cli_usage(p->cli, p->err, "option '--%s' takes no argument",
                         g.option->name);
    if (g.option->kind != OPTION_FLAG) {
        if (!value && p->next == p->argc)
            return cli_usage(p->cli, p->err, "option '--%s' needs an argument",
                             g.option->name);
        g.text = value ? value + 1 : p->argv[p->next++];
        if (check_value(p, &g) < 0)
            return p->err->code;
    }
    if (global)
        set_global(p->cli, &g);
    else
        p->args->given[p->args->given_count++] = g;
    return 0;
}

/* "-v", "-q", "-h", also together */
static int parse_short(struct parser *p, const char *word)
{
    for (const char *c = word + 1; *c; c++) {
        if (*c == 'v')
            p->cli->verbose = true;
        else if (*c == 'q')
            p->cli->quiet = true;
        else if (*c == 'h')
            p->cli->help = true;
        else
            return cli_usage(p->cli, p->err, "unknown option '-%c'", *c);
    }
    return 0;
}

static bool is_group(const char *word)
{
    size_t n = strlen(word);

    for (const struct verb *const *v = verbs; *v; v++)
        if (strncmp((*v)->name, word, n) == 0 && (*v)->name[n] == ' ')
            return true;
    return false;
}

bool verb_has_alias(const struct verb *verb, const char *word)
{
    for (const char *const *a = verb->aliases; *a; a++)
        if (strcmp(*a, word) == 0)
            return true;
    return false;
}

static const struct verb *verb_find(const char *group, const char *word)
{
    size_t n = group ? strlen(group) : 0;

    for (const struct verb *const *v = verbs; *v; v++) {
        const char *name = (*v)->name;

        if (!group && verb_has_alias(*v, word))
            return *v;
        if (group) {
            if (strncmp(name, group, n) != 0 || name[n] != ' ')
                continue;
            name += n + 1;
        }
        if (strcmp(name, word) == 0)
            return *v;
    }
    return NULL;
}

static int unknown_verb(struct parser *p, const char *group, const char *word)
{
    const char *space = group ? " " : "";
    size_t skip = group ? strlen(group) + 1 : 0;
    struct closest near = CLOSEST_INIT(word, strlen(word));

    if (!group)
        group = "";
    for (const struct verb *const *v = verbs; *v; v++)
        if (strncmp((*v)->name, group, strlen(group)) == 0 &&
            strlen((*v)->name) > skip)
            closest_try(&near, (*v)->name + skip);
    if (near.best)
        return cli_usage(p->cli, p->err,
                         "unknown verb '%s%s%s' (did you mean '%s%s%s'?)",
                         group, space, word, group, space, near.best);
    return cli_usage(p->cli, p->err, "unknown verb '%s%s%s'", group, space,
                     word);
}

static int parse_word(struct parser *p, const char **group, const char *word)
{
    if (p->cli->verb) {
        p->args->operands[p->args->operand_count++] = word;
        return 0;
    }
    if (!*group && is_group(word)) {
        *group = word;
        return 0;
    }
    p->cli->verb = verb_find(*group, word);
    return p->cli->verb ? 0 : unknown_verb(p, *group, word);
}

static int parse_words(struct parser *p)
{
    const char *group = NULL;
    bool options_end = false;

    while (p->next < p->argc) {
        const char *word = p->argv[p->next++];
        int r;

        if (!options_end && strcmp(word, "--") == 0) {
            options_end = true;
            continue;
        }
        if (options_end || word[0] != '-' || !word[1])
            r = parse_word(p, &group, word);
        else if (word[1] == '-')
            r = parse_long(p, word);
        else
            r = parse_short(p, word);
        if (r < 0)
            return r;
    }
    if (p->cli->verb || p->cli->help || p->cli->version)
        return 0;
    if (group)
        return cli_usage(p->cli, p->err, "'%s' needs a verb behind it", group);
    return cli_usage(p->cli, p->err, "no verb given");
}

static int check_operands(struct parser *p)
{
    const struct verb *verb = p->cli->verb;
    size_t have = p->args->operand_count, i;

    for (i = 0; i < OPERANDS_MAX && verb->operands[i].name; i++) {
        if (i >= have && !verb->operands[i].optional)
            return cli_usage(p->cli, p->err, "%s is missing",
                             verb->operands[i].name);
        if (verb->operands[i].repeated)
            return 0;
    }
    if (have > i)
        return cli_usage(p->cli, p->err, "too many arguments: '%s'",
                         p->args->operands[i]);
    return 0;
}

static int check_required(struct parser *p)
{
    for (const struct option_spec *o = p->cli->verb->options; o && o->name; o++)
        if (o->required && !args_text(p->args, o->name))
            return cli_usage(p->cli, p->err, "--%s %s is missing", o->name,
                             o->argument);
    return 0;
}

/* After an error: --json may stand behind the word that was wrong. */
static void find_json(struct parser *p)
{
    for (; p->next < p->argc && strcmp(p->argv[p->next], "--") != 0; p->next++)
        if (strcmp(p->argv[p->next], "--json") == 0)
            p->cli->json = true;
}

/* Without room for what is parsed: the verb says what the status is. */
static void find_verb(struct parser *p)
{
    const char *group = NULL;

    for (; p->next < p->argc && !p->cli->verb; p->next++)
        if (p->argv[p->next][0] != '-')
            parse_word(p, &group, p->argv[p->next]);
}

int args_parse(struct args *args, struct cli *cli, int argc, char **argv,
               struct qstill_error *err)
{
    struct parser p = {args, cli, argv, argc, 1, err};
    int r;

    *args = (struct args){0};
    args->given = calloc((size_t)argc + 1, sizeof(*args->given));
    args->operands = calloc((size_t)argc + 1, sizeof(*args->operands));
    if (!args->given || !args->operands) {
        find_verb(&p);
        args_fini(args);
        return cli_fail(err, QSTILL_E_FAILED, "out of memory");
    }
    r = parse_words(&p);
    if (r == 0 && cli->verb && !cli->help && !cli->version) {
        r = check_operands(&p);
        if (r == 0)
            r = check_required(&p);
    }
    if (r == 0 && cli->quiet && cli->verbose)
        r = cli_usage(cli, err, "-v and -q exclude each other");
    if (r < 0) {
        find_json(&p);
        args_fini(args);
    }
    return r;
}

void args_fini(struct args *args)
{
    free(args->given);
    free(args->operands);
    *args = (struct args){0};
}

const char *args_operand(const struct args *args, size_t i)
{
    return i < args->operand_count ? args->operands[i] : NULL;
}

static const struct arg_given *last_given(const struct args *args,
                                          const char *name)
{
    for (size_t i = args->given_count; i-- > 0;)
        if (strcmp(args->given[i].option->name, name) == 0)
            return &args->given[i];
    return NULL;
}

bool args_flag(const struct args *args, const char *name)
{
    return last_given(args, name) != NULL;
}

const char *args_text(const struct args *args, const char *name)
{
    const struct arg_given *g = last_given(args, name);

    return g ? g->text : NULL;
}

uint64_t args_number(const struct args *args, const char *name)
{
    const struct arg_given *g = last_given(args, name);

    return g ? g->number : 0;
}

int args_keep_trash(const struct args *args)
{
    uint64_t n = args_number(args, "keep-trash");

    if (!args_text(args, "keep-trash"))
        return 0;
    return n == 0 ? -1 : n > INT_MAX ? INT_MAX : (int)n;
}

const char **args_list(const struct args *args, const char *name, size_t *count)
{
    const char **list;
    size_t n = 0;

    for (size_t i = 0; i < args->given_count; i++)
        n += strcmp(args->given[i].option->name, name) == 0;
    *count = n;
    if (n == 0)
        return NULL;
    list = calloc(n, sizeof(*list));
    if (!list)
        return NULL;
    n = 0;
    for (size_t i = 0; i < args->given_count; i++)
        if (strcmp(args->given[i].option->name, name) == 0)
            list[n++] = args->given[i].text;
    return list;
}
