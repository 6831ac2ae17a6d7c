/* SPDX-License-Identifier: MIT */
/*
 * The layout of a new image: header, refcount table, refcount blocks, L1, in
 * this order, one after the other. The VM state image adds a snapshot table,
 * the snapshot's L1 and L2 tables and the state's clusters.
 */
#include "create.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "attrs.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "header.h"

#define DEFAULT_CLUSTER_BITS 16u

/* ------------------------------------------------------------ empty images */

/* The metadata of an empty image: how many clusters each part has. */
struct blank {
    struct qcow2_header h;
    uint64_t l1_clusters;
    uint64_t refblocks;
    uint64_t clusters;
};

static void blank_finip(struct blank *b)
{
    qcow2_header_fini(&b->h);
}

static int set_backing(struct qcow2_header *h,
                       const struct qcow2_create_options *o,
                       struct qstill_error *err)
{
    if (!o->backing)
        return 0;
    if (!o->backing_format || strlen(o->backing_format) == 0 ||
        strlen(o->backing_format) > QCOW2_MAX_FORMAT_NAME)
        return err_set(err, QSTILL_E_USAGE,
                       "a backing file needs the name of its format");
    if (strlen(o->backing) == 0 || strlen(o->backing) > QCOW2_MAX_BACKING_NAME)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "the backing file's name has %zu bytes, qcow2 holds 1 "
                       "to %u",
                       strlen(o->backing), QCOW2_MAX_BACKING_NAME);
    h->has_backing = h->has_format = true;
    strcpy(h->backing, o->backing);
    strcpy(h->backing_format, o->backing_format);
    h->backing_len = (uint32_t)strlen(o->backing);
    return 0;
}

static int blank_plan(struct blank *b, const struct qcow2_create_options *o,
                      struct qstill_error *err)
{
    struct qcow2_header *h = &b->h;
    uint64_t cluster, per_block, l1;

    h->version = 3;
    h->cluster_bits = o->cluster_bits ? o->cluster_bits : DEFAULT_CLUSTER_BITS;
    if (h->cluster_bits < QCOW2_MIN_CLUSTER_BITS ||
        h->cluster_bits > QCOW2_MAX_CLUSTER_BITS)
        return err_set(err, QSTILL_E_USAGE,
                       "clusters of 2^%u bytes are not possible",
                       h->cluster_bits);
    h->size = o->virtual_size;
    h->refcount_order = 4;
    h->header_length = QCOW2_V3_HEADER;
    h->incompatible = o->incompatible;
    if (h->incompatible & QCOW2_INCOMPAT_COMPRESSION)
        h->compression_type = QCOW2_COMPRESSION_ZSTD;
    if (qcow2_has_extl2(h) && h->cluster_bits < QCOW2_MIN_EXTL2_BITS)
        return err_set(err, QSTILL_E_USAGE,
                       "extended L2 entries need clusters of 16 KiB or more");
    cluster = qcow2_cluster_size(h);
    if (h->size > INT64_MAX || h->size % QCOW2_SECTOR != 0)
        return err_set(err, QSTILL_E_USAGE,
                       "a virtual size of %llu bytes is not possible",
                       (unsigned long long)h->size);
    l1 = qcow2_l1_needed(h, h->size);
    if (l1 > QCOW2_MAX_L1_BYTES / 8)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "a virtual size of %llu bytes needs larger clusters "
                       "than 2^%u bytes",
                       (unsigned long long)h->size, h->cluster_bits);
    h->l1_size = (uint32_t)max_u64(l1, 1);
    b->l1_clusters = div_up_u64(8ull * h->l1_size, cluster);
    per_block = cluster / 2;
    /* header + reftable + refblocks + L1; one block counts at least 256
     * clusters, so the loop ends after one or two rounds */
    do {
        b->refblocks++;
        h->reftable_clusters = (uint32_t)div_up_u64(8 * b->refblocks, cluster);
        b->clusters = 1 + h->reftable_clusters + b->refblocks + b->l1_clusters;
    } while (b->refblocks * per_block < b->clusters);
    h->reftable_offset = cluster;
    h->l1_offset = (1 + h->reftable_clusters + b->refblocks) * cluster;
    return set_backing(h, o, err);
}

/* Header, reftable and refblocks; L1 is a hole. */
static int blank_emit(struct blank *b, struct buf *out,
                      struct qstill_error *err)
{
    uint64_t cluster = qcow2_cluster_size(&b->h);
    size_t len = (size_t)b->h.l1_offset;
    uint8_t *refblocks;
    uint32_t at;

    if (buf_reserve(out, len) < 0)
        return err_nomem(err);
    if (qcow2_header_emit(&b->h, out, err) < 0)
        return err->code;
    memset(out->data + out->len, 0, len - out->len);
    if (b->h.has_backing) {
        at = qcow2_header_place((uint32_t)cluster, (uint32_t)out->len,
                                b->h.backing_len, 0, 0);
        if (at == 0)
            return err_set(err, QSTILL_E_PRECONDITION,
                           "the backing file's name does not fit into a "
                           "cluster of %llu bytes",
                           (unsigned long long)cluster);
        put_be64(out->data + QCOW2_AT_BACKING_OFFSET, at);
        memcpy(out->data + at, b->h.backing, b->h.backing_len);
    }
    out->len = len;
    refblocks = out->data + (1 + b->h.reftable_clusters) * cluster;
    for (uint64_t i = 0; i < b->refblocks; i++)
        put_be64(out->data + cluster + 8 * i,
                 (1 + b->h.reftable_clusters + i) * cluster);
    for (uint64_t i = 0; i < b->clusters; i++)
        put_be16(refblocks + 2 * i, 1);
    return 0;
}

static int set_owner(const struct io *io, int fd, const char *name,
                     const struct qcow2_create_options *o,
                     struct qstill_error *err)
{
    int r = 0;

    if (o->uid != (uid_t)-1 || o->gid != (gid_t)-1)
        r = io->ops->fchown(io, fd, o->uid, o->gid);
    if (r < 0)
        return err_errno(err, -r, "cannot give %s its owner", name);
    if (o->mode != 0 && o->mode != 0600)
        r = io->ops->fchmod(io, fd, o->mode & 07777);
    if (r < 0)
        return err_errno(err, -r, "cannot set the mode of %s", name);
    return 0;
}

int qcow2_create_fd(const struct io *io, int fd, const char *name,
                    const struct qcow2_create_options *o,
                    struct qstill_error *err)
{
    CLEANUP(blank_finip) struct blank b = {0};
    CLEANUP(buf_fini) struct buf bytes = BUF_INIT;

    if (blank_plan(&b, o, err) < 0 || blank_emit(&b, &bytes, err) < 0)
        return err->code;
    if (io_write_full(io, fd, bytes.data, bytes.len, 0, err) < 0 ||
        io_truncate(io, fd, b.clusters << b.h.cluster_bits, name, err) < 0 ||
        set_owner(io, fd, name, o, err) < 0)
        return err->code;
    return io_sync(io, fd, name, err);
}

int qcow2_create_open(const struct io *io, int dirfd, const char *name,
                      const struct qcow2_create_options *options, int *out,
                      struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;

    if (io_openat(io, dirfd, name, O_RDWR | O_CREAT | O_EXCL, 0600, &fd, err) <
        0)
        return err->code;
    if (options->like >= 0)
        attrs_copy_nocow(options->like, fd);
    if (qcow2_create_fd(io, fd, name, options, err) < 0) {
        io->ops->unlinkat(io, dirfd, name);
        return err_wrap(err, "creating %s", name);
    }
    *out = take_fd(&fd);
    return 0;
}

/* fsync of the directory that `name` stands in. */
static int sync_parent(const struct io *io, int dirfd, const char *name,
                       struct qstill_error *err)
{
    CLEANUP(closep) int parent = -1;
    CLEANUP(freep) char *dir = strdup(name);
    char *slash = dir ? strrchr(dir, '/') : NULL;

    if (!dir)
        return err_nomem(err);
    if (slash == dir)
        slash[1] = '\0';
    else if (slash)
        slash[0] = '\0';
    parent =
        openat(dirfd, slash ? dir : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (parent < 0)
        return err_errno(err, errno, "cannot open the directory of %s", name);
    return io_sync(io, parent, "a directory", err);
}

/* Closes the new file and makes its name durable, or takes it away. */
static int settle(const struct io *io, int dirfd, const char *name, int *fd,
                  struct qstill_error *err)
{
    if (close(take_fd(fd)) < 0 && errno != EINTR)
        err_errno(err, errno, "closing %s", name);
    else if (sync_parent(io, dirfd, name, err) == 0)
        return 0;
    io->ops->unlinkat(io, dirfd, name);
    return err->code;
}

int qcow2_create(const struct io *io, int dirfd, const char *name,
                 const struct qcow2_create_options *options,
                 struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;

    if (qcow2_create_open(io, dirfd, name, options, &fd, err) < 0)
        return err->code;
    return settle(io, dirfd, name, &fd, err);
}

/* ---------------------------------------------------------- VM state image */

enum {
    CLUSTER = 1 << DEFAULT_CLUSTER_BITS,
    L2_ENTRIES = CLUSTER / 8,
    /* 16384 L2 tables = 8 TiB of state; keeps all tables in one cluster */
    MAX_STATE_L2 = CLUSTER / 8 - 1,
};

/* Cluster numbers, in file order. */
struct vmstate {
    uint64_t clusters; /* of state */
    uint64_t l2_tables;
    uint64_t refblocks;
    uint64_t at_l1, at_table, at_snap_l1, at_l2, at_state, end;
};

static int vmstate_plan(struct vmstate *v, size_t len, struct qstill_error *err)
{
    v->clusters = div_up_u64(len, CLUSTER);
    v->l2_tables = div_up_u64(v->clusters, L2_ENTRIES);
    if (v->l2_tables > MAX_STATE_L2)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "a VM state of %zu bytes is too large", len);
    v->refblocks = 0;
    do {
        v->refblocks++;
        v->at_l1 = 2 + v->refblocks;
        v->at_table = v->at_l1 + 1;
        v->at_snap_l1 = v->at_table + 1;
        v->at_l2 = v->at_snap_l1 + 1;
        v->at_state = v->at_l2 + v->l2_tables;
        v->end = v->at_state + v->clusters;
    } while (v->refblocks * (CLUSTER / 2) < v->end);
    return 0;
}

static void put_vmstate_header(const struct vmstate *v, uint8_t *p)
{
    put_be32(p + QCOW2_AT_MAGIC, QCOW2_MAGIC);
    put_be32(p + QCOW2_AT_VERSION, 3);
    put_be32(p + QCOW2_AT_CLUSTER_BITS, DEFAULT_CLUSTER_BITS);
    put_be64(p + QCOW2_AT_SIZE, CLUSTER);
    put_be32(p + QCOW2_AT_L1_SIZE, 1);
    put_be64(p + QCOW2_AT_L1_OFFSET, v->at_l1 * CLUSTER);
    put_be64(p + QCOW2_AT_REFTABLE_OFFSET, CLUSTER);
    put_be32(p + QCOW2_AT_REFTABLE_CLUSTERS, 1);
    put_be32(p + QCOW2_AT_NB_SNAPSHOTS, 1);
    put_be64(p + QCOW2_AT_SNAPSHOTS_OFFSET, v->at_table * CLUSTER);
    put_be32(p + QCOW2_AT_REFCOUNT_ORDER, 4);
    put_be32(p + QCOW2_AT_HEADER_LENGTH, QCOW2_V3_HEADER);
}

/* The state follows the disk's one L1 entry: QEMU puts it at the first L1
 * boundary behind the virtual size. */
static void put_snapshot(const struct vmstate *v, uint8_t *p, const char *tag,
                         uint64_t len)
{
    size_t n = strlen(tag);

    put_be64(p, v->at_snap_l1 * CLUSTER);
    put_be32(p + 8, (uint32_t)(1 + v->l2_tables));
    put_be16(p + 12, 1);
    put_be16(p + 14, (uint16_t)n);
    put_be32(p + 32, (uint32_t)min_u64(len, UINT32_MAX));
    put_be32(p + 36, 24);
    put_be64(p + 40, len);
    put_be64(p + 48, CLUSTER);
    put_be64(p + 56, UINT64_MAX); /* no instruction count */
    p[64] = '1';
    memcpy(p + 65, tag, n);
}

static void put_tables(const struct vmstate *v, uint8_t *p)
{
    uint8_t *reftable = p + CLUSTER, *refblocks = p + 2 * CLUSTER;
    uint8_t *l1 = p + v->at_snap_l1 * CLUSTER, *l2 = p + v->at_l2 * CLUSTER;

    for (uint64_t i = 0; i < v->refblocks; i++)
        put_be64(reftable + 8 * i, (2 + i) * CLUSTER);
    for (uint64_t i = 0; i < v->end; i++)
        put_be16(refblocks + 2 * i, 1);
    for (uint64_t i = 0; i < v->l2_tables; i++)
        put_be64(l1 + 8 * (1 + i), (v->at_l2 + i) * CLUSTER | QCOW2_COPIED);
    for (uint64_t i = 0; i < v->clusters; i++)
        put_be64(l2 + 8 * i, (v->at_state + i) * CLUSTER | QCOW2_COPIED);
}

int qcow2_create_vmstate_fd(const struct io *io, int fd, const char *name,
                            const char *tag, const void *state, size_t len,
                            struct qstill_error *err)
{
    CLEANUP(freep) uint8_t *meta = NULL;
    struct vmstate v = {0};

    if (strlen(tag) == 0 || strlen(tag) > 255)
        return err_set(err, QSTILL_E_USAGE, "a tag has 1 to 255 bytes");
    if (vmstate_plan(&v, len, err) < 0)
        return err->code;
    meta = calloc(v.at_state, CLUSTER);
    if (!meta)
        return err_nomem(err);
    put_vmstate_header(&v, meta);
    put_snapshot(&v, meta + v.at_table * CLUSTER, tag, len);
    put_tables(&v, meta);
    if (io_truncate(io, fd, v.end * CLUSTER, name, err) < 0 ||
        io_write_full(io, fd, meta, v.at_state * CLUSTER, 0, err) < 0 ||
        io_write_full(io, fd, state, len, v.at_state * CLUSTER, err) < 0)
        return err->code;
    return io_sync(io, fd, name, err);
}

int qcow2_create_vmstate(const struct io *io, int dirfd, const char *name,
                         const char *tag, const void *state, size_t len,
                         struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;

    if (io_openat(io, dirfd, name, O_RDWR | O_CREAT | O_EXCL, 0600, &fd, err) <
        0)
        return err->code;
    if (qcow2_create_vmstate_fd(io, fd, name, tag, state, len, err) < 0) {
        io->ops->unlinkat(io, dirfd, name);
        return err_wrap(err, "creating %s", name);
    }
    return settle(io, dirfd, name, &fd, err);
}
