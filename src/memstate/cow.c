/* SPDX-License-Identifier: MIT */
/*
 * The happy path of a cow capture:
 *   open: look at each block, make the userfaultfd, register the blocks
 *   thread: start the copiers, protect all; ready; let writes through and mark
 *   them; at the instant protect those again; serve, until the copiers have
 *   taken every unit; lift everything
 * Failures: whatever fails, the protection is lifted and the userfaultfd
 * closed before the thread ends, so the guest runs on.
 */
#include "cow.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "base/checked.h"
#include "memstate/cow_impl.h"
#include "memstate/inject_status.h"
#include "memstate/regions.h"

#define POOL_MIN ((size_t)4 << 20)
/* Of the fault server: somebody waits for it. Ignored when it may not. */
#define NICE_SERVER (-19)

bool cow_read(const struct cow *cow, const struct iovec *here, size_t count,
              uint64_t hva, size_t len)
{
    struct iovec there = {(void *)(uintptr_t)hva, len};
    ssize_t n = process_vm_readv(cow->pid, here, count, &there, 1, 0);

    if (n >= 0 && (size_t)n < len)
        errno = EFAULT;
    return n == (ssize_t)len;
}

/* ----------------------------------------------------------------- thread */

static int capture_all(struct cow *cow, struct qstill_error *err)
{
    struct capture *c = cow->capture;
    uint64_t begun;

    if (cow_copiers_start(cow, err) < 0 || cow_arm(cow, err) < 0)
        return err->code;
    capture_set_ready(c);
    if (cow_mark_until(cow, capture_instant_fd(c), err) < 0)
        return err->code;
    begun = worker_now_ns();
    if (cow_take_instant(cow, err) < 0)
        return err->code;
    cow->stats.instant_ms = (double)(worker_now_ns() - begun) / 1e6;
    capture_set_instant_taken(c);
    begun = worker_now_ns();
    if (cow_serve(cow, err) < 0)
        return err->code;
    cow->stats.copy_ms = (double)(worker_now_ns() - begun) / 1e6;
    return cow_check_merged(cow, err);
}

static void fill_figures(struct cow *cow)
{
    struct capture_result *r = capture_figures(cow->capture);

    cow->stats.pool_peak_bytes = (uint64_t)cow->pool.peak * RAMSET_PAGE;
    r->sent_bytes = r->written_bytes;
    r->faults = cow->stats.faults;
    r->longest_stall_ms = (double)cow->stats.longest_stall_ns / 1e6;
    if (cow->stats_out)
        *cow->stats_out = cow->stats;
}

static int cow_run(void *ctx, struct capture *c, struct qstill_error *err)
{
    struct qstill_error other = {0};
    struct cow *cow = ctx;
    int r;

    cow->capture = c;
    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), NICE_SERVER);
    r = capture_all(cow, err);
    if (r < 0)
        cow_copiers_stop(cow);
    /* Before the copiers have ended: they may still wait for the disk, and
     * the guest for them. */
    cow_release(cow);
    if (cow_copiers_join(cow, &other) < 0 && r == 0) {
        *err = other;
        r = other.code;
    }
    uffd_close(&cow->uffd);
    fill_figures(cow);
    if (r == 0 && capture_cancelled(c))
        return err_set(err, QSTILL_E_CANCELLED, "cancelled");
    return r;
}

static void cow_free(void *ctx)
{
    struct cow *cow = ctx;

    uffd_close(&cow->uffd);
    for (size_t i = 0; i < cow->small_count; i++)
        free(cow->smalls[i].data);
    free(cow->smalls);
    free(cow->waiters);
    untouched_close(&cow->untouched);
    cow_map_fini(&cow->map);
    cow_pool_fini(&cow->pool);
    closep(&cow->kick_fd);
    closep(&cow->pidfd);
    closep(&cow->schedstat_fd);
    sem_destroy(&cow->ready);
    sem_destroy(&cow->go);
    pthread_mutex_destroy(&cow->pick);
    free(cow);
}

static const struct capture_ops cow_ops = {
    .stopped_by_owner = true,
    .run = cow_run,
    .free = cow_free,
};

/* ------------------------------------------------------------------- open */

/* Is this one to be read during the pause? `total`: of those so far. */
static bool is_small(const struct capture_source *s, uint64_t *total)
{
    if (s->size >= COW_SMALL || *total + s->size > COW_SMALL_TOTAL)
        return false;
    *total += s->size;
    return true;
}

static int add_small(struct cow *cow, const struct capture_source *s,
                     unsigned index, struct qstill_error *err)
{
    struct cow_small *small = &cow->smalls[cow->small_count];

    *small = (struct cow_small){s->hva, (size_t)s->size, index, NULL};
    small->data = malloc(small->size ? small->size : 1);
    if (!small->data)
        return err_nomem(err);
    cow->small_count++;
    return 0;
}

/* A hole is punched into the file before its mappings are told: a page that
 * we read in between would be zero, and nobody would know. */
static int refuse_balloon(const struct capture_source *s,
                          struct qstill_error *err)
{
    err_set(err, QSTILL_E_PRECONDITION,
            "RAM block '%.100s' is shared memory or huge pages, which the "
            "VM's balloon gives back unseen",
            s->id);
    return err_hint(err, "remove the balloon device, or use private memory");
}

static int examine_block(pid_t pid, const struct cow_seen *seen,
                         const struct capture_source *s, const struct uffd *can,
                         bool gives_back, struct region_ram *ram,
                         struct qstill_error *err)
{
    if (cow_check_merging(seen, s, err) < 0)
        return err->code;
    if (regions_examine(pid, &seen->maps, s->hva, s->size, s->page_size, ram,
                        err) < 0)
        return err_wrap(err, "RAM block '%.100s'", s->id);
    if (!ram->backed || (can->shared && !gives_back))
        return 0;
    closep(&ram->fd);
    ram->fd = -1;
    if (can->shared)
        return refuse_balloon(s, err);
    return err_set(err, QSTILL_E_PRECONDITION,
                   "RAM block '%.100s' is shared memory, which this kernel "
                   "cannot write-protect (Linux 5.19 can)",
                   s->id);
}

static int register_block(struct cow *cow, const struct capture_source *s,
                          const struct cow_block *b, struct qstill_error *err)
{
    int e = uffd_register(&cow->uffd, s->hva, s->size);

    if (e == 0)
        return 0;
    if (e == EBUSY)
        return err_set(err, QSTILL_E_BUSY,
                       "RAM block '%.100s' has a userfaultfd already (a "
                       "background snapshot or postcopy?)",
                       s->id);
    return err_set(err, QSTILL_E_PRECONDITION,
                   "RAM block '%.100s' (%s memory) cannot be write-protected: "
                   "%s",
                   s->id, b->shared ? "shared" : "private", strerror(e));
}

/* Made by a process before it forked, it is for the parent's memory: what we
 * read would be written to meanwhile, and nobody would know. */
static int check_given(const struct cow *cow, const struct cow_block *b,
                       struct qstill_error *err)
{
    if (uffd_is_of(&cow->uffd, cow->pid, b->hva, b->page))
        return 0;
    err_set(err, QSTILL_E_USAGE,
            "the userfaultfd that was given is not of process %d", cow->pid);
    return err_hint(err, "make it in the process that has the memory, after "
                         "its last fork");
}

static int add_block(struct cow *cow, const struct capture_source *s,
                     unsigned index, const struct cow_seen *seen,
                     const struct capture_cow_options *o, struct cow_block *out,
                     struct qstill_error *err)
{
    struct region_ram ram;

    if (examine_block(cow->pid, seen, s, &cow->uffd, o->gives_back, &ram, err) <
        0)
        return err->code;
    if (o->no_file) {
        closep(&ram.fd);
        ram.fd = -1;
    }
    *out = (struct cow_block){
        .hva = s->hva,
        .size = s->size,
        .page = ram.page,
        .index = index,
        .anonymous = !ram.backed,
        .shared = ram.shared,
        .fd = ram.fd,
        .fd_off = ram.fd_off,
    };
    return 0;
}

static void free_blocks(struct cow_block *blocks, size_t count)
{
    for (size_t i = 0; i < count; i++)
        closep(&blocks[i].fd);
    free(blocks);
}

/* Each block: into the file set, and to be registered or put aside as small. */
static int list_blocks(struct cow *cow, struct capture *c,
                       const struct capture_source *sources, size_t count,
                       const struct capture_cow_options *o,
                       struct cow_block *blocks, size_t *n,
                       struct qstill_error *err)
{
    CLEANUP(cow_seen_fini) struct cow_seen seen = COW_SEEN_INIT;
    uint64_t total = 0, small = 0;

    if (cow_see(&seen, cow->pid, &cow->ksm, err) < 0)
        return err->code;
    for (size_t i = 0; i < count; i++) {
        const struct capture_source *s = &sources[i];
        unsigned index;

        total += s->size;
        if (ramset_add_block(capture_writer(c), s->id, s->size, s->page_size,
                             &index, err) < 0)
            return err->code;
        if (is_small(s, &small)) {
            if (add_small(cow, s, index, err) < 0)
                return err->code;
            continue;
        }
        if (add_block(cow, s, index, &seen, o, &blocks[*n], err) < 0)
            return err->code;
        (*n)++;
    }
    capture_set_total(c, total);
    return 0;
}

/* All are looked at before the first is registered: that splits and joins the
 * mappings, and what /proc said of them is no longer true. (The kind of pages
 * of a part of a file would not be found, and huge ones taken for small.) */
static int add_blocks(struct cow *cow, struct capture *c,
                      const struct capture_source *sources, size_t count,
                      const struct capture_cow_options *o,
                      struct qstill_error *err)
{
    struct cow_block *blocks = calloc(count ? count : 1, sizeof(*blocks));
    size_t n = 0;
    int r;

    cow->smalls = calloc(count ? count : 1, sizeof(*cow->smalls));
    r = blocks && cow->smalls
            ? list_blocks(cow, c, sources, count, o, blocks, &n, err)
            : err_nomem(err);
    for (size_t i = 0; i < n && r == 0; i++)
        r = register_block(cow, &sources[blocks[i].index], &blocks[i], err);
    for (size_t i = 0; i < n && r == 0 && o->uffd >= 0; i++)
        r = check_given(cow, &blocks[i], err);
    if (r < 0) {
        free_blocks(blocks, n);
        return r;
    }
    return cow_map_init(&cow->map, blocks, n, err);
}

static unsigned default_copiers(void)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);

    return cpus < 4 ? 1 : cpus >= 8 ? 4 : (unsigned)cpus / 2;
}

static int cow_new(struct cow **out, pid_t pid,
                   const struct capture_cow_options *o,
                   struct qstill_error *err)
{
    unsigned copiers = o->copiers ? o->copiers : default_copiers();
    struct cow *cow = calloc(1, sizeof(*cow));

    if (!cow)
        return err_nomem(err);
    cow->pid = pid;
    cow->uffd.fd = -1;
    cow->pidfd = -1;
    cow->schedstat_fd = -1;
    cow->untouched.fd = -1;
    cow->stats_out = o->stats;
    cow->ksm_dir = o->ksm_dir ? o->ksm_dir : KSM_DIR;
    ksm_read_mark(cow->ksm_dir, &cow->ksm);
    cow->copier_count = (unsigned)min_u64(copiers, COW_COPIERS_MAX);
    sem_init(&cow->ready, 0, 0);
    sem_init(&cow->go, 0, 0);
    pthread_mutex_init(&cow->pick, NULL);
    cow->waiters = calloc(COW_WAITERS, sizeof(*cow->waiters));
    cow->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    cow->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (!cow->waiters || cow->kick_fd < 0 || cow->pidfd < 0) {
        cow_free(cow);
        return err_set(err, QSTILL_E_FAILED, "cannot watch process %d", pid);
    }
    *out = cow;
    return 0;
}

static int make_uffd(struct cow *cow, const struct capture_cow_options *o,
                     struct qstill_error *err)
{
    const struct uffd_options options = {
        .fd = o->uffd,
        .device_fd = o->device_fd,
        .no_unpopulated = o->no_unpopulated,
        .inject = o->inject,
    };
    uint64_t begun = worker_now_ns();

    if (uffd_open(&cow->uffd, cow->pid, &options, err) < 0)
        return err->code;
    untouched_open(&cow->untouched, cow->pid);
    cow->stats.inject_ms = (double)(worker_now_ns() - begun) / 1e6;
    return 0;
}

int capture_cow_open(struct capture **out, pid_t pid,
                     const struct capture_source *blocks, size_t count,
                     const struct capture_cow_options *options_cow,
                     const struct capture_options *options,
                     struct qstill_error *err)
{
    const struct capture_cow_options defaults = CAPTURE_COW_OPTIONS_INIT;
    const struct capture_cow_options *o = options_cow ? options_cow : &defaults;
    size_t pool = o->pool_bytes ? o->pool_bytes : COW_POOL_BYTES;
    CLEANUP(capture_closep) struct capture *c = NULL;
    CLEANUP(closep) int given = o->uffd;
    struct cow *cow = NULL;

    /* Cheap refusals first, before anything is traced or made. (Of who was
     * given a userfaultfd it is not asked that he could make one.) */
    if ((given < 0 &&
         capture_cow_check(pid, blocks, count, o->gives_back, err) < 0) ||
        cow_new(&cow, pid, o, err) < 0)
        return err->code;
    take_fd(&given);
    if (make_uffd(cow, o, err) < 0) {
        cow_free(cow);
        return err->code;
    }
    if (capture_new(&c, &cow_ops, cow, options, err) < 0 ||
        add_blocks(cow, c, blocks, count, o, err) < 0 ||
        cow_pool_init(&cow->pool, pool < POOL_MIN ? POOL_MIN : pool,
                      cow->map.units, err) < 0 ||
        capture_start(c, err) < 0)
        return err->code;
    *out = take_ptr(&c);
    return 0;
}

/* ------------------------------------------------------------------ check */

static int check_rights(pid_t pid, uint64_t hva, struct qstill_error *err)
{
    const struct cow probe = {.pid = pid};
    uint8_t byte;
    struct iovec here = {&byte, 1};

    if (cow_read(&probe, &here, 1, hva, 1))
        return 0;
    if (errno == ESRCH)
        return err_set(err, QSTILL_E_UNREACHABLE, "there is no process %d",
                       pid);
    if (errno != EPERM)
        return err_errno(err, errno, "cannot read the RAM of process %d", pid);
    err_set(err, QSTILL_E_PERMISSION, "process %d may not be traced by us",
            pid);
    return err_hint(err, "run as root, or give qstill CAP_SYS_PTRACE");
}

/* Of a QEMU under strace or a debugger we make nothing. */
static int check_tracer(pid_t pid, struct qstill_error *err)
{
    return pid == getpid() ? 0 : inject_status_untraced(pid, err);
}

int capture_cow_check(pid_t pid, const struct capture_source *blocks,
                      size_t count, bool gives_back, struct qstill_error *err)
{
    CLEANUP(cow_seen_fini) struct cow_seen seen = COW_SEEN_INIT;
    struct ksm_mark ksm;
    uint64_t small = 0;
    struct uffd can;

    ksm_read_mark(KSM_DIR, &ksm);
    if (uffd_probe(&can, err) < 0 || cow_see(&seen, pid, &ksm, err) < 0 ||
        check_tracer(pid, err) < 0)
        return err->code;
    for (size_t i = 0; i < count; i++) {
        struct region_ram ram;

        if (blocks[i].size > 0 && check_rights(pid, blocks[i].hva, err) < 0)
            return err_wrap(err, "RAM block '%.100s'", blocks[i].id);
        if (is_small(&blocks[i], &small))
            continue;
        if (examine_block(pid, &seen, &blocks[i], &can, gives_back, &ram, err) <
            0)
            return err->code;
        closep(&ram.fd);
    }
    return 0;
}

/* ------------------------------------------------------------------ stats */

double cow_stats_stall_ms(const struct cow_stats *s, double p)
{
    double longest = (double)s->longest_stall_ns / 1e6;
    uint64_t all = 0, seen = 0;

    for (unsigned i = 0; i < COW_STALL_BUCKETS; i++)
        all += s->stalls[i];
    for (unsigned i = 0; i < COW_STALL_BUCKETS; i++) {
        double edge = (double)((uint64_t)1 << i) / 1e3;

        seen += s->stalls[i];
        if (seen > 0 && (double)seen >= p * (double)all)
            return edge < longest ? edge : longest;
    }
    return longest;
}
