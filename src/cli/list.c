/* SPDX-License-Identifier: MIT */
/*
 * qstill list: the snapshots of a VM as a table, a tree or JSON. Deep in the
 * tree only branches are indented further, so that a chain of hundreds stays
 * on the screen.
 */
#include "verbs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "args.h"
#include "find.h"
#include "show.h"
#include "text.h"

static void put_rest(struct table *t, const struct qstill_snapshot *s)
{
    char size[TEXT_SIZE_MAX], when[TEXT_TIME_MAX];

    table_cell(t, s->id);
    table_cell(t, text_time(when, s->created_at));
    table_cell(t, text_size(size, s->size_bytes));
    table_cell(t, s->memory_included ? s->mode : "no");
    table_cell(t, s->description);
}

static void put_head(struct table *t, const char *first)
{
    static const char *const titles[] = {"ID", "CREATED", "SIZE", "MEMORY",
                                         "DESCRIPTION"};

    table_init(t, "lllrll");
    table_cell(t, first);
    for (size_t i = 0; i < ARRAY_LEN(titles); i++)
        table_cell(t, titles[i]);
}

static void fill_flat(struct table *t, const struct qstill_snapshot_list *list)
{
    put_head(t, "  NAME");
    for (size_t i = 0; i < list->count; i++) {
        const struct qstill_snapshot *s = &list->snapshots[i];

        table_cellf(t, "%c %s", s->current ? '*' : ' ', s->name);
        put_rest(t, s);
    }
}

/* ------------------------------------------------------------------- tree */

#define INDENT_MAX 48 /* from here on a lone child stands under its parent */
#define PREFIX_MAX 256

struct tree {
    const struct qstill_snapshot_list *list;
    struct table *table;
    bool *drawn; /* a damaged store may hold loops */
    const char *tee, *corner, *bar;
};

/* A tree that branches deeper than this keeps its nodes and loses lines. */
static void join(char out[PREFIX_MAX], const char *prefix, const char *more)
{
    snprintf(out, PREFIX_MAX, "%.*s%s", PREFIX_MAX - 8, prefix, more);
}

static size_t find_id(const struct qstill_snapshot_list *list, const char *id)
{
    size_t i = 0;

    while (i < list->count && strcmp(list->snapshots[i].id, id) != 0)
        i++;
    return i;
}

/* `lead` stands before the first line, `prefix` before those that follow. */
static void draw(struct tree *tree, size_t at, const char *lead,
                 const char *prefix)
{
    const struct qstill_snapshot *s;
    char next_lead[PREFIX_MAX], next_prefix[PREFIX_MAX];

    while (at < tree->list->count && !tree->drawn[at]) {
        tree->drawn[at] = true;
        s = &tree->list->snapshots[at];
        table_cellf(tree->table, "%s%c %s", lead, s->current ? '*' : 'o',
                    s->name);
        put_rest(tree->table, s);
        if (s->child_count == 1 && strlen(prefix) >= INDENT_MAX) {
            lead = prefix;
            at = find_id(tree->list, s->children[0]);
            continue;
        }
        for (size_t i = 0; i < s->child_count; i++) {
            bool last = i + 1 == s->child_count;

            join(next_lead, prefix, last ? tree->corner : tree->tee);
            join(next_prefix, prefix, last ? "  " : tree->bar);
            draw(tree, find_id(tree->list, s->children[i]), next_lead,
                 next_prefix);
        }
        return;
    }
}

static int fill_tree(struct table *t, const struct qstill_snapshot_list *list)
{
    bool box = text_is_utf8();
    struct tree tree = {
        .list = list,
        .table = t,
        .drawn = calloc(list->count + 1, sizeof(bool)),
        .tee = box ? "\u251c\u2500" : "|-",
        .corner = box ? "\u2514\u2500" : "`-",
        .bar = box ? "\u2502 " : "| ",
    };

    if (!tree.drawn)
        return -1;
    put_head(t, "NAME");
    for (size_t i = 0; i < list->count; i++) {
        const char *parent = list->snapshots[i].parent_id;

        if (!parent || find_id(list, parent) == list->count)
            draw(&tree, i, "", "");
    }
    for (size_t i = 0; i < list->count; i++)
        draw(&tree, i, "", ""); /* what only a loop leads to */
    free(tree.drawn);
    return 0;
}

/* ------------------------------------------------------------------- verb */

static void list_json(const struct qstill_snapshot_list *list)
{
    struct out o = OUT_INIT(stdout);

    out_object(&o, NULL);
    out_array(&o, "snapshots");
    for (size_t i = 0; i < list->count; i++)
        show_snapshot_json(&o, NULL, &list->snapshots[i]);
    out_end(&o);
    out_text(&o, "current", list->current);
    if (list->damaged_count > 0)
        show_damaged_json(&o, "damaged", list);
    out_end(&o);
}

static int list_table(const struct qstill_snapshot_list *list, bool tree,
                      struct qstill_error *err)
{
    CLEANUP(table_fini) struct table t = {0};
    int r = 0;

    if (tree)
        r = fill_tree(&t, list);
    else
        fill_flat(&t, list);
    if (r < 0 || table_print(&t, stdout) < 0)
        return cli_fail(err, QSTILL_E_FAILED, "out of memory");
    return 0;
}

static int list_run(struct cli *cli, const struct args *args,
                    struct qstill_error *err)
{
    CLEANUP(find_list_freep) struct qstill_snapshot_list *list = NULL;
    const char *vm = args_operand(args, 0);
    struct qstill_store *store;

    if (cli_store(cli, &store, err) < 0 ||
        qstill_snapshot_list(store, vm, &list, err) < 0)
        return err->code;
    show_damaged(cli, vm, list);
    if (cli->json)
        list_json(list);
    else if (list->count == 0)
        show_words(cli, "%s: no snapshots%s", vm,
                   list->damaged_count ? " that are whole" : "");
    else
        return list_table(list, args_flag(args, "tree"), err);
    return 0;
}

static const struct option_spec list_options[] = {
    {"tree", NULL, OPTION_FLAG, false, "draw them as a tree"},
    {0},
};

const struct verb verb_list = {
    .name = "list",
    .aliases = {"ls"},
    .summary = "Lists the snapshots of a VM",
    .operands = {{"VM", false, false}},
    .options = list_options,
    .run = list_run,
};
