/* SPDX-License-Identifier: MIT */
/* What a guest sees through two layers, as extents. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "qcow2/extent.h"

enum { SLOTS = 64 };

static void push(struct extents *x, uint64_t guest, uint64_t len, uint64_t host,
                 uint16_t layer)
{
    struct extent e = {.guest = guest,
                       .len = len,
                       .host = host,
                       .kind = EXTENT_DATA,
                       .layer = layer};

    assert_int_equal(extents_push(x, &e), 0);
}

/* Sorted, apart from each other, and none of them empty. */
static void is_sound(const struct extents *x)
{
    uint64_t end = 0;

    for (size_t i = 0; i < x->n; i++) {
        assert_true(x->v[i].len > 0);
        assert_true(x->v[i].guest >= end);
        end = extent_end(&x->v[i]);
    }
}

static void neighbours_of_the_upper_layer_have_nothing_between_them(void **s)
{
    struct extents upper = EXTENTS_INIT, lower = EXTENTS_INIT,
                   out = EXTENTS_INIT;

    (void)s;
    push(&lower, 0, 100, 5000, 1);
    push(&upper, 20, 10, 1000, 0);
    push(&upper, 30, 10, 3000, 0);
    assert_int_equal(extents_overlay(&upper, &lower, &out), 0);
    is_sound(&out);
    assert_int_equal(out.n, 4);
    assert_int_equal(out.v[2].host, 3000);
    assert_int_equal(out.v[3].host, 5040);
    extents_fini(&upper);
    extents_fini(&lower);
    extents_fini(&out);
}

/* Random extents over SLOTS bytes; host[i] is where byte i is, or 0. */
static void make_layer(struct extents *x, uint64_t *host, uint16_t layer)
{
    for (uint64_t at = 0; at < SLOTS;) {
        uint64_t len = 1 + (uint64_t)rand() % 6;
        uint64_t from = 1000 + (uint64_t)rand() % 4 * 1000;

        len = len < SLOTS - at ? len : SLOTS - at;
        if (rand() % 3) {
            push(x, at, len, from, layer);
            for (uint64_t i = 0; i < len; i++)
                host[at + i] = from + i;
        }
        at += len;
    }
}

static void an_overlay_shows_the_upper_layer_and_else_the_lower(void **s)
{
    (void)s;
    for (unsigned seed = 1; seed <= 2000; seed++) {
        struct extents x[3] = {EXTENTS_INIT, EXTENTS_INIT, EXTENTS_INIT};
        uint64_t host[3][SLOTS] = {{0}};

        srand(seed);
        make_layer(&x[0], host[0], 0);
        make_layer(&x[1], host[1], 1);
        assert_int_equal(extents_overlay(&x[0], &x[1], &x[2]), 0);
        is_sound(&x[2]);
        for (size_t i = 0; i < x[2].n; i++)
            for (uint64_t k = 0; k < x[2].v[i].len; k++)
                host[2][x[2].v[i].guest + k] = x[2].v[i].host + k;
        for (size_t k = 0; k < SLOTS; k++)
            assert_int_equal(host[2][k], host[0][k] ? host[0][k] : host[1][k]);
        for (size_t i = 0; i < 3; i++)
            extents_fini(&x[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(
            neighbours_of_the_upper_layer_have_nothing_between_them),
        cmocka_unit_test(an_overlay_shows_the_upper_layer_and_else_the_lower),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
