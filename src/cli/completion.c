/* SPDX-License-Identifier: MIT */
/*
 * The bash completion, written from the tables; it asks `qstill completion
 * vms` and `qstill completion snaps VM` for names while somebody types. And
 * the tables themselves as lines, by which the manual is tested.
 */
#include "verbs.h"

#include <stdio.h>
#include <string.h>

#include "args.h"
#include "find.h"

/* clang-format off */
static const char script_tail[] =
    "_qstill_value() {\n"
    "    case $1 in\n"
    "    @file)\n"
    "        compopt -o filenames 2>/dev/null\n"
    "        mapfile -t COMPREPLY < <(compgen -f -- \"$cur\") ;;\n"
    "    @any) ;;\n"
    "    *) mapfile -t COMPREPLY < <(compgen -W \"$1\" -- \"$cur\") ;;\n"
    "    esac\n"
    "}\n"
    "_qstill() {\n"
    "    local cur=${COMP_WORDS[COMP_CWORD]} word value i n=0\n"
    "    local verb='' group='' vm='' store=() operands=()\n"
    "    COMPREPLY=()\n"
    "    [[ $cur == '=' ]] && cur=''\n"
    "    for ((i = 1; i < COMP_CWORD; i++)); do\n"
    "        word=${COMP_WORDS[i]}\n"
    "        if [[ $word == --?* ]]; then\n"
    "            value=$(_qstill_argument \"$verb:$word\")\n"
    "            [[ $value ]] || value=$(_qstill_argument \":$word\")\n"
    "            [[ $value ]] || continue\n"
    "            [[ ${COMP_WORDS[i + 1]} == '=' ]] && ((i++))\n"
    "            if ((i + 1 >= COMP_CWORD)); then\n"
    "                _qstill_value \"$value\"\n"
    "                return\n"
    "            fi\n"
    "            ((i++))\n"
    "            [[ $word == --store ]] && store=(--store \"${COMP_WORDS[i]}\")\n"
    "        elif [[ $word == -* ]]; then\n"
    "            continue\n"
    "        elif [[ $verb ]]; then\n"
    "            ((n++ == 0)) && vm=$word\n"
    "        elif [[ $group ]]; then\n"
    "            verb=\"$group $word\"\n"
    "        elif [[ $(_qstill_verbs \"$word\") ]]; then\n"
    "            group=$word\n"
    "        else\n"
    "            verb=$(_qstill_alias \"$word\")\n"
    "        fi\n"
    "    done\n"
    "    if [[ $cur == -* ]]; then\n"
    "        _qstill_value \"$(_qstill_options \"$verb\") $(_qstill_options '')\"\n"
    "        return\n"
    "    fi\n"
    "    if [[ -z $verb ]]; then\n"
    "        _qstill_value \"$(_qstill_verbs \"$group\")\"\n"
    "        return\n"
    "    fi\n"
    "    read -r -a operands <<<\"$(_qstill_operands \"$verb\")\"\n"
    "    value=${operands[n]}\n"
    "    if [[ -z $value && ${#operands[@]} -gt 0 ]]; then\n"
    "        value=${operands[${#operands[@]} - 1]}\n"
    "        [[ $value == *... ]] || return\n"
    "    fi\n"
    "    case $value in\n"
    "    VM) value=$(qstill \"${store[@]}\" completion vms 2>/dev/null) ;;\n"
    "    SNAP | SNAP...)\n"
    "        value=$(qstill \"${store[@]}\" completion snaps \"$vm\" 2>/dev/null) ;;\n"
    "    FILE | TOP | OUT | A | B) value=@file ;;\n"
    "    *'|'*) value=${value//|/ } ;;\n"
    "    *) return ;;\n"
    "    esac\n"
    "    [[ $value ]] && _qstill_value \"$value\"\n"
    "}\n"
    "complete -F _qstill qstill\n";
/* clang-format on */

/* ------------------------------------------------------------------ table */

static const char *kind_name(enum option_kind kind)
{
    static const char *const names[] = {
        [OPTION_FLAG] = "flag",     [OPTION_TEXT] = "text",
        [OPTION_FILE] = "file",     [OPTION_LIST] = "list",
        [OPTION_NUMBER] = "number", [OPTION_SIZE] = "size",
        [OPTION_CHOICE] = "choice",
    };

    return names[kind];
}

static void table_options(const char *verb, const struct option_spec *table)
{
    for (const struct option_spec *o = table; o && o->name; o++)
        printf("option\t%s\t--%s\t%s\t%s\n", verb, o->name, kind_name(o->kind),
               o->argument ? o->argument : "-");
}

static void print_table(void)
{
    table_options("-", global_options);
    for (const struct verb *const *v = verbs; *v; v++) {
        printf("verb\t%s\t", (*v)->name);
        for (const char *const *a = (*v)->aliases; *a; a++)
            printf("%s%s", a == (*v)->aliases ? "" : ",", *a);
        puts((*v)->aliases[0] ? "" : "-");
        for (size_t i = 0; i < OPERANDS_MAX && (*v)->operands[i].name; i++)
            printf("operand\t%s\t%s\t%s%s\n", (*v)->name,
                   (*v)->operands[i].name,
                   (*v)->operands[i].optional ? "optional" : "required",
                   (*v)->operands[i].repeated ? "\trepeated" : "");
        table_options((*v)->name, (*v)->options);
    }
}

/* ------------------------------------------------------------------- bash */

/* "a|b|c" as words */
static void put_words(const char *choices)
{
    for (; *choices; choices++)
        putchar(*choices == '|' ? ' ' : *choices);
}

static void bash_arguments(const char *verb, const struct option_spec *table)
{
    for (const struct option_spec *o = table; o && o->name; o++) {
        if (o->kind == OPTION_FLAG)
            continue;
        printf("    '%s:--%s') echo ", verb, o->name);
        if (o->kind == OPTION_CHOICE)
            put_words(o->argument);
        else
            fputs(o->kind == OPTION_FILE ? "@file" : "@any", stdout);
        puts(" ;;");
    }
}

static void bash_options(const char *verb, const struct option_spec *table)
{
    printf("    '%s') echo", verb);
    for (const struct option_spec *o = table; o && o->name; o++)
        printf(" --%s", o->name);
    puts(" ;;");
}

static void bash_operands(const struct verb *verb)
{
    printf("    '%s') echo '", verb->name);
    for (size_t i = 0; i < OPERANDS_MAX && verb->operands[i].name; i++)
        printf("%s%s%s", i ? " " : "", verb->operands[i].name,
               verb->operands[i].repeated ? "..." : "");
    puts("' ;;");
}

/* True when v's first word is not that of the verb before it. */
static bool starts_group(const struct verb *const *v)
{
    size_t len = strcspn((*v)->name, " ");

    return v == verbs || strcspn(v[-1]->name, " ") != len ||
           memcmp((*v)->name, v[-1]->name, len) != 0;
}

static void bash_verbs(void)
{
    puts("_qstill_verbs() {\n    case $1 in");
    fputs("    '') echo", stdout);
    for (const struct verb *const *v = verbs; *v; v++)
        if (starts_group(v))
            printf(" %.*s", (int)strcspn((*v)->name, " "), (*v)->name);
    puts(" ;;");
    for (const struct verb *const *v = verbs; *v; v++) {
        const char *space = strchr((*v)->name, ' ');

        if (space)
            printf("    '%.*s') echo %s ;;&\n", (int)(space - (*v)->name),
                   (*v)->name, space + 1);
    }
    puts("    esac\n}\n_qstill_alias() {\n    case $1 in");
    for (const struct verb *const *v = verbs; *v; v++)
        for (const char *const *a = (*v)->aliases; *a; a++)
            printf("    '%s') echo %s ;;\n", *a, (*v)->name);
    puts("    *) echo \"$1\" ;;\n    esac\n}");
}

static void print_bash(void)
{
    puts("# bash completion of qstill, printed by: qstill completion bash");
    bash_verbs();
    puts("_qstill_options() {\n    case $1 in");
    bash_options("", global_options);
    for (const struct verb *const *v = verbs; *v; v++)
        if ((*v)->options)
            bash_options((*v)->name, (*v)->options);
    puts("    esac\n}\n_qstill_argument() {\n    case $1 in");
    bash_arguments("", global_options);
    for (const struct verb *const *v = verbs; *v; v++)
        bash_arguments((*v)->name, (*v)->options);
    puts("    esac\n}\n_qstill_operands() {\n    case $1 in");
    for (const struct verb *const *v = verbs; *v; v++)
        bash_operands(*v);
    puts("    esac\n}");
    fputs(script_tail, stdout);
}

static int print_vms(struct cli *cli, struct qstill_error *err)
{
    CLEANUP(find_vms_freep) struct qstill_vm_list *list = NULL;
    struct qstill_store *store;

    if (cli_store(cli, &store, err) < 0 ||
        qstill_vm_list(store, &list, err) < 0)
        return err->code;
    for (size_t i = 0; i < list->count; i++)
        puts(list->vms[i].name);
    return 0;
}

static int print_snaps(struct cli *cli, const char *vm,
                       struct qstill_error *err)
{
    CLEANUP(find_list_freep) struct qstill_snapshot_list *list = NULL;
    struct qstill_store *store;

    if (cli_store(cli, &store, err) < 0 ||
        qstill_snapshot_list(store, vm, &list, err) < 0)
        return err->code;
    for (size_t i = 0; i < list->count; i++)
        puts(list->snapshots[i].name);
    return 0;
}

static int completion_run(struct cli *cli, const struct args *args,
                          struct qstill_error *err)
{
    const char *what = args_operand(args, 0);

    if (strcmp(what, "bash") == 0)
        print_bash();
    else if (strcmp(what, "table") == 0)
        print_table();
    else if (strcmp(what, "vms") == 0)
        return print_vms(cli, err);
    else if (strcmp(what, "snaps") == 0 && args_operand(args, 1))
        return print_snaps(cli, args_operand(args, 1), err);
    else
        return cli_usage(cli, err, "'%s' is none of bash, table, vms, snaps VM",
                         what);
    return 0;
}

const struct verb verb_completion = {
    .name = "completion",
    .summary = "Prints the completion script of a shell",
    .operands = {{"bash|table|vms|snaps", false, false}, {"VM", true, false}},
    .run = completion_run,
};
