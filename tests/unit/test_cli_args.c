/* SPDX-License-Identifier: MIT */
/* The command line parser, with the command's own verbs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/args.h"

/* A table of its own, so that the test says what it tests. */
static int no_run(struct cli *cli, const struct args *args,
                  struct qstill_error *err)
{
    (void)cli;
    (void)args;
    (void)err;
    return 0;
}

static const struct option_spec take_options[] = {
    {"label", "K=V", OPTION_LIST, false, "labels"},
    {"memory", NULL, OPTION_FLAG, false, "memory"},
    {"mode", "auto|cow", OPTION_CHOICE, false, "mode"},
    {"max-pause-ms", "N", OPTION_NUMBER, false, "pause"},
    {"bwlimit", "SIZE", OPTION_SIZE, false, "limit"},
    {0},
};
static const struct option_spec join_options[] = {
    {"sock", "SOCK", OPTION_FILE, true, "socket"},
    {0},
};
static const struct verb take = {
    .name = "take",
    .aliases = {"grab", "seize"},
    .operands = {{"VM", false, false}, {"NAME", true, false}},
    .options = take_options,
    .run = no_run,
};
static const struct verb join = {
    .name = "join",
    .operands = {{"VM", false, false}},
    .options = join_options,
    .run = no_run,
};
static const struct verb drop = {
    .name = "drop",
    .operands = {{"VM", false, false}, {"SNAP", false, true}},
    .run = no_run,
};
static const struct verb image_map = {
    .name = "image map",
    .operands = {{"FILE", false, false}},
    .run = no_run,
};
const struct verb *const verbs[] = {&take, &join, &drop, &image_map, NULL};
const struct option_spec global_options[] = {
    {"store", "DIR", OPTION_FILE, false, "store"},
    {"json", NULL, OPTION_FLAG, false, "json"},
    {"verbose", NULL, OPTION_FLAG, false, "verbose"},
    {"quiet", NULL, OPTION_FLAG, false, "quiet"},
    {"version", NULL, OPTION_FLAG, false, "version"},
    {"help", NULL, OPTION_FLAG, false, "help"},
    {0},
};

#define WORDS_MAX 16

struct parsed {
    struct cli cli;
    struct args args;
    struct qstill_error err;
    int result;
};

/* Parses "qstill" and the words of `line`. */
static void parse(struct parsed *p, const char *line)
{
    static char copy[256];
    char *argv[WORDS_MAX + 1] = {(char *)(uintptr_t) "qstill"};
    int argc = 1;

    snprintf(copy, sizeof(copy), "%s", line);
    for (char *w = strtok(copy, " "); w; w = strtok(NULL, " "))
        argv[argc++] = w;
    *p = (struct parsed){0};
    p->result = args_parse(&p->args, &p->cli, argc, argv, &p->err);
}

static void assert_usage_error(const char *line, const char *message)
{
    struct parsed p;

    parse(&p, line);
    assert_int_equal(p.result, QSTILL_E_USAGE);
    assert_int_equal(p.err.code, QSTILL_E_USAGE);
    assert_string_equal(p.err.message, message);
    assert_non_null(strstr(p.err.hint, "--help"));
}

static void options_stand_before_and_behind_the_verb(void **state)
{
    struct parsed p;

    (void)state;
    parse(&p, "--store /a -q take --memory vm1 --json snap --mode=cow");
    assert_int_equal(p.result, 0);
    assert_ptr_equal(p.cli.verb, &take);
    assert_string_equal(p.cli.store_dir, "/a");
    assert_true(p.cli.quiet);
    assert_true(p.cli.json);
    assert_true(args_flag(&p.args, "memory"));
    assert_string_equal(args_text(&p.args, "mode"), "cow");
    assert_string_equal(args_operand(&p.args, 0), "vm1");
    assert_string_equal(args_operand(&p.args, 1), "snap");
    assert_null(args_operand(&p.args, 2));
    args_fini(&p.args);
}

static void an_alias_and_a_group_find_their_verbs(void **state)
{
    struct parsed p;

    (void)state;
    parse(&p, "grab vm1");
    assert_int_equal(p.result, 0);
    assert_ptr_equal(p.cli.verb, &take);
    args_fini(&p.args);
    parse(&p, "seize vm1");
    assert_int_equal(p.result, 0);
    assert_ptr_equal(p.cli.verb, &take);
    args_fini(&p.args);
    parse(&p, "image --json map /f");
    assert_int_equal(p.result, 0);
    assert_ptr_equal(p.cli.verb, &image_map);
    assert_string_equal(args_operand(&p.args, 0), "/f");
    args_fini(&p.args);
}

static void two_dashes_end_the_options(void **state)
{
    struct parsed p;

    (void)state;
    parse(&p, "drop vm1 -- --json -x");
    assert_int_equal(p.result, 0);
    assert_false(p.cli.json);
    assert_int_equal(p.args.operand_count, 3);
    assert_string_equal(args_operand(&p.args, 1), "--json");
    args_fini(&p.args);
}

static void
a_repeated_option_gives_a_list_and_else_the_last_counts(void **state)
{
    struct parsed p;
    const char **labels;
    size_t count;

    (void)state;
    parse(&p, "take vm --label a=1 --label b=2 --bwlimit 1 --bwlimit 2K");
    assert_int_equal(p.result, 0);
    labels = args_list(&p.args, "label", &count);
    assert_int_equal(count, 2);
    assert_string_equal(labels[0], "a=1");
    assert_string_equal(labels[1], "b=2");
    assert_int_equal(args_number(&p.args, "bwlimit"), 2048);
    assert_int_equal(args_number(&p.args, "max-pause-ms"), 0);
    free(labels);
    args_fini(&p.args);
}

static void every_wrong_word_is_a_usage_error_that_names_it(void **state)
{
    (void)state;
    assert_usage_error("", "no verb given");
    assert_usage_error("image", "'image' needs a verb behind it");
    assert_usage_error("tak vm", "unknown verb 'tak' (did you mean 'take'?)");
    assert_usage_error("frobnicate", "unknown verb 'frobnicate'");
    assert_usage_error("image mop /f",
                       "unknown verb 'image mop' (did you mean 'image map'?)");
    assert_usage_error("take", "VM is missing");
    assert_usage_error("drop vm1", "SNAP is missing");
    assert_usage_error("take a b c", "too many arguments: 'c'");
    assert_usage_error("join vm1", "--sock SOCK is missing");
    assert_usage_error("--memory take vm1",
                       "unknown option '--memory' before the verb");
    assert_usage_error("take vm --memry",
                       "unknown option '--memry' (did you mean '--memory'?)");
    assert_usage_error("take vm --mem", "unknown option '--mem'");
    assert_usage_error("take vm -x", "unknown option '-x'");
    assert_usage_error("take vm --memory=yes",
                       "option '--memory' takes no argument");
    assert_usage_error("take vm --mode", "option '--mode' needs an argument");
    assert_usage_error("take vm --mode au", "--mode: 'au' is none of auto|cow");
    assert_usage_error("take vm --mode auto|cow",
                       "--mode: 'auto|cow' is none of auto|cow");
    assert_usage_error("take vm --max-pause-ms 4294967296",
                       "--max-pause-ms: '4294967296' is not a number");
    assert_usage_error("take vm --max-pause-ms -1",
                       "--max-pause-ms: '-1' is not a number");
    assert_usage_error("take vm --bwlimit lots",
                       "--bwlimit: 'lots' is not a size (as 4096, 64K, 1.5G)");
    assert_usage_error("-q -v take vm", "-v and -q exclude each other");
}

static void json_is_found_behind_the_word_that_was_wrong(void **state)
{
    struct parsed p;

    (void)state;
    parse(&p, "take vm --nonsense --json");
    assert_int_equal(p.result, QSTILL_E_USAGE);
    assert_true(p.cli.json);
    parse(&p, "take vm --nonsense -- --json");
    assert_int_equal(p.result, QSTILL_E_USAGE);
    assert_false(p.cli.json);
}

static void help_and_version_ask_for_no_operands(void **state)
{
    struct parsed p;

    (void)state;
    parse(&p, "take --help");
    assert_int_equal(p.result, 0);
    assert_true(p.cli.help);
    args_fini(&p.args);
    parse(&p, "--version");
    assert_int_equal(p.result, 0);
    assert_true(p.cli.version);
    args_fini(&p.args);
}

static void sizes_have_suffixes_of_1024(void **state)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {
        {"0", 0},        {"4096", 4096},
        {"1K", 1024},    {"1k", 1024},
        {"1KiB", 1024},  {"1KB", 1024},
        {"10B", 10},     {"1.5G", 1610612736},
        {"2M", 2097152}, {"1T", 1099511627776},
        {"0.25K", 256},  {"16777215T", 16777215ull << 40},
    };
    static const char *const bad[] = {
        "",
        "K",
        "-1",
        "+1",
        " 1",
        "1 ",
        "1X",
        "1KK",
        "1.5",
        "1.K",
        "1e3",
        "1.12345678K",
        "18446744073709551616",
        "16777216T",
        "0x10",
        "1iB",
    };
    uint64_t bytes;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(good); i++) {
        bytes = 1;
        assert_int_equal(args_size(good[i].text, &bytes), 0);
        assert_int_equal(bytes, good[i].bytes);
    }
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        if (args_size(bad[i], &bytes) == 0)
            fail_msg("'%s' was taken for a size", bad[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options_stand_before_and_behind_the_verb),
        cmocka_unit_test(an_alias_and_a_group_find_their_verbs),
        cmocka_unit_test(two_dashes_end_the_options),
        cmocka_unit_test(
            a_repeated_option_gives_a_list_and_else_the_last_counts),
        cmocka_unit_test(every_wrong_word_is_a_usage_error_that_names_it),
        cmocka_unit_test(json_is_found_behind_the_word_that_was_wrong),
        cmocka_unit_test(help_and_version_ask_for_no_operands),
        cmocka_unit_test(sizes_have_suffixes_of_1024),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
