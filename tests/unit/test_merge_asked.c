/* SPDX-License-Identifier: MIT */
/* What merges of one top were asked to drop, as it stands in their journal:
 * whatever a crash leaves of it, no layer is in it that nobody has named. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../lib/mem_tmpdir.h"
#include "qcow2/create.h"
#include "qcow2/merge.h"
#include "qcow2/merge_asked.h"

#define JOURNAL MERGE_JOURNAL "0123456789abcdef"
#define RECORD                                                                 \
    "qstill-merge 2\nkind in-place\ntarget 1 2 3 4 /x/top\n"                   \
    "gone 1 3 3 4 /x/not%20asked\nsum 0\n"

static int dir;
static char dir_path[128];

static int make_dir(void **state)
{
    (void)state;
    dir = mem_tmpdir_make(dir_path);
    return 0;
}

static int drop_dir(void **state)
{
    (void)state;
    mem_tmpdir_remove(dir_path, dir);
    return 0;
}

static const char *in_dir(const char *name)
{
    static char path[4][256];
    static unsigned n;
    char *p = path[n++ % 4];

    snprintf(p, sizeof(path[0]), "%s/%s", dir_path, name);
    return p;
}

static struct merge_id id_of(const char *name)
{
    struct merge_id id;

    merge_id_look(in_dir(name), NULL, false, &id);
    return id;
}

static void make_image(const char *name, const char *backing)
{
    struct qcow2_create_options o = QCOW2_CREATE_OPTIONS_INIT;
    struct qstill_error err;

    o.virtual_size = 1 << 20;
    o.backing = backing;
    o.backing_format = backing ? "qcow2" : NULL;
    assert_int_equal(qcow2_create(io_real(), dir, name, &o, &err), 0);
}

/* top, c, b, a: asked for a and c, of which the latter has gone. */
static void make_between(struct merge_asked *a)
{
    struct merge_id id;
    struct qstill_error err;

    make_image("a", NULL);
    make_image("b", "a");
    make_image("c", "b");
    make_image("top", "c");
    *a = (struct merge_asked){.top = strdup(in_dir("top"))};
    id = id_of("c");
    assert_int_equal(merge_asked_add(a, in_dir("c"), &id, &err), 0);
    id = id_of("a");
    assert_int_equal(merge_asked_add(a, in_dir("a"), &id, &err), 0);
    assert_int_equal(unlinkat(dir, "c", 0), 0);
    assert_int_equal(unlinkat(dir, "top", 0), 0);
    make_image("top", "b");
}

static void parse(struct merge_asked *a, const char *text, size_t len,
                  size_t *start)
{
    struct qstill_error err;

    *a = (struct merge_asked){0};
    assert_int_equal(
        merge_asked_parse(a, dir_path, (const uint8_t *)text, len, start, &err),
        0);
}

static void reads_as_it_was_written(void **state)
{
    CLEANUP(merge_asked_fini) struct merge_asked a = {0}, b = {0};
    CLEANUP(buf_fini) struct buf text = BUF_INIT;
    struct merge_id id = {7, 8, 9, -10};
    struct qstill_error err;
    size_t start;

    (void)state;
    a.top = strdup(in_dir("the top\n"));
    assert_int_equal(merge_asked_add(&a, in_dir("with a %"), &id, &err), 0);
    assert_int_equal(merge_asked_add(&a, "/else/where", NULL, &err), 0);
    assert_int_equal(merge_asked_add(&a, in_dir("with a %"), &id, &err), 0);
    assert_int_equal(merge_asked_add(&a, in_dir("with a %"), NULL, &err), 0);
    assert_int_equal(a.n, 2);
    assert_int_equal(merge_asked_add_child(&a, in_dir("with a %"), &err), 0);
    assert_int_equal(merge_asked_add_child(&a, in_dir("with a %"), &err), 0);
    assert_int_equal(a.n, 3);
    assert_int_equal(merge_asked_emit(&a, dir_path, &text, &err), 0);
    parse(&b, (char *)text.data, text.len, &start);
    assert_int_equal(start, text.len);
    assert_string_equal(b.top, a.top);
    assert_int_equal(b.n, 3);
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(b.v[i].is_child, i == 2);
        assert_string_equal(b.v[i].path, a.v[i].path);
        assert_memory_equal(&b.v[i].id, &a.v[i].id, sizeof(id));
    }
}

/* Wherever it is cut off, with nothing or with zeros behind. */
static void half_a_line_names_nothing(void **state)
{
    static const char text[] = "top top\nasked 1 2 3 4 first\n"
                               "asked 1 5 3 4 second\n" RECORD;
    static const char *const names[] = {"first", "second"};
    char torn[sizeof(text)];

    (void)state;
    for (size_t n = 0; n < sizeof(text); n++)
        for (int zeros = 0; zeros < 2; zeros++) {
            CLEANUP(merge_asked_fini) struct merge_asked a = {0};
            size_t start;

            memset(torn, 0, sizeof(torn));
            memcpy(torn, text, n);
            parse(&a, torn, zeros ? sizeof(torn) : n, &start);
            assert_true(start <= n && (start == 0 || text[start - 1] == '\n'));
            if (n >= strlen("top top\n")) {
                assert_string_equal(a.top, in_dir("top"));
                assert_true(a.n <= 2);
                for (size_t i = 0; i < a.n; i++)
                    assert_string_equal(a.v[i].path, in_dir(names[i]));
            } else {
                assert_null(a.top);
            }
            if (n >= strlen(text) - strlen(RECORD)) {
                assert_int_equal(a.n, 2);
                assert_int_equal(start, strlen(text) - strlen(RECORD));
            }
        }
}

static void older_journals_are_read(void **state)
{
    static const char *const texts[] = {
        "went c\n",
        "gone c\n",
        RECORD "went c\n",
        /* names over the begin of a record */
        "went c\nget 1 2 3 4 /x/top\n",
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
        CLEANUP(merge_asked_fini) struct merge_asked a = {0};
        size_t start;

        parse(&a, texts[i], strlen(texts[i]), &start);
        assert_null(a.top);
        assert_true(merge_asked_has_gone(&a, in_dir("c")));
        assert_false(merge_asked_has_gone(&a, in_dir("b")));
    }
}

/* ------------------------------------------------------------ in its file */

static void write_journal(const struct merge_asked *a)
{
    CLEANUP(merge_journal_fini) struct merge_journal j = MERGE_JOURNAL_INIT;
    struct qstill_error err;

    assert_int_equal(merge_journal_begin(&j, io_real(), dir, JOURNAL, &err), 0);
    assert_int_equal(merge_journal_ask(&j, a, &err), 0);
}

static bool stands_after_recovery(bool did_wanted)
{
    struct qstill_error err;
    bool did;

    assert_int_equal(merge_recover(io_real(), dir, JOURNAL, NULL, &did, &err),
                     0);
    assert_int_equal(did, did_wanted);
    return faccessat(dir, JOURNAL, F_OK, 0) == 0;
}

static void stays_while_one_is_a_layer(void **state)
{
    CLEANUP(merge_asked_fini) struct merge_asked a = {0};

    (void)state;
    make_between(&a);
    write_journal(&a);
    assert_true(stands_after_recovery(false));
    assert_true(stands_after_recovery(false));
    assert_int_equal(unlinkat(dir, "b", 0), 0);
    assert_true(stands_after_recovery(false)); /* it cannot be told */
    make_image("b", NULL);
    assert_false(stands_after_recovery(true));
}

static void ends_with_the_top(void **state)
{
    CLEANUP(merge_asked_fini) struct merge_asked a = {0};

    (void)state;
    make_between(&a);
    write_journal(&a);
    assert_int_equal(unlinkat(dir, "top", 0), 0);
    assert_false(stands_after_recovery(true));
}

static void ends_where_none_has_gone(void **state)
{
    CLEANUP(merge_asked_fini) struct merge_asked a = {0};

    (void)state;
    make_between(&a);
    make_image("c", "b");
    write_journal(&a);
    assert_false(stands_after_recovery(true));
}

static void ends_where_the_layer_is_another_by_now(void **state)
{
    CLEANUP(merge_asked_fini) struct merge_asked a = {0};

    (void)state;
    make_between(&a);
    write_journal(&a);
    assert_int_equal(renameat(dir, "a", dir, "old"), 0);
    make_image("a", NULL);
    assert_false(stands_after_recovery(true));
}

static void the_next_merge_takes_what_is_there(void **state)
{
    CLEANUP(merge_journal_fini) struct merge_journal j = MERGE_JOURNAL_INIT;
    CLEANUP(merge_journal_fini) struct merge_journal k = MERGE_JOURNAL_INIT;
    CLEANUP(merge_asked_fini) struct merge_asked a = {0}, b = {0};
    CLEANUP(merge_record_fini) struct merge_record r = {0};
    struct qstill_error err;

    (void)state;
    make_between(&a);
    write_journal(&a);
    assert_int_equal(merge_journal_begin(&j, io_real(), dir, JOURNAL, &err), 0);
    assert_int_equal(merge_journal_asked(&j, &b, &err), 0);
    assert_int_equal(b.n, 2);
    assert_int_equal(merge_journal_begin(&k, io_real(), dir, JOURNAL, &err),
                     QSTILL_E_BUSY);

    /* with a record in it, it is no merge's but a recovery's */
    r.target.path = strdup(in_dir("top"));
    r.result.path = strdup(in_dir("top"));
    r.old_backing = strdup("");
    r.new_backing = strdup("");
    assert_int_equal(merge_journal_ask(&j, &b, &err), 0);
    assert_int_equal(merge_journal_write(&j, &r, &err), 0);
    merge_journal_fini(&j);
    merge_journal_fini(&k);
    assert_int_equal(merge_journal_begin(&k, io_real(), dir, JOURNAL, &err),
                     QSTILL_E_BUSY);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(reads_as_it_was_written, make_dir,
                                        drop_dir),
        cmocka_unit_test_setup_teardown(half_a_line_names_nothing, make_dir,
                                        drop_dir),
        cmocka_unit_test_setup_teardown(older_journals_are_read, make_dir,
                                        drop_dir),
        cmocka_unit_test_setup_teardown(stays_while_one_is_a_layer, make_dir,
                                        drop_dir),
        cmocka_unit_test_setup_teardown(ends_with_the_top, make_dir, drop_dir),
        cmocka_unit_test_setup_teardown(ends_where_none_has_gone, make_dir,
                                        drop_dir),
        cmocka_unit_test_setup_teardown(ends_where_the_layer_is_another_by_now,
                                        make_dir, drop_dir),
        cmocka_unit_test_setup_teardown(the_next_merge_takes_what_is_there,
                                        make_dir, drop_dir),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
