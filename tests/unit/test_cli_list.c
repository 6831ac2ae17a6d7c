/* SPDX-License-Identifier: MIT */
/* What `list` and `info` print, over snapshots that a fake library gives. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/args.h"
#include "cli/verbs.h"

#define SNAPS_MAX 64

static struct qstill_snapshot_list fake;
static struct qstill_snapshot snaps[SNAPS_MAX];
static const char *children[SNAPS_MAX][SNAPS_MAX];

int __wrap_qstill_store_open(struct qstill_store **out,
                             const struct qstill_store_options *options,
                             struct qstill_error *err);
int __wrap_qstill_snapshot_list(struct qstill_store *store, const char *vm,
                                struct qstill_snapshot_list **out,
                                struct qstill_error *err);
void __wrap_qstill_snapshot_list_free(struct qstill_snapshot_list *list);
void __wrap_qstill_store_set_note(struct qstill_store *store,
                                  qstill_note_fn *fn, void *user);
void __wrap_qstill_store_set_launch(struct qstill_store *store,
                                    qstill_launch_fn *fn, void *user);

int __wrap_qstill_store_open(struct qstill_store **out,
                             const struct qstill_store_options *options,
                             struct qstill_error *err)
{
    (void)options;
    (void)err;
    *out = (struct qstill_store *)&fake; /* a handle, never looked into */
    return 0;
}

void __wrap_qstill_store_set_note(struct qstill_store *store,
                                  qstill_note_fn *fn, void *user)
{
    (void)store;
    (void)fn;
    (void)user;
}

void __wrap_qstill_store_set_launch(struct qstill_store *store,
                                    qstill_launch_fn *fn, void *user)
{
    (void)store;
    (void)fn;
    (void)user;
}

int __wrap_qstill_snapshot_list(struct qstill_store *store, const char *vm,
                                struct qstill_snapshot_list **out,
                                struct qstill_error *err)
{
    (void)store;
    (void)vm;
    (void)err;
    *out = &fake;
    return 0;
}

void __wrap_qstill_snapshot_list_free(struct qstill_snapshot_list *list)
{
    assert_ptr_equal(list, &fake);
}

static void add(const char *id, const char *name, const char *parent)
{
    struct qstill_snapshot *s = &snaps[fake.count++];

    *s = (struct qstill_snapshot){
        .id = id,
        .name = name,
        .description = "",
        .parent_id = parent,
        .created_at = "2026-01-31T10:00:00Z",
        .mode = "disk",
        .mode_reason = "",
        .size_bytes = 4096,
    };
    s->children = children[fake.count - 1];
    for (size_t i = 0; parent && i < fake.count; i++)
        if (strcmp(snaps[i].id, parent) == 0)
            children[i][snaps[i].child_count++] = id;
}

static int reset(void **state)
{
    (void)state;
    memset(&fake, 0, sizeof(fake));
    memset(snaps, 0, sizeof(snaps));
    memset(children, 0, sizeof(children));
    fake.snapshots = snaps;
    setenv("TZ", "UTC", 1);
    setlocale(LC_CTYPE, "C");
    return 0;
}

/* What "qstill LINE" prints; to be freed. */
static char *print(const char *line)
{
    char copy[64], *argv[8] = {copy};
    struct qstill_error err = {0};
    struct cli cli = {0};
    struct args args;
    FILE *real = stdout;
    char *text = NULL;
    size_t size;
    int r, argc = 1;

    snprintf(copy, sizeof(copy), "%s", line);
    for (char *w = strtok(copy, " "); w; w = strtok(NULL, " "))
        argv[argc++] = w;
    assert_int_equal(args_parse(&args, &cli, argc, argv, &err), 0);
    stdout = open_memstream(&text, &size);
    r = cli.verb->run(&cli, &args, &err);
    fclose(stdout);
    stdout = real;
    args_fini(&args);
    if (r < 0)
        fail_msg("%s", err.message);
    return text;
}

static void expect(char *text, const char *wanted)
{
    assert_string_equal(text, wanted);
    free(text);
}

static void the_table_marks_the_current_one(void **state)
{
    (void)state;
    add("1", "one", NULL);
    add("2", "second", "1");
    snaps[1].current = true;
    snaps[1].memory_included = true;
    snaps[1].mode = "cow";
    snaps[1].size_bytes = 1536;
    snaps[1].description = "bad\033[31m";
    expect(
        print("list vm"),
        "  NAME    ID  CREATED                 SIZE  MEMORY  DESCRIPTION\n"
        "  one     1   2026-01-31 10:00:00  4.0 KiB  no\n"
        "* second  2   2026-01-31 10:00:00  1.5 KiB  cow     bad\\x1b[31m\n");
}

/* The first column of the tree. */
static char *names_of(char *tree)
{
    char *names = calloc(1, strlen(tree) + 1), *out = names;

    for (char *row = strtok(tree, "\n"); row; row = strtok(NULL, "\n")) {
        char *end = strstr(row + strspn(row, " |`-"), "  ");

        if (row == tree)
            continue; /* the head */
        out += sprintf(out, "%.*s\n", (int)(end - row), row);
    }
    free(tree);
    return names;
}

static void a_child_stands_further_in_under_its_parent(void **state)
{
    (void)state;
    add("1", "root", NULL);
    add("2", "a", "1");
    add("3", "b", "1");
    add("4", "aa", "2");
    add("5", "other", NULL);
    add("6", "ba", "3");
    snaps[3].current = true;
    expect(names_of(print("list vm --tree")), "o root\n"
                                              "|-o a\n"
                                              "| `-* aa\n"
                                              "`-o b\n"
                                              "  `-o ba\n"
                                              "o other\n");
}

static void a_chain_of_many_stays_on_the_screen(void **state)
{
    static char ids[SNAPS_MAX][8], names[SNAPS_MAX][16];
    char *tree;
    size_t rows = 0, widest = 0;

    (void)state;
    for (int i = 0; i < SNAPS_MAX; i++) {
        snprintf(ids[i], sizeof(ids[i]), "%d", i);
        snprintf(names[i], sizeof(names[i]), "s%d", i);
        add(ids[i], names[i], i ? ids[i - 1] : NULL);
    }
    tree = names_of(print("list vm --tree"));
    for (char *row = strtok(tree, "\n"); row; row = strtok(NULL, "\n")) {
        rows++;
        widest = strlen(row) > widest ? strlen(row) : widest;
    }
    free(tree);
    assert_int_equal(rows, SNAPS_MAX);
    assert_in_range(widest, 40, 60);
}

static void a_loop_or_a_lost_parent_hides_no_snapshot(void **state)
{
    (void)state;
    add("1", "lost", "gone");
    add("2", "x", NULL);
    add("3", "y", "2");
    snaps[1].parent_id = "3";
    children[2][snaps[2].child_count++] = "2";
    expect(names_of(print("list vm --tree")), "o lost\n"
                                              "o x\n"
                                              "`-o y\n");
}

static void json_has_the_names_of_the_contract(void **state)
{
    static const char *const labels[] = {"why=a=b", "who="};
    static const struct qstill_disk_info disk = {"vda", "/a\"b", "raw", 512};

    (void)state;
    add("1", "one", NULL);
    add("2", "two", "1");
    fake.current = "2";
    snaps[1].current = true;
    snaps[0].labels = labels;
    snaps[0].label_count = 2;
    snaps[0].disks = &disk;
    snaps[0].disk_count = 1;
    snaps[0].pause_ms = 1.5;
    expect(
        print("list vm --json"),
        "{\"snapshots\": [{\"id\": \"1\", \"name\": \"one\", "
        "\"description\": \"\", \"parentId\": null, \"current\": false, "
        "\"memoryIncluded\": false, \"quiesced\": false, "
        "\"frozenMs\": 0.000, \"frozenFilesystems\": 0, "
        "\"mountedFilesystems\": 0, \"createdAt\": \"2026-01-31T10:00:00Z\", "
        "\"sizeBytes\": 4096, "
        "\"ownBytes\": 0, \"sharedBytes\": 0, "
        "\"freedIfDeletedBytes\": 0, "
        "\"mode\": \"disk\", \"modeReason\": \"\", \"pauseMs\": 1.500, "
        "\"longestStallMs\": 0.000, \"memoryBytes\": 0, "
        "\"memoryWritten\": 0, \"memorySkipped\": 0, "
        "\"labels\": {\"why\": \"a=b\", \"who\": \"\"}, "
        "\"disks\": [{\"name\": \"vda\", \"path\": \"/a\\\"b\", "
        "\"format\": \"raw\", \"virtualSize\": 512}], "
        "\"children\": [\"2\"]},\n"
        "{\"id\": \"2\", \"name\": \"two\", \"description\": \"\", "
        "\"parentId\": \"1\", \"current\": true, \"memoryIncluded\": false, "
        "\"quiesced\": false, \"frozenMs\": 0.000, \"frozenFilesystems\": 0, "
        "\"mountedFilesystems\": 0, \"createdAt\": \"2026-01-31T10:00:00Z\", "
        "\"sizeBytes\": 4096, \"ownBytes\": 0, \"sharedBytes\": 0, "
        "\"freedIfDeletedBytes\": 0, \"mode\": \"disk\", \"modeReason\": \"\", "
        "\"pauseMs\": 0.000, \"longestStallMs\": 0.000, \"memoryBytes\": 0, "
        "\"memoryWritten\": 0, \"memorySkipped\": 0, \"labels\": {}, "
        "\"disks\": [], "
        "\"children\": []}], \"current\": \"2\"}\n");
}

static void damaged_ones_are_named_in_json_when_there_are_any(void **state)
{
    static const struct qstill_damaged_snapshot bad = {"abc", "it is \"so\"",
                                                       "mend it"};

    (void)state;
    fake.damaged = &bad;
    fake.damaged_count = 1;
    expect(print("list vm --json -q"),
           "{\"snapshots\": [], \"current\": null, \"damaged\": [{\"id\": "
           "\"abc\", \"message\": \"it is \\\"so\\\"\", \"hint\": \"mend "
           "it\"}]}\n");
}

static void an_empty_list_is_json_too(void **state)
{
    (void)state;
    expect(print("list vm --json"), "{\"snapshots\": [], \"current\": null}\n");
    expect(print("ls vm -q"), "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(the_table_marks_the_current_one, reset),
        cmocka_unit_test_setup(a_child_stands_further_in_under_its_parent,
                               reset),
        cmocka_unit_test_setup(a_chain_of_many_stays_on_the_screen, reset),
        cmocka_unit_test_setup(a_loop_or_a_lost_parent_hides_no_snapshot,
                               reset),
        cmocka_unit_test_setup(json_has_the_names_of_the_contract, reset),
        cmocka_unit_test_setup(an_empty_list_is_json_too, reset),
        cmocka_unit_test_setup(
            damaged_ones_are_named_in_json_when_there_are_any, reset),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
