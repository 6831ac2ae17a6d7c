/* SPDX-License-Identifier: MIT */
/*
 * A chain of up to three files: where the engine maps it, every sector must be
 * what the naive reader finds there: the same layer, zeros or data, the same
 * place in the file.
 */
#include <stdlib.h>
#include <string.h>

#include "qstill-image.h"

#include "../lib/memio_dir.h"
#include "../lib/memio_layers.h"
#include "../lib/naive_image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Sector by sector is slow: beyond this only the ends of extents are looked
 * at. */
#define SECTORS_EACH 64

static void same(const struct naive_chain *c,
                 const struct qstill_image_extent *e, uint64_t at)
{
    struct naive_status s = naive_status(c, at);
    uint64_t host = e->offset + (at - e->start);

    if (e->zero != s.zero && !(e->zero && c->n == s.layer + 1))
        memio_die("at %llu: zero is %d, should be %d", (unsigned long long)at,
                  e->zero, s.zero);
    if (s.zero || !e->data)
        return;
    if (e->depth != s.layer)
        memio_die("at %llu: layer %u, should be %zu", (unsigned long long)at,
                  e->depth, s.layer);
    if (!s.compressed && (!e->has_offset || host != s.host))
        memio_die("at %llu: offset %llu, should be %llu",
                  (unsigned long long)at, (unsigned long long)host,
                  (unsigned long long)s.host);
}

static int extent(void *user, const struct qstill_image_extent *e)
{
    uint64_t sectors = e->length / NAIVE_SECTOR;

    for (uint64_t i = 0; i < sectors; i++) {
        if (i < SECTORS_EACH || i + SECTORS_EACH > sectors)
            same(user, e, e->start + i * NAIVE_SECTOR);
        else
            i = sectors - SECTORS_EACH;
    }
    return 0;
}

static int nothing(void *user, const struct qstill_image_extent *e)
{
    (void)user;
    (void)e;
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *dir = memio_layers_dir();
    struct naive_chain *c;
    struct qstill_error err;

    memio_layers_put(data, size);
    if (qstill_image_map(memio_path(dir, "l0"), "qcow2", nothing, NULL, &err) <
        0)
        return 0;
    c = naive_open(dir, "l0", true);
    if (!c)
        return 0; /* deeper than it reads, or a name it does not resolve */
    qstill_image_map(memio_path(dir, "l0"), "qcow2", extent, c, &err);
    naive_close(c);
    return 0;
}
