/* SPDX-License-Identifier: MIT */
/* What has to be moved, as a list that keeps small pieces together. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "qcow2/rewrite_impl.h"

enum { SLOTS = 4096, CLUSTER = 64 };

static void push(struct moves *x, uint64_t from, uint64_t dst, uint64_t len,
                 bool over)
{
    struct move m = {.from = from,
                     .dst = dst,
                     .len = len,
                     .layer = MOVE_GUEST,
                     .over = over};

    assert_int_equal(moves_push(x, &m), 0);
}

/* Where each byte of the target comes from, plus one, and whether it is over;
 * no byte twice. */
struct model {
    uint64_t from[SLOTS];
    bool over[SLOTS];
};

static void fill_model(struct model *m, const struct move *e)
{
    assert_true(e->len > 0);
    for (uint64_t i = 0; i < e->len; i++) {
        assert_int_equal(m->from[e->dst + i], 0);
        m->from[e->dst + i] = e->from + i + 1;
        m->over[e->dst + i] = e->over;
    }
}

static void push_some(struct moves *x, struct model *want)
{
    uint64_t at = 0, shift = 0;

    while (at < SLOTS - 2 * CLUSTER) {
        uint64_t unit = 1ull << rand() % 5, len = unit * (1 + rand() % 3);
        struct move m = {.layer = MOVE_GUEST, .over = rand() % 16 == 0};

        if (rand() % 8 == 0)
            shift = (uint64_t)rand() % 3 * 1000;
        at = rand() % 2 ? at : (at + unit) & ~(unit - 1);
        m.from = at + shift;
        m.dst = at;
        m.len = len;
        push(x, m.from, m.dst, m.len, m.over);
        fill_model(want, &m);
        at += len + (rand() % 2 ? unit : 0);
    }
}

static void what_was_pushed_is_walked_over(void **s)
{
    static struct model want, got;

    (void)s;
    for (unsigned seed = 1; seed <= 500; seed++) {
        struct moves x = {.block = seed % 3 == 0   ? 0
                                   : seed % 3 == 1 ? CLUSTER
                                                   : MOVES_TOGETHER};
        uint64_t end = 0;

        srand(seed);
        memset(&want, 0, sizeof(want));
        memset(&got, 0, sizeof(got));
        push_some(&x, &want);
        for (struct move_walk w = moves_walk(&x); w.on; moves_next(&w)) {
            assert_true(w.m.dst >= end);
            assert_int_equal(w.m.parts, 0);
            end = w.m.dst + w.m.len;
            fill_model(&got, &w.m);
        }
        assert_memory_equal(&got, &want, sizeof(got));
        free(x.lots);
    }
}

/* Every second subcluster of a cluster, which others follow. */
static void the_parts_of_a_cluster_take_the_room_of_one(void **s)
{
    enum { CLUSTERS = 100, SUB = 2048 };
    struct moves x = {.block = 32 * SUB};
    struct move_walk w;

    (void)s;
    for (uint64_t i = 0; i < CLUSTERS * 32; i += 2)
        push(&x, i * SUB, (i + 64) * SUB, SUB, true);
    assert_int_equal(x.n, CLUSTERS);
    w = moves_walk(&x);
    for (uint64_t i = 0; i < CLUSTERS * 32; i += 2, moves_next(&w)) {
        assert_true(w.on);
        assert_int_equal(w.m.from, i * SUB);
        assert_int_equal(w.m.dst, (i + 64) * SUB);
        assert_int_equal(w.m.len, SUB);
        assert_true(w.m.over);
    }
    assert_false(w.on);
    free(x.lots);
}

static void blocks_of_the_target_are_kept_apart(void **s)
{
    struct moves x = {.block = CLUSTER};

    (void)s;
    push(&x, 0, 0, 8, false);
    push(&x, 16, 16, 8, false);
    push(&x, 72, 72, 8, false); /* in the next one */
    push(&x, 90, 88, 2, false); /* moved by another distance */
    push(&x, 94, 92, 2, true);
    assert_int_equal(x.n, 4);
    free(x.lots);
}

/* Compressed bytes are what they are. */
static void bytes_of_a_file_are_no_parts(void **s)
{
    struct moves x = {.block = MOVES_TOGETHER};
    struct move m = {.from = 7, .dst = 512, .len = 512, .take = 300};
    struct move_walk w;

    (void)s;
    assert_int_equal(moves_push(&x, &m), 0);
    push(&x, 1024, 1024, 512, false);
    m.dst = 4096;
    assert_int_equal(moves_push(&x, &m), 0);
    assert_int_equal(x.n, 3);
    w = moves_walk(&x);
    assert_int_equal(w.m.take, 300);
    moves_next(&w);
    assert_int_equal(w.m.len, 512);
    moves_next(&w);
    assert_int_equal(w.m.take, 300);
    assert_int_equal(w.m.dst, 4096);
    moves_next(&w);
    assert_false(w.on);
    free(x.lots);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_pushed_is_walked_over),
        cmocka_unit_test(the_parts_of_a_cluster_take_the_room_of_one),
        cmocka_unit_test(blocks_of_the_target_are_kept_apart),
        cmocka_unit_test(bytes_of_a_file_are_no_parts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
