/* SPDX-License-Identifier: MIT */
/*
 * Chunk by chunk: the process's bytes, the file's bytes, compared while both
 * are in the CPU's cache. Happy path of a chunk: equal, or both zero. Else the
 * pages that differ are kept (undolog.h) and then written.
 */
#include "pageback.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/uio.h>

#include "base/checked.h"
#include "base/file.h"
#include "memstate/procmem.h"
#include "memstate/regions.h"
#include "memstate/vmread.h"
#include "memstate/worker.h"

#define THREADS_MAX 16u
/* How far the disk reads ahead of us once the page cache has failed us. */
#define AHEAD ((uint64_t)32 << 20)

struct target {
    unsigned index; /* in the set */
    uint64_t hva;
    uint64_t first_chunk; /* of all chunks, the first of this block */
    uint64_t chunks;
    int fd;
    struct vmread reader;
};

struct pageback {
    const struct ramset *set;
    struct undolog *undo;
    struct procmem *mem;
    struct target *targets;
    size_t count;
    uint64_t chunks;
    uint64_t next; /* by atomics: the chunk that is taken next */
    bool stop;     /* by atomics: one thread has failed */
    unsigned threads;
    struct pageback_result result; /* by atomics */
    struct worker worker;
};

/* One of the threads. */
struct lane {
    struct pageback *p;
    uint8_t *live, *saved; /* a chunk each */
    pthread_t thread;
    struct qstill_error error;
};

/* ------------------------------------------------------------------- chunk */

/* A chunk under comparison. */
struct piece {
    const struct target *t;
    const struct ramset_block *block;
    uint64_t number;
    uint64_t off;
    size_t len;
};

static int damaged(const struct piece *c, const char *what,
                   struct qstill_error *err)
{
    char name[RAMSET_NAME_SIZE];

    if (ramset_file_name(c->block->id, name, err) < 0)
        return err->code;
    return err_set(err, QSTILL_E_CORRUPT, "%s, %zu bytes at offset %llu: %s",
                   name, c->len, (unsigned long long)c->off, what);
}

static bool is_hole(const struct piece *c)
{
    off_t data = lseek(c->t->fd, (off_t)c->off, SEEK_DATA);

    return data < 0 ? errno == ENXIO : (uint64_t)data >= c->off + c->len;
}

/* What is in the page cache comes at once; where it ends, the disk is told
 * what will be wanted. */
static int read_saved(const struct piece *c, uint8_t *data,
                      struct qstill_error *err)
{
    struct iovec iov = {data, c->len};
    ssize_t n = preadv2(c->t->fd, &iov, 1, (off_t)c->off, RWF_NOWAIT);
    size_t have = n > 0 ? (size_t)n : 0;

    if (have == c->len)
        return 0;
    posix_fadvise(c->t->fd, (off_t)c->off, AHEAD, POSIX_FADV_WILLNEED);
    if (file_read_full(c->t->fd, data + have, c->len - have, c->off + have,
                       err) < 0)
        return damaged(c, err->message, err);
    return 0;
}

static void find_differing(const struct lane *l, size_t pages,
                           struct ramset_map *out)
{
    memset(out, 0, sizeof(*out));
    for (size_t i = 0; i < pages; i++)
        if (memcmp(l->live + i * RAMSET_PAGE, l->saved + i * RAMSET_PAGE,
                   RAMSET_PAGE) != 0)
            ramset_map_set(out, i);
}

static int write_back(struct lane *l, const struct piece *c,
                      struct qstill_error *err)
{
    struct pageback *p = l->p;
    size_t pages = c->len / RAMSET_PAGE, at = 0, first, n;
    struct ramset_map differ;

    find_differing(l, pages, &differ);
    if (p->undo &&
        undolog_keep(p->undo, c->block->id, c->number * RAMSET_CHUNK_PAGES,
                     l->live, pages, &differ, err) < 0)
        return err->code;
    while ((n = ramset_map_run(&differ, pages, &at, &first)) > 0) {
        if (procmem_write(p->mem, c->t->hva + c->off + first * RAMSET_PAGE,
                          l->saved + first * RAMSET_PAGE, n * RAMSET_PAGE,
                          err) < 0)
            return err->code;
        __atomic_fetch_add(&p->result.written_pages, n, __ATOMIC_RELAXED);
    }
    return 0;
}

static int do_chunk(struct lane *l, const struct piece *c,
                    struct qstill_error *err)
{
    bool hole = is_hole(c), zero;
    struct ramset_map nonzero;
    uint64_t sum = 0;

    if (!hole) {
        if (read_saved(c, l->saved, err) < 0)
            return err->code;
        sum = ramset_scan(l->saved, c->number * RAMSET_CHUNK_PAGES,
                          c->len / RAMSET_PAGE, &nonzero);
        __atomic_fetch_add(&l->p->result.read_bytes, c->len, __ATOMIC_RELAXED);
    }
    if (sum != c->block->sums[c->number])
        return damaged(c, "does not match its checksum", err);
    if (vmread_chunk(&c->t->reader, c->off, l->live, c->len, &zero, err) < 0)
        return err->code;
    if (hole && zero)
        return 0;
    if (hole)
        memset(l->saved, 0, c->len);
    if (zero)
        memset(l->live, 0, c->len);
    if (memcmp(l->live, l->saved, c->len) == 0)
        return 0;
    return write_back(l, c, err);
}

/* ----------------------------------------------------------------- threads */

static bool next_piece(struct pageback *p, struct piece *out)
{
    uint64_t n = __atomic_fetch_add(&p->next, 1, __ATOMIC_RELAXED);
    size_t i = 0;

    if (n >= p->chunks)
        return false;
    while (n - p->targets[i].first_chunk >= p->targets[i].chunks)
        i++;
    out->t = &p->targets[i];
    out->block = &p->set->blocks[out->t->index];
    out->number = n - out->t->first_chunk;
    out->off = out->number * RAMSET_CHUNK;
    out->len = (size_t)min_u64(RAMSET_CHUNK, out->block->size - out->off);
    return true;
}

static void *lane_main(void *ctx)
{
    struct lane *l = ctx;
    struct pageback *p = l->p;
    struct piece c;

    while (!__atomic_load_n(&p->stop, __ATOMIC_RELAXED) &&
           worker_check(&p->worker, &l->error) == 0 && next_piece(p, &c)) {
        if (do_chunk(l, &c, &l->error) < 0) {
            __atomic_store_n(&p->stop, true, __ATOMIC_RELAXED);
            err_wrap(&l->error, "RAM block '%.100s'", c.block->id);
        }
        __atomic_fetch_add(&p->result.compared_bytes, c.len, __ATOMIC_RELAXED);
        worker_add_done(&p->worker, c.len);
    }
    return NULL;
}

static int open_lane(struct lane *l, struct pageback *p,
                     struct qstill_error *err)
{
    l->p = p;
    l->live = aligned_alloc(RAMSET_PAGE, RAMSET_CHUNK);
    l->saved = aligned_alloc(RAMSET_PAGE, RAMSET_CHUNK);
    return l->live && l->saved ? 0 : err_nomem(err);
}

/* The worker's own thread is one of them. */
static int run_lanes(struct lane *lanes, struct pageback *p,
                     struct qstill_error *err)
{
    unsigned started = 1;

    for (unsigned i = 0; i < p->threads; i++)
        if (open_lane(&lanes[i], p, err) < 0)
            return err->code;
    while (started < p->threads &&
           pthread_create(&lanes[started].thread, NULL, lane_main,
                          &lanes[started]) == 0)
        started++; /* fewer will do */
    lane_main(&lanes[0]);
    for (unsigned i = 1; i < started; i++)
        pthread_join(lanes[i].thread, NULL);
    for (unsigned i = 0; i < started && err->code == 0; i++)
        *err = lanes[i].error;
    return err->code;
}

static int pageback_main(void *ctx, struct qstill_error *err)
{
    struct pageback *p = ctx;
    struct lane lanes[THREADS_MAX];

    memset(lanes, 0, sizeof(lanes));
    run_lanes(lanes, p, err);
    for (unsigned i = 0; i < p->threads; i++) {
        free(lanes[i].live);
        free(lanes[i].saved);
    }
    return err->code;
}

/* ------------------------------------------------------------------- owner */

static unsigned cpus(void)
{
    cpu_set_t set;

    if (sched_getaffinity(0, sizeof(set), &set) < 0)
        return 2;
    return (unsigned)CPU_COUNT(&set);
}

static int add_target(struct pageback *p, const struct capture_source *b,
                      const struct buf *maps, struct qstill_error *err)
{
    struct target *t = &p->targets[p->count];
    const struct ramset_block *block = ramset_find(p->set, b->id, &t->index);

    if (!block)
        return 0;
    if (block->size != b->size)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "RAM block '%.100s' has %llu bytes, the snapshot's has "
                       "%llu",
                       b->id, (unsigned long long)b->size,
                       (unsigned long long)block->size);
    t->hva = b->hva;
    t->first_chunk = p->chunks;
    t->chunks = block->chunks;
    t->reader.fd = -1;
    if (ramset_block_open(p->set, t->index, RAMSET_CACHED, &t->fd, err) < 0)
        return err->code;
    p->count++;
    vmread_open(&t->reader, p->mem, maps, b->hva, b->size);
    p->chunks += t->chunks;
    return 0;
}

static int add_targets(struct pageback *p, const struct pageback_options *o,
                       struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf maps = BUF_INIT;
    uint64_t bytes = 0;

    p->targets = calloc(o->count + 1, sizeof(*p->targets));
    if (!p->targets)
        return err_nomem(err);
    if (regions_read(o->pid, &maps, err) < 0)
        return err->code;
    for (size_t i = 0; i < o->count; i++) {
        if (o->max_size && o->blocks[i].size > o->max_size)
            continue;
        if (add_target(p, &o->blocks[i], &maps, err) < 0)
            return err->code;
        bytes += o->blocks[i].size;
    }
    worker_set_total(&p->worker, bytes);
    return 0;
}

int pageback_open(struct pageback **out, const struct pageback_options *o,
                  struct qstill_error *err)
{
    CLEANUP(pageback_closep) struct pageback *p = calloc(1, sizeof(*p));

    if (!p)
        return err_nomem(err);
    p->worker.event_fd = p->worker.cancel_fd = -1;
    p->set = o->set;
    p->undo = o->undo;
    p->threads = o->threads ? o->threads : cpus();
    p->threads = p->threads < THREADS_MAX ? p->threads : THREADS_MAX;
    if (worker_init(&p->worker, err) < 0 ||
        procmem_open(&p->mem, o->pid, err) < 0 || add_targets(p, o, err) < 0 ||
        worker_start(&p->worker, pageback_main, p, err) < 0)
        return err->code;
    *out = take_ptr(&p);
    return 0;
}

int pageback_fd(const struct pageback *p)
{
    return p->worker.event_fd;
}

void pageback_poll(struct pageback *p, bool *complete, uint64_t *bytes_done,
                   uint64_t *bytes_total)
{
    *complete = worker_poll(&p->worker, bytes_done, bytes_total);
}

int pageback_finish(struct pageback *p, struct pageback_result *out,
                    struct qstill_error *err)
{
    if (worker_result(&p->worker, err) < 0)
        return err->code;
    *out = p->result;
    return 0;
}

void pageback_close(struct pageback *p)
{
    if (!p)
        return;
    worker_join(&p->worker);
    worker_fini(&p->worker);
    for (size_t i = 0; i < p->count; i++) {
        vmread_close(&p->targets[i].reader);
        closep(&p->targets[i].fd);
    }
    procmem_close(p->mem);
    free(p->targets);
    free(p);
}

void pageback_closep(struct pageback **p)
{
    pageback_close(*p);
    *p = NULL;
}

int pageback_run(const struct pageback_options *options,
                 struct pageback_result *out, struct qstill_error *err)
{
    CLEANUP(pageback_closep) struct pageback *p = NULL;
    struct pollfd pfd = {.events = POLLIN};
    uint64_t done, total;
    bool complete = false;

    if (pageback_open(&p, options, err) < 0)
        return err->code;
    pfd.fd = pageback_fd(p);
    while (!complete) {
        poll(&pfd, 1, 100);
        pageback_poll(p, &complete, &done, &total);
    }
    return pageback_finish(p, out, err);
}
