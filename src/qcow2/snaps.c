/* SPDX-License-Identifier: MIT */
#include "snaps.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"

enum { FIXED = 40, KNOWN_EXTRA = 24 };

void snaps_fini(struct snaps *s)
{
    for (size_t i = 0; i < s->n; i++) {
        free(s->v[i].id);
        free(s->v[i].name);
    }
    free(s->v);
    *s = (struct snaps){0};
}

static int bad(const struct image *img, size_t i, const char *why,
               struct qstill_error *err)
{
    return err_set(err, QSTILL_E_CORRUPT, "%s: internal snapshot %zu %s",
                   img->path, i + 1, why);
}

/* The part behind the fixed one: extra data, id, name. */
static int read_tail(const struct image *img, size_t i, const uint8_t *fixed,
                     uint64_t off, struct snap *s, struct qstill_error *err)
{
    uint32_t extra = get_be32(fixed + 36);
    size_t id = get_be16(fixed + 12), name = get_be16(fixed + 14);
    CLEANUP(freep) uint8_t *tail = malloc((size_t)extra + id + name + 1);

    if (!tail)
        return err_nomem(err);
    if (io_read_full(img->io, img->fd, tail, extra + id + name, off, err) < 0)
        return err_wrap(err, "%s: snapshot table", img->path);
    s->vm_state_size = get_be32(fixed + 32);
    s->disk_size = img->size;
    if (extra >= 8)
        s->vm_state_size = get_be64(tail);
    if (extra >= 16)
        s->disk_size = get_be64(tail + 8);
    s->icount = extra >= KNOWN_EXTRA ? get_be64(tail + 16) : UINT64_MAX;
    s->id = strndup((char *)tail + extra, id);
    s->name = strndup((char *)tail + extra + id, name);
    if (!s->id || !s->name)
        return err_nomem(err);
    if (img->info.header.version >= 3 && extra < 16)
        return bad(img, i, "lacks data that version 3 must have", err);
    return 0;
}

static int read_one(const struct image *img, size_t i, uint64_t *off,
                    struct snap *s, struct qstill_error *err)
{
    uint8_t fixed[FIXED];
    uint32_t extra;

    if (io_read_full(img->io, img->fd, fixed, FIXED, *off, err) < 0)
        return err_wrap(err, "%s: snapshot table", img->path);
    s->l1_offset = get_be64(fixed);
    s->l1_size = get_be32(fixed + 8);
    s->date_sec = get_be32(fixed + 16);
    s->date_nsec = get_be32(fixed + 20);
    s->vm_clock_ns = get_be64(fixed + 24);
    extra = get_be32(fixed + 36);
    if (extra > QCOW2_MAX_SNAPSHOT_EXTRA)
        return bad(img, i, "has more than 1024 bytes of extra data", err);
    if (s->l1_offset % img->cluster_size ||
        8ull * s->l1_size > QCOW2_MAX_L1_BYTES)
        return bad(img, i, "has an impossible L1 table", err);
    if (read_tail(img, i, fixed, *off + FIXED, s, err) < 0)
        return err->code;
    *off += round_up_u64(
        FIXED + extra + get_be16(fixed + 12) + get_be16(fixed + 14), 8);
    return 0;
}

int snaps_load(const struct image *img, struct snaps *out,
               struct qstill_error *err)
{
    const struct qcow2_header *h = &img->info.header;
    uint64_t off = h->snapshots_offset;

    if (h->nb_snapshots == 0)
        return 0;
    out->v = calloc(h->nb_snapshots, sizeof(*out->v));
    if (!out->v)
        return err_nomem(err);
    for (; out->n < h->nb_snapshots; out->n++) {
        struct snap s = {0};

        if (read_one(img, out->n, &off, &s, err) < 0) {
            free(s.id);
            free(s.name);
            return err->code;
        }
        out->v[out->n] = s;
        if (off - h->snapshots_offset > QCOW2_MAX_SNAPSHOT_BYTES)
            return err_set(err, QSTILL_E_CORRUPT,
                           "%s: the snapshot table is larger than 64 MiB",
                           img->path);
    }
    out->bytes = off - h->snapshots_offset;
    return 0;
}
