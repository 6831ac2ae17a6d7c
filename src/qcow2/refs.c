/* SPDX-License-Identifier: MIT */
#include "refs.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "bitmaps.h"
#include "l2.h"
#include "l2walk.h"
#include "snaps.h"

/* ------------------------------------------------------------------ report */

void refs_report_fini(struct refs_report *r)
{
    for (size_t i = 0; i < r->message_count; i++)
        free(r->messages[i]);
    free(r->messages);
    *r = (struct refs_report){0};
}

void refs_say(struct refs_report *r, const char *fmt, ...)
{
    va_list ap;
    char *text;

    if (r->message_count == REFS_MAX_MESSAGES)
        return;
    if (!r->messages)
        r->messages = calloc(REFS_MAX_MESSAGES, sizeof(*r->messages));
    va_start(ap, fmt);
    if (!r->messages || vasprintf(&text, fmt, ap) < 0)
        r->nomem = true;
    else
        r->messages[r->message_count++] = text;
    va_end(ap);
}

/* ---------------------------------------------------------------- counting */

/* 65536 snapshots of a disk of 1 TiB in clusters of 64 KiB. */
#define MAX_SNAPSHOT_L1_BYTES (1ull << 30)

struct counter {
    struct image *img;
    const struct qcow2_header *h;
    struct refs *refs;
    const struct refblocks *stored;
    struct refs_report *report;
    bool active;      /* the active tables: also COPIED marks, fragmentation */
    uint64_t next;    /* where the next cluster would be contiguous */
    uint32_t weight;  /* what is looked at counts so often */
    uint32_t *tables; /* by cluster: how often it is named as an L2 table */
    uint64_t *walked; /* the L2 tables looked at, each once */
};

static void add_weight(uint32_t *count, uint32_t weight)
{
    *count = *count > UINT32_MAX - weight ? UINT32_MAX : *count + weight;
}

static void counter_finip(struct counter *c)
{
    free(c->tables);
    free(c->walked);
}

void refs_fini(struct refs *refs)
{
    free(refs->count);
    *refs = (struct refs){0};
}

static void count_range(struct counter *c, const char *what, uint64_t off,
                        uint64_t bytes)
{
    uint64_t cs = c->img->cluster_size, end;

    if (bytes == 0)
        return;
    if (add_u64(off, bytes, &end) || div_up_u64(end, cs) > c->refs->n) {
        c->report->corruptions++;
        refs_say(c->report, "%s at offset %llu lies outside the file", what,
                 (unsigned long long)off);
        return;
    }
    for (uint64_t i = off / cs; i <= (end - 1) / cs; i++)
        add_weight(&c->refs->count[i], c->weight);
}

/* The mark allows writing in place: set it must be when and only when there is
 * one owner. Marks of inactive tables mean nothing. */
static void check_copied(struct counter *c, const char *what, uint64_t host,
                         bool copied)
{
    uint64_t count = refblocks_get(c->stored, host / c->img->cluster_size);

    if (!c->active || copied == (count == 1))
        return;
    c->report->corruptions++;
    c->report->marks++;
    refs_say(c->report, "%s at %llu: refcount %llu, but COPIED is %s", what,
             (unsigned long long)host, (unsigned long long)count,
             copied ? "set" : "clear");
}

static void count_contiguous(struct counter *c, const struct l2_entry *e)
{
    if (!c->active)
        return;
    c->report->allocated++;
    if (e->kind == L2_COMPRESSED) {
        /* never contiguous, in the sense of QEMU's figures */
        c->report->compressed++;
        c->report->fragmented++;
        return;
    }
    if (c->next && c->next != e->host)
        c->report->fragmented++;
    c->next = e->host + c->img->cluster_size;
}

static void count_entry(struct counter *c, const struct l2_entry *e,
                        uint64_t guest)
{
    if (e->kind == L2_BAD) {
        c->report->corruptions++;
        refs_say(c->report, "at guest offset %llu %s",
                 (unsigned long long)guest, e->why);
        return;
    }
    if (e->host == 0)
        return;
    count_contiguous(c, e);
    if (e->kind != L2_COMPRESSED)
        check_copied(c, "data cluster", e->host, e->copied);
    if (e->kind == L2_COMPRESSED)
        count_range(c, "compressed data", e->host, e->clen);
    else
        count_range(c, "a data cluster", e->host, c->img->cluster_size);
}

static int count_entries(void *user, uint64_t l1_index, size_t from,
                         const uint8_t *entries, size_t len,
                         struct qstill_error *err)
{
    struct counter *c = user;
    uint64_t cs = c->img->cluster_size;
    bool extended = qcow2_has_extl2(c->h);
    size_t step = extended ? 16 : 8;
    /* of inactive tables it is not known, and tells nobody anything */
    uint64_t guest =
        c->active ? (l1_index * image_l2_entries(c->img) + from / step) * cs
                  : 0;

    (void)err;
    c->next = 0;
    c->weight = c->tables[(c->walked[l1_index] & QCOW2_L1_OFFSET_MASK) / cs];
    for (size_t i = 0; i < len; i += step, guest += cs) {
        uint64_t v = get_be64(entries + i);
        struct l2_entry e;

        if (extended)
            e = l2_decode_ext(c->h, v, get_be64(entries + i + 8));
        else if (v == 0)
            continue;
        else
            e = l2_decode(c->h, v);
        if (e.kind != L2_NONE)
            count_entry(c, &e, guest);
    }
    return 0;
}

/* An L1 table and the L2 tables that it names; what they hold is counted by
 * walk(). Entries that cannot be followed are reported and made 0, and those
 * that name a table again. */
static int load_l1(struct counter *c, uint64_t off, uint32_t size,
                   uint64_t **out, struct qstill_error *err)
{
    CLEANUP(freep) uint64_t *l1 = malloc(8 * (size_t)size + 1);
    uint64_t cs = c->img->cluster_size;
    size_t got;

    if (!l1)
        return err_nomem(err);
    if (io_read_upto(c->img->io, c->img->fd, l1, 8 * (size_t)size, off, &got,
                     err) < 0)
        return err_wrap(err, "%s: L1 table", c->img->path);
    memset((uint8_t *)l1 + got, 0, 8 * (size_t)size - got);
    c->weight = 1;
    count_range(c, "an L1 table", off, 8 * (uint64_t)size);
    for (size_t i = 0; i < size; i++) {
        uint64_t table;

        l1[i] = get_be64((const uint8_t *)&l1[i]);
        table = l1[i] & QCOW2_L1_OFFSET_MASK;
        if ((l1[i] & QCOW2_L1_RESERVED_MASK) || table % cs ||
            (table && table >= c->img->info.file_size)) {
            c->report->corruptions++;
            refs_say(c->report, "L1 entry %zu of the table at %llu is damaged",
                     i, (unsigned long long)off);
            l1[i] = 0;
        } else if (table) {
            count_range(c, "an L2 table", table, cs);
            check_copied(c, "L2 table", table, (l1[i] & QCOW2_COPIED) != 0);
            if (c->tables[table / cs] > 0)
                l1[i] = 0;
            add_weight(&c->tables[table / cs], 1);
        }
    }
    *out = take_ptr(&l1);
    return 0;
}

static int walk(struct counter *c, struct aio *aio, uint64_t n,
                struct qstill_error *err)
{
    struct l2walk w = {.img = c->img,
                       .aio = aio,
                       .l1 = c->walked,
                       .l1_size = n,
                       .visit = count_entries,
                       .user = c};
    int r = l2walk(&w, err);

    free(take_ptr(&c->walked));
    c->weight = 1;
    return r;
}

static int count_active(struct counter *c, struct aio *aio,
                        struct qstill_error *err)
{
    c->active = true;
    if (load_l1(c, c->h->l1_offset, c->h->l1_size, &c->walked, err) < 0 ||
        walk(c, aio, c->h->l1_size, err) < 0)
        return err->code;
    c->active = false;
    return 0;
}

/* The tables of the snapshots lie in the file, each for itself: there is an
 * end to what can be asked of us. */
static int check_snapshot_l1s(const struct counter *c, const struct snaps *s,
                              struct qstill_error *err)
{
    uint64_t bytes = 0;

    for (size_t i = 0; i < s->n; i++)
        bytes += 8ull * s->v[i].l1_size;
    if (bytes > c->img->info.file_size)
        return err_set(err, QSTILL_E_CORRUPT,
                       "%s: the L1 tables of its internal snapshots have no "
                       "room in the file",
                       c->img->path);
    if (bytes > MAX_SNAPSHOT_L1_BYTES)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "%s: the L1 tables of its internal snapshots have more "
                       "than %llu bytes",
                       c->img->path, MAX_SNAPSHOT_L1_BYTES);
    return 0;
}

/* Snapshots share most of their L2 tables: each is read once, and counts as
 * often as it is named. */
static int count_snapshots(struct counter *c, struct aio *aio,
                           struct qstill_error *err)
{
    CLEANUP(snaps_fini) struct snaps snaps = {0};
    uint64_t n = 0;

    if (c->h->nb_snapshots == 0)
        return 0;
    if (snaps_load(c->img, &snaps, err) < 0 ||
        check_snapshot_l1s(c, &snaps, err) < 0)
        return err->code;
    count_range(c, "the snapshot table", c->h->snapshots_offset, snaps.bytes);
    /* anew: to clear what the file is long enough for would take all of it */
    free(c->tables);
    c->tables = calloc(c->refs->n, sizeof(*c->tables));
    if (!c->tables)
        return err_nomem(err);
    for (size_t i = 0; i < snaps.n; i++) {
        CLEANUP(freep) uint64_t *l1 = NULL;

        if (load_l1(c, snaps.v[i].l1_offset, snaps.v[i].l1_size, &l1, err) < 0)
            return err->code;
    }
    for (uint64_t i = 0; i < c->refs->n; i++)
        n += c->tables[i] > 0;
    c->walked = malloc((size_t)(8 * n + 1));
    if (!c->walked)
        return err_nomem(err);
    n = 0;
    for (uint64_t i = 0; i < c->refs->n; i++)
        if (c->tables[i] > 0)
            c->walked[n++] = i * c->img->cluster_size;
    return walk(c, aio, n, err);
}

static int count_bitmaps(struct counter *c, struct qstill_error *err)
{
    CLEANUP(bitmaps_fini) struct bitmaps maps = {0};

    if (!c->h->has_bitmaps)
        return 0;
    if (bitmaps_load(c->img, &maps, err) < 0)
        return err->code;
    count_range(c, "the bitmap directory", c->h->bitmap_dir_offset,
                c->h->bitmap_dir_size);
    for (size_t i = 0; i < maps.n; i++) {
        const struct bitmap *b = &maps.v[i];

        count_range(c, "a bitmap's table", b->table_offset,
                    8ull * b->table_entries);
        for (size_t k = 0; k < b->table_entries; k++)
            if (b->table[k] & BITMAP_OFFSET_MASK)
                count_range(c, "a bitmap's cluster",
                            b->table[k] & BITMAP_OFFSET_MASK,
                            c->img->cluster_size);
    }
    return 0;
}

/* The LUKS header is the only other thing that an extension points to. */
static void count_crypto(struct counter *c)
{
    const struct buf *other = &c->h->other;

    for (size_t at = 0; at + 8 <= other->len;) {
        uint32_t len = get_be32(other->data + at + 4);

        if (get_be32(other->data + at) == QCOW2_EXT_CRYPTO)
            count_range(c, "the encryption header",
                        get_be64(other->data + at + 8),
                        get_be64(other->data + at + 16));
        at += 8 + round_up_u64(len, 8);
    }
}

/* Each block counts itself, once. */
static void count_blocks(struct counter *c)
{
    for (size_t i = 0; i < c->stored->table_len; i++)
        if (c->stored->table[i])
            count_range(c, "a refcount block", c->stored->table[i],
                        c->img->cluster_size);
}

int refs_count(struct image *img, struct aio *aio, struct refs *refs,
               struct refblocks *stored, struct refs_report *report,
               struct qstill_error *err)
{
    const struct qcow2_header *h = &img->info.header;
    CLEANUP(counter_finip)
    struct counter c = {.img = img,
                        .h = h,
                        .refs = refs,
                        .stored = stored,
                        .report = report,
                        .weight = 1};

    /* compressed data may be said to reach one cluster past the end */
    refs->n = image_clusters(img) + 1;
    refs->count = calloc(refs->n, sizeof(*refs->count));
    c.tables = calloc(refs->n, sizeof(*c.tables));
    if (!refs->count || !c.tables)
        return err_nomem(err);
    if (refblocks_load(img, stored, report, err) < 0)
        return err->code;
    count_range(&c, "the header", 0, img->cluster_size);
    if (count_active(&c, aio, err) < 0 || count_snapshots(&c, aio, err) < 0 ||
        count_bitmaps(&c, err) < 0)
        return err->code;
    count_crypto(&c);
    count_range(&c, "the refcount table", h->reftable_offset,
                (uint64_t)h->reftable_clusters << h->cluster_bits);
    count_blocks(&c);
    return report->nomem ? err_nomem(err) : 0;
}

void refs_compare(const struct image *img, const struct refs *refs,
                  const struct refblocks *stored, struct refs_report *report)
{
    uint64_t next = 0; /* none before it is stored */

    for (uint64_t i = 0; i < refs->n; i++) {
        uint64_t is, should;

        if (i >= next)
            next = refblocks_seek(stored, i);
        while (i < next && i < refs->n && refs->count[i] == 0)
            i++;
        if (i == refs->n)
            break;
        is = refblocks_get(stored, i);
        should = refs->count[i];
        /* past the end of the file only references count */
        if (i >= image_clusters(img) && should == 0)
            continue;
        if (is || should)
            report->end = (i + 1) * img->cluster_size;
        if (is == should)
            continue;
        if (is < should)
            report->corruptions++;
        else
            report->leaks++;
        refs_say(report, "%s cluster %llu: refcount %llu, references %llu",
                 is < should ? "corrupt" : "leaked", (unsigned long long)i,
                 (unsigned long long)is, (unsigned long long)should);
    }
}
