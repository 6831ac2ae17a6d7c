/* SPDX-License-Identifier: MIT */
#include "bitmap_join.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/sum.h"

/* Of all together, 64 MiB in memory: 1 TiB in steps of 2 KiB, 32 TiB in those
 * of 64 KiB. */
#define MAX_BITS (1ull << 29)

void bitmap_join_fini(struct bitmap_join *j)
{
    for (size_t i = 0; i < j->n; i++) {
        free(j->v[i].name);
        free(j->v[i].bits);
    }
    free(j->v);
    free(j->slots);
    buf_fini(&j->lost);
    *j = (struct bitmap_join){0};
}

void joined_bitmap_mark(struct joined_bitmap *b, uint64_t from, uint64_t to)
{
    uint64_t i = from >> b->granularity_bits, end;

    if (from >= to)
        return;
    end = min_u64(((to - 1) >> b->granularity_bits) + 1, b->bit_count);
    while (i < end && i % 8 != 0) {
        b->bits[i / 8] |= (uint8_t)(1u << i % 8);
        i++;
    }
    if (i + 8 <= end) {
        memset(b->bits + i / 8, 0xff, (size_t)((end - i) / 8));
        i = round_down_u64(end, 8);
    }
    for (; i < end; i++)
        b->bits[i / 8] |= (uint8_t)(1u << i % 8);
}

/* ------------------------------------------------------------------- reading
 */

/* One cluster of a stored bitmap. `at`: guest byte of its first bit. */
static void join_cluster(struct joined_bitmap *to, const uint8_t *raw,
                         size_t len, uint8_t granularity_bits, uint64_t at)
{
    for (size_t i = 0; i < len; i++) {
        uint64_t guest = at + ((uint64_t)i * 8 << granularity_bits);

        for (unsigned k = 0; raw[i] && k < 8; k++)
            if (raw[i] & 1u << k)
                joined_bitmap_mark(
                    to, guest + ((uint64_t)k << granularity_bits),
                    guest + ((uint64_t)(k + 1) << granularity_bits));
    }
}

/* Marks what a bitmap of an image says; behind its end nothing is known, and
 * what it has no table for may be anything. */
static int join_stored(struct joined_bitmap *to, const struct image *img,
                       const struct bitmap *b, uint64_t size,
                       struct qstill_error *err)
{
    size_t cs = (size_t)img->cluster_size, got;
    uint64_t span = (uint64_t)cs * 8 << b->granularity_bits;
    CLEANUP(freep) uint8_t *raw = malloc(cs);

    if (!raw)
        return err_nomem(err);
    joined_bitmap_mark(to, img->size, size);
    for (uint64_t i = 0; i * span < img->size; i++) {
        uint64_t e;

        if (i >= b->table_entries) {
            joined_bitmap_mark(to, i * span, size);
            break;
        }
        e = b->table[i];
        if (e & BITMAP_ALL_ONES) {
            joined_bitmap_mark(to, i * span, min_u64((i + 1) * span, size));
        } else if (e) {
            if (io_read_upto(img->io, img->fd, raw, cs, e, &got, err) < 0)
                return err_wrap(err, "%s: bitmap %s", img->path, b->name);
            join_cluster(to, raw, got, b->granularity_bits, i * span);
        }
    }
    return 0;
}

/* All that a layer holds, and where it ends before the result does: it reads
 * as zeros there. */
static int join_layer_held(struct joined_bitmap *to, struct chain *c,
                           size_t layer, uint64_t size,
                           struct qstill_error *err)
{
    const struct image *img = c->layers[layer];

    if (chain_load(c, layer, layer, err) < 0)
        return err->code;
    for (struct extent_walk w = extents_walk(&img->map, 0); w.on;
         extents_next(&w))
        if (w.e.kind != EXTENT_OWNED)
            joined_bitmap_mark(to, w.e.guest, extent_end(&w.e));
    joined_bitmap_mark(to, img->size, size);
    return aio_check_stop(c->aio, err);
}

/* -------------------------------------------------------------------- above
 */

/* What the layers above the one at hand hold, as bits of each granularity that
 * was asked for. All bitmaps of one granularity begin with the same: a layer's
 * map, which can have as many extents as there are bitmaps, is walked once. */
struct above {
    struct bitmap_join *j;
    struct chain *c;
    size_t upper;
    struct joined_bitmap by[64]; /* `bits` NULL: not asked for yet */
    size_t upto[64];             /* layers [upper, upto) are in it */
};

static void above_fini(struct above *a)
{
    for (size_t i = 0; i < ARRAY_LEN(a->by); i++)
        free(a->by[i].bits);
}

static int alloc_bits(struct joined_bitmap *v, uint64_t size,
                      struct qstill_error *err)
{
    uint64_t bits = div_up_u64(size, 1ull << v->granularity_bits);

    v->bits = calloc(1, (size_t)(bits / 8 + 1));
    if (!v->bits)
        return err_nomem(err);
    v->bit_count = bits;
    return 0;
}

/* Marks what layers [upper, i) hold. */
static int join_above(struct joined_bitmap *to, struct above *a, size_t i,
                      struct qstill_error *err)
{
    uint8_t g = to->granularity_bits;
    struct joined_bitmap *held = &a->by[g];

    if (i == a->upper)
        return 0;
    if (!held->bits) {
        held->granularity_bits = g;
        if (alloc_bits(held, a->j->size, err) < 0)
            return err->code;
        a->upto[g] = a->upper;
    }
    for (; a->upto[g] < i; a->upto[g]++)
        if (join_layer_held(held, a->c, a->upto[g], a->j->size, err) < 0)
            return err->code;
    for (size_t k = 0; k < (size_t)(held->bit_count / 8 + 1); k++)
        to->bits[k] |= held->bits[k];
    return 0;
}

/* ------------------------------------------------------------------- joining
 */

static size_t slot_of(const struct bitmap_join *j, const char *name)
{
    size_t at = (size_t)sum_bytes(name, strlen(name), 0) % j->slot_count;

    while (j->slots[at] && strcmp(j->v[j->slots[at] - 1].name, name) != 0)
        at = (at + 1) % j->slot_count;
    return at;
}

static struct joined_bitmap *find(struct bitmap_join *j, const char *name)
{
    size_t at = j->slot_count ? j->slots[slot_of(j, name)] : 0;

    return at ? &j->v[at - 1] : NULL;
}

/* Twice as many slots as there will be bitmaps, at least. */
static int grow(struct bitmap_join *j, struct qstill_error *err)
{
    size_t count = 4 * (j->n + 8);
    struct joined_bitmap *v = realloc(j->v, count / 2 * sizeof(*v));
    size_t *slots = calloc(count, sizeof(*slots));

    if (v)
        j->v = v;
    if (!v || !slots) {
        free(slots);
        return err_nomem(err);
    }
    free(j->slots);
    j->slots = slots;
    j->slot_count = count;
    for (size_t i = 0; i < j->n; i++)
        slots[slot_of(j, v[i].name)] = i + 1;
    return 0;
}

static int add(struct bitmap_join *j, const struct bitmap *b,
               struct joined_bitmap **out, struct qstill_error *err)
{
    struct joined_bitmap *v;

    if (2 * j->n >= j->slot_count && grow(j, err) < 0)
        return err->code;
    v = &j->v[j->n];
    *v = (struct joined_bitmap){.name = strdup(b->name),
                                .granularity_bits = b->granularity_bits,
                                .flags =
                                    b->flags & (BITMAP_IN_USE | BITMAP_AUTO)};
    if (!v->name)
        return err_nomem(err);
    j->slots[slot_of(j, v->name)] = ++j->n;
    *out = v;
    return 0;
}

/* With a part of it all of it: those of the other layers would pass for the
 * whole. */
static int lose(struct bitmap_join *j, const struct image *img,
                const struct bitmap *b, const char *why,
                struct qstill_error *err)
{
    struct joined_bitmap *all = find(j, b->name);

    if (!all && add(j, b, &all, err) < 0)
        return err->code;
    free(take_ptr(&all->bits));
    j->bits -= all->bit_count;
    all->bit_count = 0;
    all->lost = true;
    j->lost_count++;
    return buf_printf(&j->lost, "bitmap %s of %s is not kept: %s\n", b->name,
                      img->path, why) < 0
               ? err_nomem(err)
               : 0;
}

static int make_bits(struct bitmap_join *j, struct joined_bitmap *v,
                     struct qstill_error *err)
{
    if (alloc_bits(v, j->size, err) < 0)
        return err->code;
    j->bits += v->bit_count;
    return 0;
}

static int join_one(struct above *a, size_t i, const struct bitmap *b,
                    bool possible, struct qstill_error *err)
{
    struct bitmap_join *j = a->j;
    const struct image *img = a->c->layers[i];
    struct joined_bitmap *to = find(j, b->name);

    if (!possible)
        return lose(j, img, b, "the result cannot hold any", err);
    if (b->extra_len > 0)
        return lose(j, img, b, "it has data of an unknown kind", err);
    if (to && to->lost)
        return lose(j, img, b, "a layer's part of it is not kept", err);
    if (!to &&
        j->bits + div_up_u64(j->size, 1ull << b->granularity_bits) > MAX_BITS)
        return lose(j, img, b, "it is too large", err);
    if (!to && (add(j, b, &to, err) < 0 || make_bits(j, to, err) < 0))
        return err->code;
    /* one of them inconsistent: so is what they become; one of them enabled:
     * it goes on recording */
    to->flags |= b->flags & (BITMAP_IN_USE | BITMAP_AUTO);
    if (aio_check_stop(a->c->aio, err) < 0 || join_above(to, a, i, err) < 0)
        return err->code;
    return join_stored(to, img, b, j->size, err);
}

static int join_layer(struct above *a, size_t i, bool possible,
                      struct qstill_error *err)
{
    CLEANUP(bitmaps_fini) struct bitmaps maps = {0};

    if (bitmaps_load(a->c->layers[i], &maps, err) < 0)
        return err->code;
    for (size_t k = 0; k < maps.n; k++)
        if (join_one(a, i, &maps.v[k], possible, err) < 0)
            return err->code;
    return 0;
}

static bool has_bitmaps(const struct image *img)
{
    return image_is_qcow2(img) && img->info.header.has_bitmaps;
}

static void drop_lost(struct bitmap_join *j)
{
    size_t n = 0;

    for (size_t i = 0; i < j->n; i++)
        if (j->v[i].lost)
            free(j->v[i].name);
        else
            j->v[n++] = j->v[i];
    j->n = n;
    free(take_ptr(&j->slots)); /* they tell the old places */
    j->slot_count = 0;
}

int bitmap_join(struct chain *c, size_t upper, size_t last, size_t kept,
                uint64_t size, bool possible, struct bitmap_join *out,
                struct qstill_error *err)
{
    struct above a = {.j = out, .c = c, .upper = upper};
    int r = 0;

    out->size = size;
    for (size_t i = upper; i <= last; i++)
        if (has_bitmaps(c->layers[i]) && (i != kept || i != upper))
            out->needed = true;
    for (size_t i = upper; r == 0 && out->needed && i <= last; i++)
        r = join_layer(&a, i, possible, err);
    above_fini(&a);
    chain_forget(c, upper, last);
    drop_lost(out);
    return r;
}
