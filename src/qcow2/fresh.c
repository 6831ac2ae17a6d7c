/* SPDX-License-Identifier: MIT */
#include "fresh.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"

int fresh_init(struct fresh *f, uint32_t cluster_bits, uint64_t size,
               uint8_t compression_type, struct qstill_error *err)
{
    uint64_t l1;

    *f = (struct fresh){.cs = 1ull << cluster_bits};
    qcow2_header_init(&f->h);
    f->h.version = 3;
    f->h.cluster_bits = cluster_bits;
    f->h.size = size;
    f->h.refcount_order = 4;
    f->h.header_length = QCOW2_V3_HEADER;
    f->h.compression_type = compression_type;
    if (compression_type != QCOW2_COMPRESSION_ZLIB)
        f->h.incompatible |= QCOW2_INCOMPAT_COMPRESSION;
    l1 = qcow2_l1_needed(&f->h, size);
    if (l1 > QCOW2_MAX_L1_BYTES / 8)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "a disk of %llu bytes needs larger clusters than %llu "
                       "bytes",
                       (unsigned long long)size, (unsigned long long)f->cs);
    f->h.l1_size = (uint32_t)max_u64(l1, 1);
    f->l2 = calloc(f->h.l1_size, sizeof(*f->l2));
    return f->l2 ? 0 : err_nomem(err);
}

void fresh_fini(struct fresh *f)
{
    for (size_t i = 0; f->l2 && i < f->h.l1_size; i++)
        free(f->l2[i]);
    free(f->l2);
    free(f->refs);
    qcow2_header_fini(&f->h);
    *f = (struct fresh){0};
}

int fresh_map(struct fresh *f, uint64_t guest, uint64_t entry)
{
    uint64_t cluster = guest >> f->h.cluster_bits, per = f->cs / 8;
    uint8_t **table = &f->l2[cluster / per];

    if (!*table && !(*table = calloc(1, (size_t)f->cs)))
        return -1;
    put_be64(*table + 8 * (cluster % per), entry);
    return 0;
}

/* Room for the counts of clusters below `n`. */
static int reach(struct fresh *f, uint64_t n)
{
    uint64_t cap = max_u64(n, max_u64(2 * f->refs_cap, 1024));
    uint16_t *v;

    if (n > f->refs_cap) {
        v = realloc(f->refs, cap * sizeof(*v));
        if (!v)
            return -1;
        memset(v + f->refs_cap, 0, (cap - f->refs_cap) * sizeof(*v));
        f->refs = v;
        f->refs_cap = cap;
    }
    f->refs_n = max_u64(f->refs_n, n);
    return 0;
}

int fresh_ref(struct fresh *f, uint64_t cluster)
{
    if (reach(f, cluster + 1) < 0)
        return -1;
    f->refs[cluster]++;
    return 0;
}

uint64_t fresh_refs(const struct fresh *f, uint64_t cluster)
{
    return cluster < f->refs_n ? f->refs[cluster] : 0;
}

/* -------------------------------------------------------------------- write */

/* Where the tables go, in clusters. */
struct places {
    uint64_t l2;
    uint64_t l1;
    uint64_t blocks;
    uint64_t table;
    uint64_t end;
};

static int place(struct fresh *f, uint64_t first, struct places *p,
                 struct qstill_error *err)
{
    uint64_t per_block = f->cs / 2, tables = 0, blocks = 0, table;

    for (size_t i = 0; i < f->h.l1_size; i++)
        tables += f->l2[i] != NULL;
    p->l2 = first;
    p->l1 = p->l2 + tables;
    p->blocks = p->l1 + div_up_u64(8ull * f->h.l1_size, f->cs);
    /* blocks count themselves, too: a round or two until they suffice */
    do {
        blocks = max_u64(blocks + 1, div_up_u64(p->blocks + blocks, per_block));
        table = div_up_u64(8 * blocks, f->cs);
    } while (blocks * per_block < p->blocks + blocks + table);
    p->table = p->blocks + blocks;
    p->end = p->table + table;
    if (table * f->cs > QCOW2_MAX_REFTABLE_BYTES)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "so much data needs larger clusters than %llu bytes",
                       (unsigned long long)f->cs);
    if (reach(f, p->end) < 0)
        return err_nomem(err);
    f->refs[0] = 1;
    for (uint64_t c = first; c < p->end; c++)
        f->refs[c] = 1;
    return 0;
}

#define GATHER_BYTES ((size_t)4 << 20)

/* Bytes that follow each other, written in large pieces. */
struct writer {
    const struct io *io;
    int fd;
    const char *path;
    uint8_t *data;
    size_t used;
    uint64_t off;
};

static void writer_finip(struct writer *w)
{
    free(w->data);
}

static int writer_flush(struct writer *w, struct qstill_error *err)
{
    if (io_write_full(w->io, w->fd, w->data, w->used, w->off, err) < 0)
        return err_wrap(err, "%s", w->path);
    w->off += w->used;
    w->used = 0;
    return 0;
}

/* Room for `len` more bytes, zeroed; NULL after an error. */
static uint8_t *writer_add(struct writer *w, size_t len,
                           struct qstill_error *err)
{
    uint8_t *p;

    if (w->used + len > GATHER_BYTES && writer_flush(w, err) < 0)
        return NULL;
    p = w->data + w->used;
    memset(p, 0, len);
    w->used += len;
    return p;
}

static int add_l2(struct fresh *f, struct writer *w, struct qstill_error *err)
{
    for (size_t i = 0; i < f->h.l1_size; i++) {
        uint8_t *p = f->l2[i] ? writer_add(w, (size_t)f->cs, err) : NULL;

        if (f->l2[i] && !p)
            return err->code;
        if (p)
            memcpy(p, f->l2[i], (size_t)f->cs);
    }
    return 0;
}

static int add_l1(struct fresh *f, struct writer *w, uint64_t l2,
                  struct qstill_error *err)
{
    uint64_t clusters = div_up_u64(8ull * f->h.l1_size, f->cs), i = 0;

    while (clusters-- > 0) {
        uint8_t *p = writer_add(w, (size_t)f->cs, err);

        if (!p)
            return err->code;
        for (size_t k = 0; k < f->cs / 8 && i < f->h.l1_size; k++, i++)
            if (f->l2[i])
                put_be64(p + 8 * k, l2++ * f->cs | QCOW2_COPIED);
    }
    return 0;
}

static int add_refcounts(struct fresh *f, struct writer *w,
                         const struct places *at, struct qstill_error *err)
{
    uint64_t blocks = at->table - at->blocks, per_block = f->cs / 2;

    for (uint64_t b = 0; b < blocks; b++) {
        uint8_t *p = writer_add(w, (size_t)f->cs, err);

        if (!p)
            return err->code;
        for (uint64_t k = 0; k < per_block; k++)
            put_be16(p + 2 * k, (uint16_t)fresh_refs(f, b * per_block + k));
    }
    for (uint64_t b = 0; b < blocks;) {
        uint8_t *p = writer_add(w, (size_t)f->cs, err);

        if (!p)
            return err->code;
        for (size_t k = 0; k < f->cs / 8 && b < blocks; k++, b++)
            put_be64(p + 8 * k, (at->blocks + b) * f->cs);
    }
    return writer_flush(w, err);
}

static int write_header(struct fresh *f, const struct writer *w,
                        const struct places *at, struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf b = BUF_INIT;
    size_t len;

    f->h.l1_offset = at->l1 * f->cs;
    f->h.reftable_offset = at->table * f->cs;
    f->h.reftable_clusters = (uint32_t)(at->end - at->table);
    if (qcow2_header_emit(&f->h, &b, err) < 0)
        return err->code;
    len = b.len;
    if (buf_reserve(&b, (size_t)f->cs - len) < 0)
        return err_nomem(err);
    memset(b.data + len, 0, (size_t)f->cs - len);
    if (io_write_full(w->io, w->fd, b.data, (size_t)f->cs, 0, err) < 0)
        return err_wrap(err, "%s", w->path);
    return 0;
}

int fresh_write(struct fresh *f, const struct io *io, int fd, const char *path,
                uint64_t end, struct qstill_error *err)
{
    CLEANUP(writer_finip)
    struct writer w = {.io = io, .fd = fd, .path = path, .off = end};
    struct places at;

    w.data = malloc(GATHER_BYTES);
    if (!w.data)
        return err_nomem(err);
    if (place(f, end / f->cs, &at, err) < 0 || add_l2(f, &w, err) < 0 ||
        add_l1(f, &w, at.l2, err) < 0 || add_refcounts(f, &w, &at, err) < 0)
        return err->code;
    return write_header(f, &w, &at, err);
}
