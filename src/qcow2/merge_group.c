/* SPDX-License-Identifier: MIT */
/*
 * The steps of one group (merge_undo.c: back).
 *
 *   begin   journal; the new file, or room behind the end of the old one
 *   move    data to where nothing refers to it
 *   tables  L2, L1, refcounts likewise; everything durable
 *   flip    one sector: the target is now the result
 *   names   attributes, rename, repoint, unlink; durable
 *   trim    blocks that nothing refers to go back to the filesystem
 *
 * Up to the flip a failure cuts the file to its old length, or removes the new
 * one. After it the journal stays until the rest is done. No lock keeps others
 * from making an overlay of what is to go (qemu-img create asks for none): as
 * late as there is a way back it is looked for once more.
 *
 * A target whose clusters are written over (MERGE_OVERWRITE, and raw ones) has
 * no way back once data moves. A qcow2 one is marked before (torn.h), so that
 * nobody takes it for an image of its own (raw has no place for that), and so
 * are the layers above it that go with it, which show it; then the journal
 * stays from there on, and the recovery begins anew. That is safe
 * because only places are written that the layers above mask, which stay whole
 * until the end: what they show is right at every moment, and only the target
 * alone is neither old nor new.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "attrs.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "create.h"
#include "merge_impl.h"
#include "repoint.h"
#include "torn.h"

/* -------------------------------------------------------------------- begin */

/* The stand-in of plan_fresh() becomes a file. */
static int make_file(struct merge_group *g, struct qstill_error *err)
{
    struct image *img = g->fresh;
    struct qcow2_create_options o = QCOW2_CREATE_OPTIONS_INIT;
    const char *path = g->m->output ? g->m->output : g->record.target.path;
    struct stat st;
    int fd;

    o.virtual_size = img->size;
    o.cluster_bits = img->info.header.cluster_bits;
    o.incompatible = img->info.header.incompatible;
    o.like = group_layer(g, g->upper)->fd;
    if (qcow2_create_open(g->m->io, AT_FDCWD, path, &o, &fd, err) < 0)
        return err->code;
    close(img->fd);
    img->fd = fd;
    img->wfd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (img->wfd < 0 || fstat(fd, &st) < 0)
        return err_errno(err, errno, "cannot keep %s open", path);
    /* its name will be that of an image that a VM is started on, and then
     * there is still work to do in it */
    if (image_lock(fd, path, IMAGE_LOCK_WRITE, err) < 0)
        return err->code;
    img->info.dev = st.st_dev;
    img->info.ino = st.st_ino;
    free(img->path);
    img->path = strdup(path);
    if (!img->path)
        return err_nomem(err);
    if (g->m->output)
        return 0;
    if (merge_id_of(fd, &g->record.made, err) < 0)
        return err->code;
    return merge_journal_made(&g->m->journal, &g->record.made, err);
}

/* Clusters in use are mostly no holes: *hole is the next one that is known. */
static int reserve_in_use(struct image *t, uint64_t from, uint64_t to,
                          uint64_t *hole, struct qstill_error *err)
{
    if (*hole < from) {
        off_t at = lseek(t->wfd, (off_t)from, SEEK_HOLE);

        *hole = at < 0 ? from : (uint64_t)at;
    }
    return *hole < to ? io_reserve(t->io, t->wfd, from, to - from, t->path, err)
                      : 0;
}

/* Data that goes into the file as it is; neighbours together. */
static int reserve_holes(struct merge_group *g, struct qstill_error *err)
{
    struct move_walk w = moves_walk(&g->rw.moves);
    struct image *t = g->target;
    uint64_t hole = 0;

    while (w.on && w.m.dst < g->rw.old_end) {
        uint64_t from = w.m.dst, to = from;
        bool over = w.m.over;

        for (; w.on && w.m.dst == to && w.m.over == over; moves_next(&w))
            to += w.m.len;
        if ((over ? reserve_in_use(t, from, to, &hole, err)
                  : io_reserve(t->io, t->wfd, from, to - from, t->path, err)) <
            0)
            return err->code;
    }
    return 0;
}

struct range {
    uint64_t from, to;
};

/* Room for the range, when the next one does not go on with it. */
static int reserve_until(struct merge_group *g, struct range *r, uint64_t from,
                         uint64_t to, struct qstill_error *err)
{
    struct image *t = g->target;
    struct range done = *r;

    if (r->to == from) {
        r->to = to;
        return 0;
    }
    *r = (struct range){from, to};
    return io_reserve(t->io, t->wfd, done.from, done.to - done.from, t->path,
                      err);
}

/* What is copied beside blocks that are shared, and the tables behind. */
static int reserve_copies(struct merge_group *g, struct qstill_error *err)
{
    struct share_ask ask = sharing_ask(&g->sharing, &g->view);
    struct range r = {0, 0};
    uint64_t tables = g->rw.old_end;

    for (struct move_walk w = moves_walk(&g->rw.moves); w.on; moves_next(&w)) {
        const struct move *mv = &w.m;

        tables = max_u64(tables, mv->dst + mv->len);
        for (uint64_t at = 0, n; at < mv->len; at += n) {
            n = share_ahead(&ask, mv, at, SIZE_MAX);
            if (n > 0)
                continue;
            n = share_distance(&ask, mv, at, mv->len);
            if (reserve_until(g, &r, mv->dst + at, mv->dst + at + n, err) < 0)
                return err->code;
        }
    }
    return reserve_until(g, &r, tables, max_u64(tables, g->rw.end), err) < 0
               ? err->code
               : reserve_until(g, &r, UINT64_MAX, UINT64_MAX, err);
}

/* Room for all of it now: no disk that is full half way through. Blocks that
 * are shared need none. */
static int reserve(struct merge_group *g, struct qstill_error *err)
{
    const struct rewrite *rw = &g->rw;
    struct image *t = g->target;

    if (g->kind == MERGE_INTO_RAW) {
        uint64_t size = g->chain->layers[g->upper]->size;

        return size > t->info.file_size
                   ? io_truncate(t->io, t->wfd, size, t->path, err)
                   : 0;
    }
    if (!rw->tables)
        return 0;
    if (g->shared > 0) {
        if (reserve_copies(g, err) < 0)
            return err->code;
    } else if (!mover_can_share(g->mover) && /* it may, and not say so before */
               (reserve_holes(g, err) < 0 ||
                io_reserve(t->io, t->wfd, rw->old_end, rw->end - rw->old_end,
                           t->path, err) < 0)) {
        return err->code;
    }
    return io_truncate(t->io, t->wfd, rw->end, t->path, err);
}

/* Whoever reads it without a lock of his own (QEMU's -U) would see what is
 * neither old nor new, and nothing would tell him. */
static int lock_torn(struct merge_group *g, struct qstill_error *err)
{
    for (size_t i = g->upper + 1; i <= g->t; i++) {
        const struct image *img = g->chain->layers[i];

        if (image_lock(img->fd, img->path, IMAGE_LOCK_EXCLUSIVE, err) < 0)
            return err->code;
    }
    return 0;
}

static int mark_torn(struct merge_group *g, struct qstill_error *err)
{
    g->marked = true;
    for (size_t i = g->upper + 1; i <= g->t; i++) {
        const struct image *img = g->chain->layers[i];

        if (torn_mark(img->io, img->wfd, img->path, &img->info.header, err) < 0)
            return err->code;
    }
    return 0;
}

static bool has_no_way_back(const struct merge_group *g)
{
    return g->kind == MERGE_OVERWRITE || g->kind == MERGE_INTO_RAW;
}

/* As long as there is a way back. */
static int check_names(const struct merge_group *g, struct qstill_error *err)
{
    if (g->m->output || (record_check_names(&g->record, err) == 0 &&
                         record_check_upper(&g->record, err) == 0))
        return 0;
    return err_hint(err, "nothing has changed: try again");
}

static int begin(struct merge_group *g, struct qstill_error *err)
{
    struct merge *m = g->m;
    struct mover_options o = {.chain = g->chain,
                              .view = &g->view,
                              .target = g->target,
                              .moves = &g->rw.moves,
                              .bwlimit = m->bwlimit,
                              .gentle = m->gentle,
                              .share = g->kind != MERGE_OVERWRITE};

    if (has_no_way_back(g) && group_check_overlays(g, err) < 0)
        return err->code;
    if (g->kind == MERGE_OVERWRITE && lock_torn(g, err) < 0)
        return err->code;
    if (!m->output) {
        if (group_make_record(g, err) < 0 ||
            (has_no_way_back(g) && check_names(g, err) < 0) ||
            merge_journal_write(&m->journal, &g->record, err) < 0)
            return err->code;
    }
    if (g->kind == MERGE_NEW_FILE && make_file(g, err) < 0)
        return err->code;
    if (mover_open(&g->mover, &o, err) < 0 || reserve(g, err) < 0)
        return err->code;
    if (g->kind == MERGE_OVERWRITE && mark_torn(g, err) < 0)
        return err->code;
    g->phase = PHASE_MOVE;
    return 0;
}

/* --------------------------------------------------------------------- move */

static int move(struct merge_group *g, struct qstill_error *err)
{
    bool done;

    if (mover_step(g->mover, &done, err) < 0)
        return err->code;
    if (!done)
        return 0;
    g->m->done.shared += mover_count(g->mover).shared;
    g->m->done.done += mover_count(g->mover).done;
    mover_close(take_ptr(&g->mover));
    g->phase = PHASE_TABLES;
    return 0;
}

/* ------------------------------------------------------------------- tables */

enum { GATHER = 512 };

/* Tables that follow each other in the file go out together. */
static int write_tables(struct image *t, const struct new_tables *tables,
                        struct qstill_error *err)
{
    CLEANUP(freep) uint8_t *buffer = NULL;
    size_t cs = (size_t)t->cluster_size;
    size_t room = max_u64(1, ((size_t)4 << 20) / cs);

    buffer = malloc(room * cs);
    if (!buffer)
        return err_nomem(err);
    for (size_t i = 0; i < tables->n;) {
        uint64_t off = tables->v[i].host;
        size_t n = 0;

        while (i < tables->n && n < room && tables->v[i].host == off + n * cs)
            memcpy(buffer + n++ * cs, tables->v[i++].bytes, cs);
        if (io_write_full(t->io, t->wfd, buffer, n * cs, off, err) < 0)
            return err_wrap(err, "%s", t->path);
    }
    return 0;
}

/* A table of u64 in host order, to whole clusters. */
static int write_u64s(struct image *t, const uint64_t *v, size_t n,
                      uint64_t off, struct qstill_error *err)
{
    size_t bytes = (size_t)round_up_u64(8 * n, t->cluster_size);
    CLEANUP(freep) uint8_t *raw = calloc(1, bytes);

    if (!raw)
        return err_nomem(err);
    for (size_t i = 0; i < n; i++)
        put_be64(raw + 8 * i, v[i]);
    if (io_write_full(t->io, t->wfd, raw, bytes, off, err) < 0)
        return err_wrap(err, "%s", t->path);
    return 0;
}

static int tables(struct merge_group *g, struct qstill_error *err)
{
    const struct rewrite *rw = &g->rw;
    struct image *t = g->target;
    size_t reftable =
        ((size_t)rw->reftable_clusters * (size_t)t->cluster_size) / 8;

    if (g->kind == MERGE_INTO_RAW && raw_zero(g, err) < 0)
        return err->code;
    if (rw->tables &&
        (write_tables(t, &rw->l2, err) < 0 ||
         write_tables(t, &rw->refblocks, err) < 0 ||
         write_tables(t, &rw->bitmaps, err) < 0 ||
         write_u64s(t, rw->l1, rw->l1_size, rw->l1_offset, err) < 0 ||
         write_u64s(t, rw->reftable, reftable, rw->reftable_offset, err) < 0))
        return err->code;
    if (io_datasync(t->io, t->wfd, t->path, err) < 0)
        return err->code;
    g->phase = PHASE_FLIP;
    return 0;
}

/* --------------------------------------------------------------------- flip */

static int flip_raw(struct merge_group *g, struct qstill_error *err)
{
    struct image *t = g->target;
    uint64_t size = g->chain->layers[g->upper]->size;

    if (io_truncate(t->io, t->wfd, size, t->path, err) < 0)
        return err->code;
    return io_sync(t->io, t->wfd, t->path, err);
}

static int flip_header(struct merge_group *g, struct qstill_error *err)
{
    struct image *t = g->target;
    CLEANUP(qcow2_info_fini) struct qcow2_info info = {0};
    struct qcow2_header *h = &info.header;

    if (qcow2_info_read_fd(t->io, t->fd, QCOW2_FORMAT_QCOW2, &info, err) < 0)
        return err_wrap(err, "%s", t->path);
    rewrite_header(&g->rw, h);
    qcow2_header_rename(h, g->backing, g->backing_format);
    return qcow2_header_replace(t->io, t->wfd, t->path, h, err);
}

/* Where nobody can see any more what was done, nothing is left to do. */
static int explain_lost(const struct merge_group *g, struct qstill_error *err)
{
    return err->code == QSTILL_E_BUSY && group_is_lost(g)
               ? err_hint(err, "what is there is as it was: try again")
               : err->code;
}

static int flip(struct merge_group *g, struct qstill_error *err)
{
    int r;

    /* without a way back what has the top's place is no reason to leave the
     * target torn: then it is made whole, under its own name */
    if (has_no_way_back(g)
            ? record_check_target(&g->record, err) < 0
            : group_check_overlays(g, err) < 0 || check_names(g, err) < 0)
        return err->code;
    /* whatever the result is now, it may be the new one: only forward */
    g->phase = PHASE_NAMES;
    r = g->kind == MERGE_INTO_RAW ? flip_raw(g, err) : flip_header(g, err);
    if (g->kind == MERGE_NEW_FILE && r < 0)
        g->phase = PHASE_FLIP; /* the name has not changed yet */
    return r;
}

/* -------------------------------------------------------------------- names */

static int names(struct merge_group *g, struct qstill_error *err)
{
    struct image *t = g->target;

    if (g->m->output) {
        if (attrs_copy(t->io, g->chain->layers[g->upper]->fd, t->wfd, t->path,
                       err) < 0 ||
            io_sync(t->io, t->wfd, t->path, err) < 0)
            return err->code;
        g->phase = PHASE_DONE;
        return 0;
    }
    if (record_finish(t->io, &g->record, false, &g->m->done.freed, err) < 0) {
        if (g->kind == MERGE_NEW_FILE && err->code == QSTILL_E_BUSY &&
            !merge_id_is(g->record.result.path, &g->record.made))
            g->phase = PHASE_FLIP; /* no name has changed */
        return explain_lost(g, err);
    }
    g->phase = PHASE_TRIM;
    return 0;
}

/* --------------------------------------------------------------------- trim */

/* Blocks of clusters that nothing refers to any more. Only space is at stake:
 * nothing here can fail the merge. */
static int trim(struct merge_group *g, struct qstill_error *err)
{
    const struct rewrite *rw = &g->rw;
    struct image *t = g->target;

    for (size_t i = 0; g->kind != MERGE_INTO_RAW && i < rw->freed.n; i++) {
        uint64_t c = rw->freed.v[i].first, end = c + rw->freed.v[i].count;

        while (c < end) {
            uint64_t from = c;

            while (c < end && c < rw->refs.n && rw->refs.count[c] == 0)
                c++;
            io_punch(t->io, t->wfd, from * t->cluster_size,
                     (c - from) * t->cluster_size);
            g->m->done.freed += (c - from) * t->cluster_size;
            c += c < end;
        }
    }
    if (merge_journal_clear(&g->m->journal, err) < 0)
        return err->code;
    g->phase = PHASE_DONE;
    return 0;
}

/* --------------------------------------------------------------------- step */

int group_step(struct merge_group *g, struct qstill_error *err)
{
    static int (*const steps[])(struct merge_group *, struct qstill_error *) = {
        [PHASE_BEGIN] = begin, [PHASE_MOVE] = move,   [PHASE_TABLES] = tables,
        [PHASE_FLIP] = flip,   [PHASE_NAMES] = names, [PHASE_TRIM] = trim,
    };

    return g->phase == PHASE_DONE ? 0 : steps[g->phase](g, err);
}
