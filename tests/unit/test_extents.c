/* SPDX-License-Identifier: MIT */
/* What a guest sees through two layers, as extents. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "qcow2/extent.h"

enum { SLOTS = 64, MANY = 5000 };

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

    for (struct extent_walk w = extents_walk(x, 0); w.on; extents_next(&w)) {
        assert_true(w.e.len > 0);
        assert_true(w.e.guest >= end);
        end = extent_end(&w.e);
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
    assert_int_equal(extents_walk(&out, 30).e.host, 3000);
    assert_int_equal(extents_walk(&out, 40).e.host, 5040);
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
        for (struct extent_walk w = extents_walk(&x[2], 0); w.on;
             extents_next(&w))
            for (uint64_t k = 0; k < w.e.len; k++)
                host[2][w.e.guest + k] = w.e.host + k;
        for (size_t k = 0; k < SLOTS; k++)
            assert_int_equal(host[2][k], host[0][k] ? host[0][k] : host[1][k]);
        for (size_t i = 0; i < 3; i++)
            extents_fini(&x[i]);
    }
}

static bool has_host(const struct extent *e)
{
    return e->kind != EXTENT_ZERO && e->kind != EXTENT_PAST_END &&
           e->kind != EXTENT_FOREIGN;
}

static void is_same(const struct extent *a, const struct extent *b)
{
    assert_int_equal(a->guest, b->guest);
    assert_int_equal(a->len, b->len);
    assert_int_equal(a->host, b->host);
    assert_int_equal(a->kind, b->kind);
    assert_int_equal(a->clen, b->clen);
    assert_int_equal(a->layer, b->layer);
}

static uint64_t any_length(void)
{
    uint64_t few = (uint64_t)rand() % 40;

    switch (rand() % 4) {
    case 0:
        return few + 1; /* in no sectors */
    case 1:
        return 4096; /* often the same */
    case 2:
        return (few + 1) << 9;
    default:
        return (few + 1) << 40;
    }
}

/* In guest order, none of which the one before could be lengthened by. */
static size_t make_many(struct extent *v)
{
    uint64_t guest = 0;
    size_t n = 1 + (size_t)rand() % MANY;

    for (size_t i = 0; i < n; i++) {
        guest += rand() % 2 ? any_length() : 0;
        v[i] = (struct extent){
            .guest = guest,
            .len = any_length(),
            .kind = 1 + (unsigned)rand() % 7,
            .layer = (uint16_t)(rand() % 4 ? rand() % 3 : rand() % 300)};
        if (i > 0 && v[i].layer == v[i - 1].layer)
            v[i].layer++;
        if (has_host(&v[i]))
            v[i].host = rand() % 2 ? guest + ((uint64_t)rand() << 9)
                                   : (uint64_t)rand() << 24;
        if (v[i].kind == EXTENT_COMPRESSED)
            v[i].clen = (uint32_t)rand();
        guest = extent_end(&v[i]);
    }
    return n;
}

static size_t first_behind(const struct extent *v, size_t n, uint64_t guest)
{
    size_t i = 0;

    while (i < n && extent_end(&v[i]) <= guest)
        i++;
    return i;
}

static void what_was_pushed_is_walked_over(void **s)
{
    static struct extent v[MANY];

    (void)s;
    for (unsigned seed = 1; seed <= 200; seed++) {
        struct extents x = EXTENTS_INIT;
        struct extent_walk w, far;
        size_t n, i = 0;

        srand(seed);
        n = make_many(v);
        for (size_t k = 0; k < n; k++)
            assert_int_equal(extents_push(&x, &v[k]), 0);
        assert_int_equal(x.n, n);
        for (w = extents_walk(&x, 0); w.on; extents_next(&w))
            is_same(&w.e, &v[i++]);
        assert_int_equal(i, n);
        w = far = extents_walk(&x, 0);
        for (unsigned k = 0; k < 200; k++) {
            const struct extent *e = &v[(size_t)rand() % n];
            uint64_t guest =
                e->guest + (uint64_t)rand() % (e->len + 1) + rand() % 2;

            if (rand() % 2) /* right behind where it is */
                guest = w.on ? extent_end(&w.e) : 0;
            extents_seek(&w, guest);
            far = extents_walk(&x, guest);
            i = first_behind(v, n, guest);
            assert_int_equal(w.on, i < n);
            assert_int_equal(far.on, i < n);
            for (; i < n && rand() % 4; i++) {
                is_same(&w.e, &v[i]);
                is_same(&far.e, &v[i]);
                extents_next(&w);
                extents_next(&far);
            }
        }
        extents_fini(&x);
    }
}

/* As in clusters of which every second subcluster is in use: 16 bytes of a
 * table for each 16 of them. */
static void a_small_piece_takes_a_few_bytes(void **s)
{
    enum { PIECES = 1 << 16, PIECE = 4096 };
    struct extents x = EXTENTS_INIT;

    (void)s;
    for (uint64_t i = 0; i < PIECES; i++)
        push(&x, 2 * i * PIECE, PIECE, (2 * i + 5000) * PIECE, 0);
    assert_int_equal(x.n, PIECES);
    assert_true(x.len + x.mark_n * 16 <= 3 * PIECES);
    extents_fini(&x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(
            neighbours_of_the_upper_layer_have_nothing_between_them),
        cmocka_unit_test(an_overlay_shows_the_upper_layer_and_else_the_lower),
        cmocka_unit_test(what_was_pushed_is_walked_over),
        cmocka_unit_test(a_small_piece_takes_a_few_bytes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
