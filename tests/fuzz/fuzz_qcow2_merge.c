/* SPDX-License-Identifier: MIT */
/*
 * A chain of up to three files and a merge of it: what survives reads as
 * before and its refcounts are right; when the merge is refused or fails no
 * file has changed, but a dropped one that was being written over when damage
 * was found; there is nothing to recover then after the first try. The input's
 * first byte: bits 0-1 the number of layers, 2-3 the direction, 4 whether all
 * layers below the top go.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "qcow2/merge.h"

#include "../lib/fault_io.h"
#include "../lib/memio_dir.h"
#include "../lib/memio_layers.h"
#include "../lib/naive_image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Larger guests take too long to read twice. */
#define MAX_GUEST (4u << 20)

struct before {
    uint64_t view; /* 0: cannot be read */
    bool damaged;  /* by the naive count, which sees less than the engine */
    uint8_t *bytes;
    size_t len;
};

static const char *const names[] = {"l0", "l1", "l2"};

static void look(const char *dir, const char *name, struct before *b)
{
    struct naive_chain *c = naive_open(dir, name, true);

    b->bytes = memio_get(memio_path(dir, name), &b->len);
    if (c && c->size <= MAX_GUEST)
        b->view = naive_hash(c);
    b->damaged = c && naive_check(c) == 2;
    naive_close(c);
}

static int merge(const struct merge_request *q, struct qstill_error *err)
{
    struct merge *m = NULL;
    struct fault_io plain; /* no faults: but not io_uring, which is slower */
    bool done = false;
    int e;

    fault_io_init(&plain, NULL);
    e = merge_open(&m, &plain.io, q, err);
    while (e == 0 && !done)
        e = merge_step(m, &done, err);
    merge_close(m);
    return e;
}

static void unchanged(const char *dir, const char *name, const struct before *b,
                      const char *why)
{
    size_t len;
    uint8_t *now = memio_get(memio_path(dir, name), &len);

    if (!now || len != b->len || memcmp(now, b->bytes, len) != 0)
        memio_die("%s was changed by a merge that failed: %s", name, why);
    free(now);
}

static void survived(const char *dir, const struct before *b, bool damaged)
{
    struct naive_chain *c = naive_open(dir, "l0", true);

    /* nor could it before, when a layer below is cut off */
    if (!c && !b->view)
        return;
    if (!c)
        memio_die("the top cannot be opened any more");
    if (b->view && naive_hash(c) != b->view)
        memio_die("the top reads differently");
    if (!damaged && naive_check(c) == 2)
        memio_die("the top's refcounts are wrong");
    naive_close(c);
}

static void find_journal(void *user, const char *name)
{
    *(bool *)user |= strncmp(name, MERGE_JOURNAL, strlen(MERGE_JOURNAL)) == 0;
}

static bool left_journal(const char *dir)
{
    bool found = false;

    memio_each(dir, find_journal, &found);
    return found;
}

static void recover_all(const char *dir)
{
    struct qstill_error err = {0};
    struct fault_io plain;
    bool did;

    fault_io_init(&plain, NULL);
    if (merge_recover_dir(&plain.io, dir, &did, &err) < 0 && !err.message[0])
        memio_die("a recovery that failed says nothing");
    if (left_journal(dir))
        memio_die("a merge that can never be done stays: %s", err.message);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *dir = memio_layers_dir();
    struct merge_request q = MERGE_REQUEST_INIT;
    struct before before[MEMIO_MAX_LAYERS] = {0};
    unsigned n = memio_layers_put(data, size);
    const char *top = memio_path(dir, "l0");
    const char *drop[] = {memio_path(dir, "l1"), memio_path(dir, "l2")};
    struct qstill_error err = {0};
    bool damaged = false;
    int e;

    if (n < 2)
        return 0;
    q.top = top;
    q.drop = drop;
    q.drop_count = data[0] & 16 ? n - 1 : 1;
    q.direction = (enum merge_direction)(data[0] >> 2 & 3);
    for (unsigned i = 0; i < n; i++) {
        look(dir, names[i], &before[i]);
        damaged |= before[i].damaged;
    }
    e = merge(&q, &err);
    for (unsigned i = 0; i < n && e < 0; i++)
        if (i == 0 || i > q.drop_count || !left_journal(dir))
            unchanged(dir, names[i], &before[i], err.message);
    if (e == 0 || left_journal(dir))
        survived(dir, &before[0], damaged);
    if (left_journal(dir)) {
        recover_all(dir);
        survived(dir, &before[0], damaged);
    }
    for (unsigned i = 0; i < n; i++)
        free(before[i].bytes);
    return 0;
}
