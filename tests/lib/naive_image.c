/* SPDX-License-Identifier: MIT */
#include "naive_image.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <zlib.h>
#include <zstd.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "memio_dir.h"

#define OFFSET     0x00fffffffffffe00ull
#define COPIED     (1ull << 63)
#define COMPRESSED (1ull << 62)
#define MAX_FILE   (1 << 30) /* it is read whole */

struct naive_layer {
    uint8_t *data;
    size_t len;
    bool qcow2;
    uint64_t size;
    unsigned bits;
    uint64_t cs;
    bool extended;
    bool zstd;
    uint64_t inflated_at; /* host offset + 1 of what is in `cluster` */
    uint8_t *cluster;
};

static uint64_t u64_at(const struct naive_layer *l, uint64_t at)
{
    return at + 8 <= l->len && at + 8 > at ? get_be64(l->data + at) : 0;
}

static uint32_t u32_at(const struct naive_layer *l, uint64_t at)
{
    return at + 4 <= l->len ? get_be32(l->data + at) : 0;
}

static uint64_t entry_size(const struct naive_layer *l)
{
    return l->extended ? 16 : 8;
}

/* -------------------------------------------------------------- opening */

static void layer_free(struct naive_layer *l)
{
    if (!l)
        return;
    free(l->data);
    free(l->cluster);
    free(l);
}

static struct naive_layer *layer_open(const char *path, bool qcow2)
{
    struct naive_layer *l;
    struct stat st;

    if (stat(path, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size > MAX_FILE)
        return NULL;
    l = calloc(1, sizeof(*l));
    l->qcow2 = qcow2;
    l->data = memio_get(path, &l->len);
    l->size = round_up_u64(l->len, NAIVE_SECTOR);
    if (!l->data || !qcow2)
        goto out;
    l->bits = u32_at(l, 20);
    if (l->len < 72 || u32_at(l, 0) != 0x514649fb || l->bits < 9 ||
        l->bits > 21)
        goto bad;
    l->cs = 1ull << l->bits;
    l->size = u64_at(l, 24) / NAIVE_SECTOR * NAIVE_SECTOR;
    if (u32_at(l, 4) == 3) {
        l->extended = u64_at(l, 72) & 16;
        l->zstd = u32_at(l, 100) > 104 && l->len > 104 && l->data[104] == 1;
    }
    /* tables that cannot be in the file would only take time */
    if ((u32_at(l, 4) == 3 && u32_at(l, 96) > 6) ||
        u32_at(l, 36) > l->len / 8 || u32_at(l, 56) > l->len / l->cs ||
        u32_at(l, 60) > l->len / 40)
        goto bad;
    l->cluster = malloc(l->cs);
out:
    if (l->data)
        return l;
bad:
    layer_free(l);
    return NULL;
}

/* Where a header extension's data is, and how long; 0 without one. */
static uint64_t extension(const struct naive_layer *l, uint32_t type,
                          uint32_t *len)
{
    uint64_t at = u32_at(l, 4) == 3 ? u32_at(l, 100) : 72;

    while (at + 8 <= l->len && u32_at(l, at) != 0) {
        *len = u32_at(l, at + 4);
        if (u32_at(l, at) == type && at + 8 + *len <= l->len)
            return at + 8;
        at += 8 + round_up_u64(*len, 8);
    }
    return 0;
}

static bool backing_format(const struct naive_layer *l, bool *qcow2)
{
    uint32_t len;
    uint64_t at = extension(l, 0xe2792aca, &len);

    *qcow2 = at && len == 5 && memcmp(l->data + at, "qcow2", 5) == 0;
    return at != 0;
}

struct naive_chain *naive_open(const char *dir, const char *name, bool qcow2)
{
    struct naive_chain *c = calloc(1, sizeof(*c));
    char path[4096 + 1024];

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    for (;;) {
        struct naive_layer *l = layer_open(path, qcow2);
        uint64_t at, len;

        if (!l || c->n == NAIVE_MAX_LAYERS) {
            layer_free(l);
            naive_close(c);
            return NULL;
        }
        c->layers[c->n++] = l;
        at = l->qcow2 ? u64_at(l, 8) : 0;
        len = l->qcow2 ? u32_at(l, 16) : 0;
        if (at == 0 || len == 0)
            break;
        if (len > 1023 || at > l->len || len > l->len - at ||
            !backing_format(l, &qcow2)) {
            naive_close(c);
            return NULL;
        }
        snprintf(path, sizeof(path), "%s%s%.*s", l->data[at] == '/' ? "" : dir,
                 l->data[at] == '/' ? "" : "/", (int)len,
                 (const char *)l->data + at);
    }
    c->size = c->layers[0]->size;
    return c;
}

void naive_close(struct naive_chain *c)
{
    for (size_t i = 0; c && i < c->n; i++)
        layer_free(c->layers[i]);
    free(c);
}

/* --------------------------------------------------------------- looking */

/* The two words of the L2 entry of a guest offset; zeros without a table. */
static uint64_t l2_entry(const struct naive_layer *l, uint64_t guest,
                         uint64_t *sub)
{
    uint64_t per = l->cs / entry_size(l);
    uint64_t cluster = guest >> l->bits;
    uint64_t slot = cluster / per, l2;

    *sub = 0;
    if (slot >= u32_at(l, 36))
        return 0;
    l2 = u64_at(l, u64_at(l, 40) + 8 * slot) & OFFSET;
    if (l2 == 0)
        return 0;
    l2 += cluster % per * entry_size(l);
    if (l->extended)
        *sub = u64_at(l, l2 + 8);
    return u64_at(l, l2);
}

/* What one layer says: false when it falls through. */
static bool layer_status(const struct naive_layer *l, uint64_t guest,
                         struct naive_status *s)
{
    uint64_t entry, sub, bit;

    if (!l->qcow2) {
        s->host = guest;
        return true;
    }
    entry = l2_entry(l, guest, &sub);
    if (entry & COMPRESSED) {
        s->compressed = true;
        s->host = entry;
        return true;
    }
    s->host = (entry & OFFSET) + (guest & (l->cs - 1));
    if (l->extended) {
        bit = (guest & (l->cs - 1)) / (l->cs / 32);
        s->zero = sub >> (32 + bit) & 1;
        return s->zero || (sub >> bit & 1);
    }
    s->zero = entry & 1;
    return s->zero || (entry & OFFSET);
}

struct naive_status naive_status(const struct naive_chain *c, uint64_t guest)
{
    struct naive_status s = {0};

    for (size_t i = 0; i < c->n; i++) {
        s = (struct naive_status){.layer = i};
        if (guest >= c->layers[i]->size) {
            /* a short layer: zeros, whatever is below */
            s.zero = true;
            s.layer = i;
            return s;
        }
        if (layer_status(c->layers[i], guest, &s))
            return s;
    }
    return (struct naive_status){.layer = c->n, .zero = true};
}

static bool inflate_zlib(const uint8_t *in, size_t len, uint8_t *out,
                         size_t room)
{
    z_stream z = {.next_in = (uint8_t *)(uintptr_t)in,
                  .avail_in = (unsigned)len,
                  .next_out = out,
                  .avail_out = (unsigned)room};
    int e;

    if (inflateInit2(&z, -15) != Z_OK)
        return false;
    e = inflate(&z, Z_FINISH);
    inflateEnd(&z);
    return (e == Z_STREAM_END || e == Z_BUF_ERROR) && z.avail_out == 0;
}

static bool inflate_zstd(const uint8_t *in, size_t len, uint8_t *out,
                         size_t room)
{
    ZSTD_DCtx *d = ZSTD_createDCtx();
    ZSTD_inBuffer i = {in, len, 0};
    ZSTD_outBuffer o = {out, room, 0};
    bool ok = d != NULL;

    while (ok && o.pos < o.size) {
        size_t before = i.pos + o.pos;

        ok = !ZSTD_isError(ZSTD_decompressStream(d, &o, &i)) &&
             i.pos + o.pos > before;
    }
    ZSTD_freeDCtx(d);
    return ok;
}

static bool inflate_cluster(struct naive_layer *l, uint64_t entry)
{
    unsigned x = 62 - (l->bits - 8);
    uint64_t at = entry & ((1ull << x) - 1);
    uint64_t len = (((entry & (COMPRESSED - 1)) >> x) + 1) * 512 - at % 512;
    uint8_t *in;
    bool ok;

    if (l->inflated_at == entry)
        return true;
    if (at >= l->len)
        return false;
    in = calloc(1, len); /* what is past the end of the file is zeros */
    memcpy(in, l->data + at, min_u64(len, l->len - at));
    ok = l->zstd ? inflate_zstd(in, len, l->cluster, l->cs)
                 : inflate_zlib(in, len, l->cluster, l->cs);
    free(in);
    l->inflated_at = ok ? entry : 0;
    return ok;
}

bool naive_read(const struct naive_chain *c, uint64_t guest, uint8_t *out)
{
    struct naive_status s = naive_status(c, guest);
    struct naive_layer *l = s.layer < c->n ? c->layers[s.layer] : NULL;

    memset(out, 0, NAIVE_SECTOR);
    if (s.zero || !l)
        return true;
    if (s.compressed) {
        if (!inflate_cluster(l, s.host))
            return false;
        memcpy(out, l->cluster + (guest & (l->cs - 1)), NAIVE_SECTOR);
    } else if (s.host < l->len) {
        memcpy(out, l->data + s.host, min_u64(NAIVE_SECTOR, l->len - s.host));
    }
    return true;
}

uint64_t naive_hash(const struct naive_chain *c)
{
    uint64_t h = 0xcbf29ce484222325 ^ c->size;
    uint8_t sector[NAIVE_SECTOR];

    for (uint64_t at = 0; at < c->size; at += NAIVE_SECTOR) {
        if (!naive_read(c, at, sector))
            return 0;
        for (size_t i = 0; i < NAIVE_SECTOR; i += 8) {
            h = (h ^ get_le64(sector + i)) * 0x9e3779b97f4a7c15;
            h ^= h >> 29;
        }
    }
    return h ? h : 1;
}

uint64_t naive_hash_file(const char *dir, const char *name, bool qcow2)
{
    struct naive_chain *c = naive_open(dir, name, qcow2);
    uint64_t h = c ? naive_hash(c) : 0;

    naive_close(c);
    return h;
}

/* -------------------------------------------------------------- counting */

struct count {
    const struct naive_layer *l;
    uint64_t n;
    uint32_t *refs;
    bool bad;
};

static void take(struct count *k, uint64_t at, uint64_t len)
{
    for (uint64_t i = at >> k->l->bits;
         len && i <= (at + len - 1) >> k->l->bits; i++) {
        if (i >= k->n) {
            k->bad = true;
            return;
        }
        k->refs[i]++;
    }
}

static void count_l2(struct count *k, uint64_t l2)
{
    const struct naive_layer *l = k->l;
    unsigned x = 62 - (l->bits - 8);

    for (uint64_t at = l2; at < l2 + l->cs; at += entry_size(l)) {
        uint64_t e = u64_at(l, at), host = e & ((1ull << x) - 1);

        if (e & COMPRESSED)
            take(k, host,
                 (((e & (COMPRESSED - 1)) >> x) + 1) * 512 - host % 512);
        else if (e & OFFSET)
            take(k, e & OFFSET, l->cs);
    }
}

static void count_l1(struct count *k, uint64_t at, uint32_t size)
{
    take(k, at, size * 8ull);
    for (uint32_t i = 0; i < size; i++) {
        uint64_t l2 = u64_at(k->l, at + 8ull * i) & OFFSET;

        if (l2) {
            take(k, l2, k->l->cs);
            count_l2(k, l2);
        }
    }
}

static uint64_t stored(const struct naive_layer *l, uint64_t cluster)
{
    unsigned order = u32_at(l, 4) == 3 ? u32_at(l, 96) : 4;
    uint64_t per = l->cs * 8 >> order, at;

    if (cluster / per >= u32_at(l, 56) * l->cs / 8)
        return 0;
    at = u64_at(l, u64_at(l, 48) + 8 * (cluster / per)) & ~511ull;
    if (at == 0)
        return 0;
    cluster %= per;
    if (order >= 3) {
        uint64_t v = 0, width = 1u << (order - 3);

        at += cluster * width;
        for (uint64_t i = 0; i < width && at + i < l->len; i++)
            v = v << 8 | l->data[at + i];
        return v;
    }
    at += (cluster << order) / 8;
    return at >= l->len ? 0
                        : l->data[at] >> ((cluster << order) % 8) &
                              ((1u << (1u << order)) - 1);
}

static bool copied_right(const struct naive_layer *l, uint64_t e)
{
    bool one = stored(l, (e & OFFSET) >> l->bits) == 1;

    return (e & COMPRESSED) || !(e & OFFSET) || one == !!(e & COPIED);
}

static bool all_copied_right(const struct naive_layer *l)
{
    for (uint32_t i = 0; i < u32_at(l, 36); i++) {
        uint64_t e = u64_at(l, u64_at(l, 40) + 8ull * i), l2 = e & OFFSET;

        if (!copied_right(l, e))
            return false;
        for (uint64_t at = l2; l2 && at < l2 + l->cs; at += entry_size(l)) {
            if (!copied_right(l, u64_at(l, at)))
                return false;
        }
    }
    return true;
}

static void count_snapshots(struct count *k)
{
    const struct naive_layer *l = k->l;
    uint64_t start = u64_at(l, 64), at = start;

    for (uint32_t i = 0; i < u32_at(l, 60) && at + 40 <= l->len; i++) {
        uint32_t lens = u32_at(l, at + 12);

        if (u32_at(l, at + 8) > l->len / 8) {
            k->bad = true;
            return;
        }
        count_l1(k, u64_at(l, at), u32_at(l, at + 8));
        at += round_up_u64(
            40ull + u32_at(l, at + 36) + (lens >> 16) + (lens & 0xffff), 8);
    }
    take(k, start, at - start);
}

static void count_bitmaps(struct count *k)
{
    const struct naive_layer *l = k->l;
    uint32_t len;
    uint64_t ext = extension(l, 0x23852875, &len), at;

    if (!ext || u32_at(l, 4) != 3 || !(u64_at(l, 88) & 1))
        return;
    at = u64_at(l, ext + 16);
    take(k, at, u64_at(l, ext + 8));
    for (uint32_t i = 0; i < u32_at(l, ext) && at + 24 <= l->len; i++) {
        uint64_t table = u64_at(l, at), n = u32_at(l, at + 8);

        if (n > l->len / 8) {
            k->bad = true;
            return;
        }

        take(k, table, n * 8);
        for (uint64_t t = table; t < table + n * 8; t += 8)
            take(k, u64_at(l, t) & OFFSET, u64_at(l, t) & OFFSET ? l->cs : 0);
        at += round_up_u64(
            24ull + u32_at(l, at + 20) + (u32_at(l, at + 16) & 0xffff), 8);
    }
}

int naive_check(const struct naive_chain *c)
{
    const struct naive_layer *l = c->layers[0];
    struct count k = {.l = l, .n = div_up_u64(l->len, l->qcow2 ? l->cs : 1)};
    uint64_t table = u64_at(l, 48), table_len;
    int result = 0;

    if (!l->qcow2)
        return 0;
    table_len = u32_at(l, 56) * l->cs;
    k.refs = calloc(k.n + 1, sizeof(*k.refs));
    take(&k, 0, 1);
    take(&k, table, table_len);
    for (uint64_t at = table; at < table + table_len; at += 8) {
        if (u64_at(l, at))
            take(&k, u64_at(l, at) & ~511ull, l->cs);
    }
    count_l1(&k, u64_at(l, 40), u32_at(l, 36));
    count_snapshots(&k);
    count_bitmaps(&k);
    for (uint64_t i = 0; i < k.n; i++) {
        uint64_t have = stored(l, i);

        if (have < k.refs[i])
            k.bad = true;
        if (have > k.refs[i])
            result = 1;
    }
    free(k.refs);
    return k.bad || !all_copied_right(l) ? 2 : result;
}
