/* SPDX-License-Identifier: MIT */
/*
 * The fault server: answers the writes that wait at the userfaultfd. Before
 * the instant a write is let through and its page marked; afterwards the page
 * is saved into the pool first. It allocates nothing, writes no file and takes
 * no lock, so that it can always answer; what it cannot answer at once (no
 * room in the pool, the unit is just being copied) waits in a list, and is
 * looked at again when a copier kicks.
 */
#include "cow_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/checked.h"

/* What one ioctl lifts: it holds up page faults of the target for so long. */
#define STEP_RELEASE ((uint64_t)32 << 20)
/* Let through along with a page that is written while we are arming: to
 * protect them again costs next to nothing, a fault costs 10 us. */
#define MARK_AROUND 16u
/* Saved along with a page whose predecessor was saved. */
#define SAVE_AHEAD 16u
#define EVENTS     64u
/* The copiers keep out of the way of a guest that is being resumed: on a
 * machine with few processors they would make its pause longer. */
#define GO_LOOK_MS 1
#define GO_MAX_MS  50
/* The longest sleep: who comes late from it was kept from running. */
#define SLEEP_MS 20
#define LATE_NS  1000000u

int cow_lost(const struct cow *cow, int errno_value, const char *what,
             struct qstill_error *err)
{
    if (errno_value == ESRCH)
        return err_set(err, QSTILL_E_UNREACHABLE, "process %d has ended",
                       cow->pid);
    if (errno_value == ENOENT || errno_value == EFAULT)
        return err_set(err, QSTILL_E_FAILED,
                       "process %d has unmapped a part of its RAM", cow->pid);
    return err_errno(err, errno_value, "cannot %s RAM of process %d", what,
                     cow->pid);
}

/* ---------------------------------------------------------------- waiters */

static void note_stall(struct cow *cow, uint64_t since_ns, bool pool_full)
{
    uint64_t ns = worker_now_ns() - since_ns;
    uint64_t us = ns / 1000;
    unsigned bucket = us ? 64u - (unsigned)__builtin_clzll(us) : 0;

    if (bucket >= COW_STALL_BUCKETS)
        bucket = COW_STALL_BUCKETS - 1;
    cow->stats.stalls[bucket]++;
    cow->stats.faults++;
    cow->stats.waited += pool_full;
    if (ns > cow->stats.longest_stall_ns)
        cow->stats.longest_stall_ns = ns;
}

static int add_waiter(struct cow *cow, struct cow_waiter w,
                      struct qstill_error *err)
{
    if (cow->waiter_count == COW_WAITERS)
        return err_set(err, QSTILL_E_FAILED,
                       "more than %u threads of process %d wait to write",
                       COW_WAITERS, cow->pid);
    cow->waiters[cow->waiter_count++] = w;
    return 0;
}

/* ------------------------------------------------------------------ write */

enum answer { ANSWERED, LATER };

/* The range of pages around `page`, cut to the unit and to whole pages of the
 * memory's kind. */
static void widen(const struct cow_unit *u, uint32_t around, uint32_t *page,
                  uint32_t *pages)
{
    uint32_t end = (uint32_t)(u->len / RAMSET_PAGE);

    around = (uint32_t)max_u64(around, u->block->page / RAMSET_PAGE);
    *page -= *page % around;
    *pages = (uint32_t)min_u64(around, end - *page);
}

static uint64_t page_hva(const struct cow_unit *u, uint32_t page)
{
    return u->block->hva + u->offset + (uint64_t)page * RAMSET_PAGE;
}

static int let_through(struct cow *cow, const struct cow_unit *u, uint32_t page,
                       uint32_t pages, enum answer *answer,
                       struct qstill_error *err)
{
    int e = uffd_unprotect(&cow->uffd, page_hva(u, page),
                           (uint64_t)pages * RAMSET_PAGE);

    *answer = e == EAGAIN ? LATER : ANSWERED;
    return e && e != EAGAIN ? cow_lost(cow, e, "unprotect", err) : 0;
}

static int answer_mark(struct cow *cow, uint32_t unit, uint32_t page,
                       enum answer *answer, struct qstill_error *err)
{
    struct cow_unit u = cow_map_unit(&cow->map, unit);
    uint32_t pages;

    widen(&u, MARK_AROUND, &page, &pages);
    cow->marked += cow_map_mark(&cow->map, unit, page, pages);
    return let_through(cow, &u, page, pages, answer, err);
}

/* Into the pool, with what will be wanted next; *pages: 0 when it is full. */
static int save_pages(struct cow *cow, uint32_t unit, const struct cow_unit *u,
                      uint32_t page, uint32_t *pages, struct qstill_error *err)
{
    uint32_t slots[COW_UNIT_PAGES];
    struct iovec memory[COW_UNIT_PAGES];

    if (!cow_pool_take(&cow->pool, *pages, slots, memory)) {
        *pages = u->block->page == RAMSET_PAGE;
        if (*pages == 0 || !cow_pool_take(&cow->pool, 1, slots, memory)) {
            *pages = 0;
            return 0;
        }
    }
    if (!cow_read(cow, memory, *pages, page_hva(u, page),
                  (size_t)*pages * RAMSET_PAGE)) {
        cow_pool_untake(&cow->pool, slots, *pages);
        return cow_lost(cow, errno, "read", err);
    }
    if (cow_check_kept(cow, unit, u, page, *pages, err) < 0) {
        cow_pool_untake(&cow->pool, slots, *pages);
        return err->code;
    }
    cow_pool_link(&cow->pool, unit, page, slots, *pages);
    cow_map_mark(&cow->map, unit, page, *pages);
    return 0;
}

/* How many pages to save from `page` on: one, or some more behind a page that
 * was saved before; up to the next one that is saved already. */
static uint32_t pages_ahead(const struct cow *cow, uint32_t unit,
                            const struct cow_unit *u, uint32_t page)
{
    uint32_t end = (uint32_t)(u->len / RAMSET_PAGE);
    uint32_t n = 1;

    if (page == 0 || !cow_map_is_marked(&cow->map, unit, page - 1))
        return 1;
    while (n < SAVE_AHEAD && page + n < end &&
           !cow_map_is_marked(&cow->map, unit, page + n))
        n++;
    return n;
}

/* The unit is ours (SERVING) meanwhile. */
static int save_in_unit(struct cow *cow, uint32_t unit, uint32_t page,
                        enum answer *answer, bool *pool_full,
                        struct qstill_error *err)
{
    struct cow_unit u = cow_map_unit(&cow->map, unit);
    uint32_t pages = 1;

    if (u.block->page != RAMSET_PAGE)
        widen(&u, 1, &page, &pages);
    if (!cow_map_is_marked(&cow->map, unit, page)) {
        if (u.block->page == RAMSET_PAGE)
            pages = pages_ahead(cow, unit, &u, page);
        if (save_pages(cow, unit, &u, page, &pages, err) < 0)
            return err->code;
        if (pages == 0) {
            *pool_full = true;
            *answer = LATER;
            return 0;
        }
    }
    return let_through(cow, &u, page, pages, answer, err);
}

static int answer_save(struct cow *cow, uint32_t unit, uint32_t page,
                       enum answer *answer, bool *pool_full,
                       struct qstill_error *err)
{
    int r;

    *answer = LATER;
    if (cow_map_state(&cow->map, unit) == COW_DONE) {
        struct cow_unit u = cow_map_unit(&cow->map, unit);
        uint32_t pages;

        /* It was woken when the unit was; once more does no harm. */
        widen(&u, 1, &page, &pages);
        return let_through(cow, &u, page, pages, answer, err);
    }
    if (!cow_map_move(&cow->map, unit, COW_PROTECTED, COW_SERVING))
        return 0; /* a copier has it, and will let it go as a whole */
    r = save_in_unit(cow, unit, page, answer, pool_full, err);
    cow_map_move(&cow->map, unit, COW_SERVING, COW_PROTECTED);
    cow_map_hurry(&cow->map, unit, COW_SOON);
    return r;
}

static int answer_write(struct cow *cow, struct cow_waiter *w,
                        enum answer *answer, struct qstill_error *err)
{
    bool pool_full = false;
    uint32_t unit, page;

    unit = cow_map_find(&cow->map, w->address, &page);
    if (unit == COW_NONE)
        return err_set(err, QSTILL_E_FAILED, "a fault outside of the RAM");
    if (!cow->saving)
        return answer_mark(cow, unit, page, answer, err);
    if (answer_save(cow, unit, page, answer, &pool_full, err) < 0)
        return err->code;
    if (pool_full && !w->pool_full)
        cow_map_hurry(&cow->map, unit, COW_AT_ONCE);
    w->pool_full |= pool_full;
    if (*answer == ANSWERED)
        note_stall(cow, w->since_ns, w->pool_full);
    return 0;
}

/* ---------------------------------------------------------------- removal */

/* The target gives pages back (balloon, free page reporting). Once we have
 * read of it they are gone, so this must not meet a page that is wanted: only
 * what was copied before that read is known to be what it was. */
static int answer_removed(struct cow *cow, uint64_t start, uint64_t len,
                          struct qstill_error *err)
{
    for (uint64_t at = start; at - start < len; at += RAMSET_PAGE) {
        uint32_t page, unit = cow_map_find(&cow->map, at, &page);

        if (unit == COW_NONE)
            continue;
        if (!cow->saving) {
            cow->removed = true;
            cow->marked += cow_map_mark(&cow->map, unit, page, 1);
            continue;
        }
        if ((cow_map_state(&cow->map, unit) == COW_DONE &&
             cow_map_was_copied(&cow->map, unit)) ||
            (cow_map_state(&cow->map, unit) == COW_PROTECTED &&
             cow_map_is_marked(&cow->map, unit, page)))
            continue;
        err_set(err, QSTILL_E_FAILED,
                "the guest gave memory back (balloon) before it was saved");
        return err_hint(err, "try again when its balloon is at rest, or use "
                             "--mode paused");
    }
    return 0;
}

/* ------------------------------------------------------------------- loop */

static int retry_waiters(struct cow *cow, struct qstill_error *err)
{
    size_t kept = 0;
    int r = 0;

    for (size_t i = 0; i < cow->waiter_count; i++) {
        struct cow_waiter w = cow->waiters[i];
        enum answer answer = LATER;

        if (r == 0)
            r = answer_write(cow, &w, &answer, err);
        if (answer == LATER)
            cow->waiters[kept++] = w;
    }
    cow->waiter_count = kept;
    return r;
}

static int answer_event(struct cow *cow, const struct uffd_event *e,
                        uint64_t since_ns, struct qstill_error *err)
{
    struct cow_waiter w = {e->start, since_ns, false};
    enum answer answer = LATER;

    if (e->kind == UFFD_REMOVED)
        return answer_removed(cow, e->start, e->len, err);
    if (answer_write(cow, &w, &answer, err) < 0)
        return err->code;
    return answer == LATER ? add_waiter(cow, w, err) : 0;
}

int cow_serve_once(struct cow *cow, uint64_t since_ns, struct qstill_error *err)
{
    struct uffd_event events[EVENTS];
    ssize_t n;

    for (;;) {
        uint64_t now = worker_now_ns();

        cow_map_next_epoch(&cow->map);
        n = uffd_read(&cow->uffd, events, EVENTS);
        if (n < 0)
            return err_errno(err, (int)-n, "cannot read the userfaultfd");
        for (ssize_t i = 0; i < n; i++)
            if (answer_event(cow, &events[i], since_ns, err) < 0)
                return err->code;
        if (cow->waiter_count > 0 && retry_waiters(cow, err) < 0)
            return err->code;
        cow->looked_ns = now;
        if (n == 0)
            return 0;
        since_ns = now;
    }
}

void cow_drain(struct cow *cow)
{
    struct uffd_event events[EVENTS];

    while (uffd_read(&cow->uffd, events, EVENTS) > 0)
        ;
}

/* How long this thread has waited for a processor so far; 0 where the kernel
 * does not count that. */
static uint64_t run_delay_ns(struct cow *cow)
{
    unsigned long long ns = 0;
    char text[96];
    ssize_t n;

    if (cow->schedstat_fd < 0)
        cow->schedstat_fd =
            open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
    n = pread(cow->schedstat_fd, text, sizeof(text) - 1, 0);
    if (n <= 0)
        return 0;
    text[n] = '\0';
    return sscanf(text, "%*s %llu", &ns) == 1 ? ns : 0;
}

/* What has come may have waited since the last look, but for the time in which
 * we slept and would have been woken. That we did not get a processor then the
 * kernel tells; that we were stopped shows when we come late. */
static uint64_t waits_since(const struct cow *cow, uint64_t slept_at, int ms,
                            uint64_t delayed_ns)
{
    uint64_t now = worker_now_ns(), asked = (uint64_t)ms * 1000000u;
    uint64_t slept = now - slept_at, known = min_u64(delayed_ns, slept);

    if (slept > asked + known + LATE_NS)
        known = slept;
    return now - known - (slept_at - cow->looked_ns);
}

int cow_sleep_until(struct cow *cow, int fd, int ms, uint64_t *since_ns,
                    bool *got, struct qstill_error *err)
{
    struct pollfd fds[] = {
        {cow->uffd.fd, POLLIN, 0},
        {cow->kick_fd, POLLIN, 0},
        {fd, POLLIN, 0},
        {cow->pidfd, POLLIN, 0},
    };
    uint64_t delay = run_delay_ns(cow), begun = worker_now_ns();
    eventfd_t ignored;

    ms = ms < 0 || ms > SLEEP_MS ? SLEEP_MS : ms;
    if (poll(fds, ARRAY_LEN(fds), ms) < 0 && errno != EINTR)
        return err_errno(err, errno, "poll failed");
    *since_ns = waits_since(cow, begun, ms, run_delay_ns(cow) - delay);
    if (fds[1].revents)
        eventfd_read(cow->kick_fd, &ignored);
    *got = fds[2].revents != 0;
    if (fds[3].revents)
        return cow_lost(cow, ESRCH, "watch", err);
    return 0;
}

/* ------------------------------------------------------------------ serve */

/* Sends the copiers off when it is time. */
static bool send_off(struct cow *cow, uint64_t begun)
{
    bool go = capture_was_resumed(cow->capture) || cow->waiter_count > 0 ||
              worker_now_ns() - begun > GO_MAX_MS * 1000000u;

    if (go)
        cow_copiers_go(cow);
    return go;
}

int cow_serve(struct cow *cow, struct qstill_error *err)
{
    int cancel_fd = capture_cancel_fd(cow->capture);
    uint64_t begun = worker_now_ns(), since;
    bool gone = false;
    bool got;

    cow->looked_ns = begun; /* nobody ran in the pause */
    while (__atomic_load_n(&cow->running, __ATOMIC_ACQUIRE) > 0 &&
           !__atomic_load_n(&cow->stop, __ATOMIC_ACQUIRE)) {
        if (!gone)
            gone = send_off(cow, begun);
        if (cow_sleep_until(cow, cancel_fd, gone ? -1 : GO_LOOK_MS, &since,
                            &got, err) < 0 ||
            cow_serve_once(cow, since, err) < 0)
            return err->code;
        /* A copier that sees this set, after it has done a unit, kicks: so
         * look at the waiters once more before sleeping. */
        __atomic_store_n(&cow->waiting, cow->waiter_count > 0,
                         __ATOMIC_SEQ_CST);
        if (cow->waiter_count > 0 && retry_waiters(cow, err) < 0)
            return err->code;
        if (got)
            cow_copiers_stop(cow);
    }
    return 0;
}

void cow_release(struct cow *cow)
{
    if (cow->uffd.fd < 0)
        return;
    for (size_t i = 0; i < cow->map.block_count; i++) {
        const struct cow_block *b = &cow->map.blocks[i];

        for (uint64_t off = 0; off < b->size; off += STEP_RELEASE)
            uffd_unregister(&cow->uffd, b->hva + off,
                            min_u64(STEP_RELEASE, b->size - off));
    }
}
