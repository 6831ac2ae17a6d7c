/* SPDX-License-Identifier: MIT */
/*
 *   plan     the chain's view; where each cluster goes, unless compressed
 *   make     the file beside its name, locked
 *   copy     by mover.c, or compressed by pack.c
 *   tables   of a qcow2 image; all flushed
 *   publish  rename, directory flushed
 *
 * Any failure, and closing it early, removes the file.
 */
#include "flatten.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checked.h"
#include "flatten_impl.h"
#include "fresh.h"
#include "holes.h"
#include "merge_names.h"
#include "mover.h"
#include "pack.h"
#include "rewrite_impl.h"
#include "temp_name.h"
#include "torn.h"

#define DEFAULT_CLUSTER_BITS 16u
#define RAW_BLOCK            4096u /* the holes of a raw file */
#define TEMP                 "flatten"

enum flatten_phase { MAKE, COPY, TABLES, PUBLISH, DONE };

struct flatten {
    const struct io *io;
    struct flatten_request q;
    struct chain *chain;
    struct extents view;
    uint64_t size;
    struct fresh fresh; /* qcow2 */
    struct moves moves; /* not compressed */
    uint8_t *zeros;     /* a bit per cluster of the file: found to be zeros */
    uint64_t total;
    char *out;
    char *temp; /* path */
    int dirfd;
    const char *name; /* in dirfd: of out, */
    const char *temp_name;
    struct image *target;
    struct mover *mover;
    struct pack *pack;
    bool made; /* temp is ours: */
    dev_t dev;
    ino_t ino;
    enum flatten_phase phase;
};

static bool is_raw(const struct flatten *f)
{
    return f->q.out_format == QCOW2_FORMAT_RAW;
}

/* --------------------------------------------------------------------- plan */

static int name_files(struct flatten *f, struct qstill_error *err)
{
    const char *base;
    struct stat st;

    f->out = strdup(f->q.out);
    if (!f->out)
        return err_nomem(err);
    if (path_open_dir(f->out, &f->dirfd, &f->name, err) < 0)
        return err->code;
    base = f->name;
    if (base[0] == '\0')
        return err_set(err, QSTILL_E_USAGE, "%s names no file", f->out);
    if (temp_name_make(f->out, TEMP, &f->temp, err) < 0)
        return err->code;
    f->temp_name = f->temp + (base - f->out);
    if (lstat(f->out, &st) == 0)
        return err_set(err, QSTILL_E_BUSY, "%s exists already", f->out);
    return errno == ENOENT ? 0
                           : err_errno(err, errno, "cannot stat %s", f->out);
}

static int plan_raw(struct flatten *f, struct qstill_error *err)
{
    f->moves.block = MOVES_TOGETHER;
    for (struct extent_walk w = extents_walk(&f->view, 0); w.on;
         extents_next(&w)) {
        const struct extent *e = &w.e;
        struct move m = {.from = e->guest,
                         .dst = e->guest,
                         .len = e->len,
                         .layer = MOVE_GUEST};

        if (!extent_has_bytes(e))
            continue;
        if (moves_push(&f->moves, &m) < 0)
            return err_nomem(err);
        f->total += m.len;
    }
    return 0;
}

/* Whole clusters, one behind the other in the guest's order. */
static int plan_clusters(struct flatten *f, struct qstill_error *err)
{
    uint64_t cs = f->fresh.cs, pos = 0, dst = cs;

    for (struct extent_walk w = extents_walk(&f->view, 0); w.on;
         extents_next(&w)) {
        const struct extent *e = &w.e;
        uint64_t from = max_u64(round_down_u64(e->guest, cs), pos);
        uint64_t to = round_up_u64(extent_end(e), cs);
        struct move m = {
            .from = from, .dst = dst, .len = to - from, .layer = MOVE_GUEST};

        if (!extent_has_bytes(e) || to <= from)
            continue;
        if (moves_push(&f->moves, &m) < 0)
            return err_nomem(err);
        pos = to;
        dst += m.len;
    }
    f->total = dst - cs;
    f->zeros = calloc(1, (size_t)(dst / cs / 8 + 1));
    return f->zeros ? 0 : err_nomem(err);
}

static struct pack_options pack_options(struct flatten *f)
{
    return (struct pack_options){.chain = f->chain,
                                 .view = &f->view,
                                 .target = f->target,
                                 .fresh = &f->fresh,
                                 .bwlimit = f->q.bwlimit};
}

static int plan_qcow2(struct flatten *f, struct qstill_error *err)
{
    const struct image *top = f->chain->layers[0];
    const struct qcow2_header *h = &top->info.header;
    bool like_top = image_is_qcow2(top);
    struct pack_options o;

    if (fresh_init(&f->fresh, like_top ? h->cluster_bits : DEFAULT_CLUSTER_BITS,
                   f->size,
                   like_top ? h->compression_type : QCOW2_COMPRESSION_ZLIB,
                   err) < 0)
        return err->code;
    if (!f->q.compress)
        return plan_clusters(f, err);
    o = pack_options(f);
    f->total = pack_bytes(&o);
    return 0;
}

static int plan(struct flatten *f, struct qstill_error *err)
{
    if (f->q.compress && is_raw(f))
        return err_set(err, QSTILL_E_USAGE, "a raw image is not compressed");
    if (name_files(f, err) < 0 ||
        chain_open(&f->chain, f->io, f->q.top, f->q.format, CHAIN_LOCKED, err) <
            0)
        return err->code;
    f->chain->stop = f->q.stop;
    if (chain_view(f->chain, 0, f->chain->n - 1, CHAIN_FORGET_MAPS, &f->view,
                   err) < 0 ||
        holes_drop(f->chain, &f->view, err) < 0)
        return err->code;
    f->size = f->chain->layers[0]->size;
    return is_raw(f) ? plan_raw(f, err) : plan_qcow2(f, err);
}

int flatten_open(struct flatten **out, const struct io *io,
                 const struct flatten_request *request,
                 struct qstill_error *err)
{
    CLEANUP(flatten_closep) struct flatten *f = calloc(1, sizeof(*f));

    if (!f)
        return err_nomem(err);
    f->io = io;
    f->q = *request;
    f->dirfd = -1;
    if (plan(f, err) < 0)
        return err->code;
    f->q.top = f->q.out = NULL; /* the caller's */
    *out = take_ptr(&f);
    return 0;
}

int flatten_describe(const struct flatten *f, struct buf *out,
                     struct qstill_error *err)
{
    if (buf_printf(out, "%zu layer%s, %llu bytes of data, into %s (%s%s)\n",
                   f->chain->n, f->chain->n == 1 ? "" : "s",
                   (unsigned long long)f->total, f->out,
                   qcow2_format_name(f->q.out_format),
                   f->q.compress ? ", compressed" : "") < 0)
        return err_nomem(err);
    return flatten_notes(f->chain, f->out, out, err);
}

/* --------------------------------------------------------------------- make */

static bool leads_to(const char *path, dev_t dev, ino_t ino)
{
    struct stat st;

    return lstat(path, &st) == 0 && st.st_dev == dev && st.st_ino == ino;
}

/* The length that is known beforehand: writes then need not make the file
 * longer one by one. */
static uint64_t first_length(const struct flatten *f)
{
    if (is_raw(f))
        return f->size;
    return f->q.compress ? 0 : f->fresh.cs + f->total;
}

/* Between its birth and its lock somebody may take it for a leftover. */
static int create_locked(struct flatten *f, int *out, struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;
    struct stat st;

    if (io_openat(f->io, AT_FDCWD, f->temp, O_RDWR | O_CREAT | O_EXCL, 0600,
                  &fd, err) < 0)
        return err->code;
    if (fstat(fd, &st) < 0)
        return err_errno(err, errno, "cannot stat %s", f->temp);
    f->dev = st.st_dev;
    f->ino = st.st_ino;
    f->made = true;
    if (image_lock(fd, f->temp, IMAGE_LOCK_WRITE, err) < 0)
        return err->code;
    if (!leads_to(f->temp, f->dev, f->ino))
        return err_set(err, QSTILL_E_BUSY, "%s is written by somebody else",
                       f->temp);
    *out = take_fd(&fd);
    return 0;
}

static int make_file(struct flatten *f, struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;

    if (temp_name_sweep(f->io, f->dirfd, f->name, TEMP, err) < 0 ||
        create_locked(f, &fd, err) < 0)
        return err->code;
    if (flatten_set_mode(f->chain, fd, f->temp, err) < 0 ||
        io_truncate(f->io, fd, first_length(f), f->temp, err) < 0 ||
        image_open_fd(&f->target, f->io, f->temp, take_fd(&fd),
                      QCOW2_FORMAT_RAW, err) < 0)
        return err->code;
    f->target->wfd = fcntl(f->target->fd, F_DUPFD_CLOEXEC, 0);
    if (f->target->wfd < 0)
        return err_errno(err, errno, "cannot keep %s open", f->temp);
    return 0;
}

/* The mover found clusters of zeros. */
static void note_zeros(void *user, uint64_t dst, uint64_t len)
{
    struct flatten *f = user;

    for (uint64_t c = dst / f->fresh.cs; c < (dst + len) / f->fresh.cs; c++)
        f->zeros[c / 8] |= (uint8_t)(1u << c % 8);
}

static int make(struct flatten *f, struct qstill_error *err)
{
    struct mover_options m = {.chain = f->chain,
                              .view = &f->view,
                              .moves = &f->moves,
                              .bwlimit = f->q.bwlimit,
                              .share = true,
                              .zero_block = RAW_BLOCK};
    struct pack_options p;
    int r;

    if (make_file(f, err) < 0)
        return err->code;
    m.target = f->target;
    if (!is_raw(f)) {
        m.zero_block = (size_t)f->fresh.cs;
        m.zeros = note_zeros;
        m.user = f;
    }
    p = pack_options(f);
    r = f->q.compress ? pack_open(&f->pack, &p, err)
                      : mover_open(&f->mover, &m, err);
    if (r == 0)
        f->phase = COPY;
    return r;
}

/* --------------------------------------------------------------------- copy */

static int copy(struct flatten *f, struct qstill_error *err)
{
    bool done;
    int r = f->pack ? pack_step(f->pack, &done, err)
                    : mover_step(f->mover, &done, err);

    if (r == 0 && done)
        f->phase = TABLES;
    return r;
}

/* ------------------------------------------------------------------- tables */

static bool is_zero(const struct flatten *f, uint64_t host)
{
    uint64_t c = host / f->fresh.cs;

    return f->zeros[c / 8] & 1u << c % 8;
}

static int map_moves(struct flatten *f, struct qstill_error *err)
{
    uint64_t cs = f->fresh.cs;

    for (struct move_walk w = moves_walk(&f->moves); w.on; moves_next(&w)) {
        const struct move *m = &w.m;

        for (uint64_t at = 0; at < m->len; at += cs) {
            uint64_t host = m->dst + at;

            if (is_zero(f, host))
                continue;
            if (fresh_map(&f->fresh, m->from + at, host | QCOW2_COPIED) < 0 ||
                fresh_ref(&f->fresh, host / cs) < 0)
                return err_nomem(err);
        }
    }
    return 0;
}

static int tables(struct flatten *f, struct qstill_error *err)
{
    struct image *t = f->target;
    uint64_t end = f->pack ? pack_end(f->pack) : f->fresh.cs + f->total;

    if (!is_raw(f) &&
        ((!f->pack && map_moves(f, err) < 0) ||
         fresh_write(&f->fresh, f->io, t->wfd, t->path, end, err) < 0))
        return err->code;
    if (io_sync(f->io, t->wfd, t->path, err) < 0)
        return err->code;
    f->phase = PUBLISH;
    return 0;
}

/* ------------------------------------------------------------------ publish */

/* Not every filesystem can refuse to replace: then the name is looked at. */
static int rename_temp(struct flatten *f)
{
    const struct io_ops *ops = f->io->ops;
    struct stat st;
    int r = ops->renameat(f->io, f->dirfd, f->temp_name, f->dirfd, f->name,
                          RENAME_NOREPLACE);

    if (r != -EINVAL)
        return r;
    if (lstat(f->out, &st) == 0)
        return -EEXIST;
    return ops->renameat(f->io, f->dirfd, f->temp_name, f->dirfd, f->name, 0);
}

static int publish(struct flatten *f, struct qstill_error *err)
{
    int r = rename_temp(f);

    if (r == -EEXIST)
        return err_set(err, QSTILL_E_BUSY, "%s has come to exist meanwhile",
                       f->out);
    if (r < 0)
        return err_errno(err, -r, "cannot rename %s to %s", f->temp, f->out);
    f->made = false;
    f->phase = DONE;
    if (io_sync(f->io, f->dirfd, f->out, err) < 0)
        return err_wrap(err, "%s is complete but may not survive a power cut",
                        f->out);
    return 0;
}

/* --------------------------------------------------------------------- step */

static void undo(struct flatten *f)
{
    struct qstill_error ignored;

    mover_close(take_ptr(&f->mover));
    pack_close(take_ptr(&f->pack));
    if (f->made && leads_to(f->temp, f->dev, f->ino))
        io_unlink(f->io, f->dirfd, f->temp_name, &ignored);
    f->made = false;
}

int flatten_step(struct flatten *f, bool *done, struct qstill_error *err)
{
    static int (*const steps[])(struct flatten *, struct qstill_error *) = {
        [MAKE] = make, [COPY] = copy, [TABLES] = tables, [PUBLISH] = publish};

    if (f->phase != DONE && steps[f->phase](f, err) < 0) {
        undo(f);
        f->phase = DONE;
        return err->code;
    }
    *done = f->phase == DONE;
    return 0;
}

int flatten_fd(struct flatten *f)
{
    if (f->phase != COPY)
        return -1;
    return f->pack ? pack_fd(f->pack) : mover_fd(f->mover);
}

struct flatten_count flatten_count(const struct flatten *f)
{
    struct flatten_count c = {.total = f->total};

    if (f->pack) {
        c.done = pack_done(f->pack);
    } else if (f->mover) {
        c.done = mover_count(f->mover).done;
        c.shared = mover_count(f->mover).shared;
    }
    return c;
}

void flatten_close(struct flatten *f)
{
    if (!f)
        return;
    undo(f);
    image_close(f->target);
    fresh_fini(&f->fresh);
    free(f->moves.lots);
    free(f->zeros);
    extents_fini(&f->view);
    chain_close(f->chain);
    closep(&f->dirfd);
    free(f->temp);
    free(f->out);
    free(f);
}

void flatten_closep(struct flatten **f)
{
    flatten_close(*f);
}
