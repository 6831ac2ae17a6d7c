/* SPDX-License-Identifier: MIT */
/*
 * The steps of one group.
 *
 *   begin   journal; the new file, or room behind the end of the old one
 *   move    data to where nothing refers to it
 *   tables  L2, L1, refcounts likewise; everything durable
 *   flip    one sector: the target is now the result
 *   names   attributes, rename, repoint, unlink; durable
 *   trim    blocks that nothing refers to go back to the filesystem
 *
 * Up to the flip a failure cuts the file to its old length, or removes the new
 * one. After it the journal stays until the rest is done.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "attrs.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "create.h"
#include "merge_impl.h"
#include "repoint.h"

/* ------------------------------------------------------------------ journal */

static int set_file(struct merge_file *f, const char *path,
                    const struct image *img, struct qstill_error *err)
{
    if (img)
        f->id = (struct merge_id){img->info.dev, img->info.ino};
    return path_absolute(path, &f->path, err);
}

static int record_gone(struct merge_group *g, struct qstill_error *err)
{
    struct merge_record *r = &g->record;
    const struct chain *c = g->chain;

    if (!g->main || g->m->output)
        return 0;
    r->gone = calloc(g->last - g->upper + 1, sizeof(*r->gone));
    if (!r->gone)
        return err_nomem(err);
    for (size_t i = g->upper; i <= g->last; i++) {
        struct image *img = c->layers[i];

        if (img == g->target || strcmp(img->path, g->result) == 0)
            continue;
        if (set_file(&r->gone[r->gone_count], img->path, img, err) < 0)
            return err->code;
        r->gone_count++;
    }
    return 0;
}

/* What names U, when U's content gets another name. */
static int record_heirs(struct merge_group *g, struct qstill_error *err)
{
    struct merge_record *r = &g->record;
    const struct children *h = &g->m->heirs;
    const char *format = qcow2_format_name(g->target->info.format);

    if (!g->main || !g->m->lower_name || h->n == 0)
        return 0;
    r->repoint = calloc(h->n, sizeof(*r->repoint));
    if (!r->repoint)
        return err_nomem(err);
    for (size_t i = 0; i < h->n; i++) {
        struct merge_repoint *p = &r->repoint[r->repoint_count++];
        struct stat st;

        if (stat(h->v[i].path, &st) < 0)
            return err_errno(err, errno, "cannot stat %s", h->v[i].path);
        p->file.id = (struct merge_id){st.st_dev, st.st_ino};
        p->format = strdup(format);
        if (!p->format)
            return err_nomem(err);
        if (path_absolute(h->v[i].path, &p->file.path, err) < 0)
            return err->code;
        if (path_same_dir(h->v[i].path, g->result)) {
            const char *slash = strrchr(g->result, '/');

            p->backing = strdup(slash ? slash + 1 : g->result);
            if (!p->backing)
                return err_nomem(err);
        } else if (path_absolute(g->result, &p->backing, err) < 0) {
            return err->code;
        }
    }
    return 0;
}

/* The file that stands at the result's path, if it is not the target. */
static struct image *replaced(const struct merge_group *g)
{
    for (size_t i = g->upper; i <= g->last; i++)
        if (strcmp(g->chain->layers[i]->path, g->result) == 0)
            return g->chain->layers[i] == g->target ? NULL
                                                    : g->chain->layers[i];
    return NULL;
}

static int record_replaced(struct merge_group *g, struct qstill_error *err)
{
    struct merge_record *r = &g->record;
    struct image *old = replaced(g);
    struct stat st;

    if (set_file(&r->result, g->result, old, err) < 0)
        return err->code;
    if (!old)
        return 0;
    if (fstat(old->fd, &st) < 0)
        return err_errno(err, errno, "cannot stat %s", old->path);
    r->result_size = (uint64_t)st.st_size;
    r->result_mtime_ns = st.st_mtim.tv_sec * 1000000000ll + st.st_mtim.tv_nsec;
    return 0;
}

/* A new file stands beside the name that it will get. */
static int temp_path(const char *result, char **out)
{
    const char *slash = strrchr(result, '/');
    size_t dir = slash ? (size_t)(slash - result) + 1 : 0;

    /* a long name would not fit with what is added */
    return asprintf(out, "%.*s.%.200s.merge", (int)dir, result, result + dir);
}

static int make_record(struct merge_group *g, struct qstill_error *err)
{
    struct merge_record *r = &g->record;
    const struct qcow2_header *h = &g->target->info.header;
    CLEANUP(freep) char *temp = NULL;

    merge_record_fini(r);
    r->kind = g->kind;
    if (g->kind == MERGE_NEW_FILE && temp_path(g->result, &temp) < 0) {
        temp = NULL;
        return err_nomem(err);
    }
    if (set_file(&r->target, temp ? temp : g->target->path,
                 temp ? NULL : g->target, err) < 0 ||
        record_replaced(g, err) < 0 || record_gone(g, err) < 0 ||
        record_heirs(g, err) < 0)
        return err->code;
    if (g->chain->layers[g->upper] != g->target &&
        set_file(&r->upper, g->chain->layers[g->upper]->path,
                 g->chain->layers[g->upper], err) < 0)
        return err->code;
    r->old_size = g->target->info.file_size;
    r->old_l1 = h->l1_offset;
    r->new_l1 = g->rw.tables ? g->rw.l1_offset : h->l1_offset;
    r->old_backing = strdup(h->backing);
    r->new_backing = strdup(g->backing ? g->backing : "");
    return r->old_backing && r->new_backing ? 0 : err_nomem(err);
}

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
    if (qcow2_create_open(g->m->io, AT_FDCWD, path, &o, &fd, err) < 0)
        return err->code;
    close(img->fd);
    img->fd = fd;
    img->wfd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (img->wfd < 0 || fstat(fd, &st) < 0)
        return err_errno(err, errno, "cannot keep %s open", path);
    img->info.dev = st.st_dev;
    img->info.ino = st.st_ino;
    free(img->path);
    img->path = strdup(path);
    if (!img->path)
        return err_nomem(err);
    if (g->m->output)
        return 0;
    g->record.made = (struct merge_id){st.st_dev, st.st_ino};
    return merge_journal_made(&g->m->journal, g->record.made, err);
}

/* Data that goes into holes of the file as it is; neighbours together. */
static int reserve_holes(struct merge_group *g, struct qstill_error *err)
{
    const struct moves *mv = &g->rw.moves;
    struct image *t = g->target;

    for (size_t i = 0; i < mv->n && mv->v[i].dst < g->rw.old_end;) {
        uint64_t from = mv->v[i].dst, to = from;

        while (i < mv->n && mv->v[i].dst == to)
            to += mv->v[i++].len;
        if (io_reserve(t->io, t->wfd, from, to - from, t->path, err) < 0)
            return err->code;
    }
    return 0;
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
    if (!mover_can_share(g->mover) &&
        (reserve_holes(g, err) < 0 ||
         io_reserve(t->io, t->wfd, rw->old_end, rw->end - rw->old_end, t->path,
                    err) < 0))
        return err->code;
    return io_truncate(t->io, t->wfd, rw->end, t->path, err);
}

static int begin(struct merge_group *g, struct qstill_error *err)
{
    struct merge *m = g->m;
    struct mover_options o = {.chain = g->chain,
                              .view = &g->view,
                              .target = g->target,
                              .moves = &g->rw.moves,
                              .bwlimit = m->bwlimit,
                              .share = true};

    if (!m->output) {
        if (make_record(g, err) < 0 ||
            merge_journal_write(&m->journal, &g->record, err) < 0)
            return err->code;
    }
    if (g->kind == MERGE_NEW_FILE && make_file(g, err) < 0)
        return err->code;
    if (mover_open(&g->mover, &o, err) < 0 || reserve(g, err) < 0)
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
    h->has_backing = h->has_format = g->backing != NULL;
    strcpy(h->backing, g->backing ? g->backing : "");
    strcpy(h->backing_format, g->backing ? g->backing_format : "");
    return qcow2_header_replace(t->io, t->wfd, t->path, h, err);
}

static int flip(struct merge_group *g, struct qstill_error *err)
{
    int r;

    /* whatever the result is now, it may be the new one: only forward */
    g->phase = PHASE_NAMES;
    r = g->kind == MERGE_INTO_RAW ? flip_raw(g, err) : flip_header(g, err);
    if (g->kind == MERGE_NEW_FILE && r < 0)
        g->phase = PHASE_FLIP; /* the name has not changed yet */
    return r;
}

/* -------------------------------------------------------------------- names */

static bool same_file(const char *path, struct merge_id id)
{
    struct stat st;

    return stat(path, &st) == 0 && st.st_dev == id.dev && st.st_ino == id.ino;
}

/* The result belongs to whoever the upper image belonged to. */
static int give_attrs(const struct io *io, const struct merge_record *r,
                      const char *path, struct qstill_error *err)
{
    CLEANUP(closep) int from = -1;
    CLEANUP(closep) int to = -1;

    if (!r->upper.path || !same_file(r->upper.path, r->upper.id))
        return 0;
    if (io_openat(io, AT_FDCWD, r->upper.path, O_RDONLY, 0, &from, err) < 0 ||
        io_openat(io, AT_FDCWD, path, O_RDWR, 0, &to, err) < 0 ||
        attrs_copy(io, from, to, path, err) < 0)
        return err->code;
    return io_sync(io, to, path, err);
}

static int rename_result(const struct io *io, const struct merge_record *r,
                         struct qstill_error *err)
{
    CLEANUP(closep) int from = -1;
    CLEANUP(closep) int to = -1;
    const char *from_name, *to_name;

    if (path_open_dir(r->target.path, &from, &from_name, err) < 0 ||
        path_open_dir(r->result.path, &to, &to_name, err) < 0)
        return err->code;
    return io_rename(io, from, from_name, to, to_name, 0, err);
}

static int repoint_one(const struct io *io, const struct merge_repoint *p,
                       struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;

    if (io_openat(io, AT_FDCWD, p->file.path, O_RDWR, 0, &fd, err) < 0 ||
        image_lock(fd, p->file.path, IMAGE_LOCK_WRITE, err) < 0)
        return err->code;
    return qcow2_repoint(io, fd, p->file.path, p->backing, p->format, err);
}

static int remove_one(const struct io *io, const struct merge_file *f,
                      uint64_t *freed, struct qstill_error *err)
{
    CLEANUP(closep) int dirfd = -1;
    const char *name;
    struct stat st;

    /* gone already, or another file by now */
    if (lstat(f->path, &st) < 0 || st.st_dev != f->id.dev ||
        st.st_ino != f->id.ino)
        return 0;
    if (path_open_dir(f->path, &dirfd, &name, err) < 0 ||
        io_unlink(io, dirfd, name, err) < 0)
        return err->code;
    *freed += (uint64_t)st.st_blocks * 512;
    return 0;
}

int record_finish(const struct io *io, const struct merge_record *r,
                  uint64_t *freed, struct qstill_error *err)
{
    struct merge_id id = r->kind == MERGE_NEW_FILE ? r->made : r->target.id;
    bool named = same_file(r->result.path, id);
    struct stat st;

    if (give_attrs(io, r, named ? r->result.path : r->target.path, err) < 0)
        return err->code;
    if (!named) {
        uint64_t replaced = 0;

        if (r->result.id.ino && stat(r->result.path, &st) == 0)
            replaced = (uint64_t)st.st_blocks * 512;
        if (rename_result(io, r, err) < 0)
            return err->code;
        *freed += replaced;
    }
    for (size_t i = 0; i < r->repoint_count; i++)
        if (repoint_one(io, &r->repoint[i], err) < 0)
            return err->code;
    for (size_t i = 0; i < r->gone_count; i++)
        if (remove_one(io, &r->gone[i], freed, err) < 0)
            return err->code;
    return 0;
}

static int names(struct merge_group *g, struct qstill_error *err)
{
    struct image *t = g->target;

    if (g->m->output) {
        if (io_sync(t->io, t->wfd, t->path, err) < 0)
            return err->code;
        g->phase = PHASE_DONE;
        return 0;
    }
    if (record_finish(t->io, &g->record, &g->m->done.freed, err) < 0)
        return err->code;
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

/* The length, and the blocks put into holes of the file. */
static int undo_in_place(struct merge_group *g, struct qstill_error *err)
{
    const struct rewrite *rw = &g->rw;
    struct image *t = g->target;
    struct stat st;

    for (size_t i = 0; i < rw->moves.n; i++)
        if (rw->moves.v[i].dst < rw->old_end)
            io_punch(t->io, t->wfd, rw->moves.v[i].dst, rw->moves.v[i].len);
    if (fstat(t->wfd, &st) == 0 && (uint64_t)st.st_size <= rw->old_end)
        return 0;
    if (io_truncate(t->io, t->wfd, rw->old_end, t->path, err) < 0)
        return err->code;
    return io_sync(t->io, t->wfd, t->path, err);
}

static int undo_new_file(struct merge_group *g, struct qstill_error *err)
{
    CLEANUP(closep) int dirfd = -1;
    const char *name;
    const char *path = g->m->output ? g->m->output : g->record.target.path;

    if (!path || g->target->wfd < 0) /* not made */
        return 0;
    if (path_open_dir(path, &dirfd, &name, err) < 0)
        return err->code;
    return io_unlink(g->m->io, dirfd, name, err);
}

int group_undo(struct merge_group *g, struct qstill_error *err)
{
    int r = 0;

    mover_close(take_ptr(&g->mover));
    if (g->kind == MERGE_IN_PLACE)
        r = undo_in_place(g, err);
    else if (g->kind == MERGE_NEW_FILE)
        r = undo_new_file(g, err);
    else if (g->phase != PHASE_BEGIN)
        return err_set(err, QSTILL_E_FAILED,
                       "%s is partly written: folding into a raw image can "
                       "only go on",
                       g->target->path);
    if (r == 0 && !g->m->output)
        r = merge_journal_clear(&g->m->journal, err);
    return r;
}
