/* SPDX-License-Identifier: MIT */
/*
 * Up to the instant: everything is protected while the guest runs, what it
 * writes meanwhile is marked (cow_serve.c) and protected again, most of it
 * before the guest stands.
 */
#include "cow_impl.h"

#include <errno.h>
#include <string.h>

#include "base/checked.h"

/* What one ioctl protects while the guest runs: it holds up page faults of
 * the target for so long. */
#define STEP ((uint64_t)64 << 20)
/* Marked pages so close together are protected by one ioctl. */
#define RUN_GAP 64u
/* Marks older than that are cleared while we wait for the instant, so that it
 * has only the writes of the last moment to protect again. */
#define REFRESH_MS    100
#define REFRESH_PAGES 4096u

static int protect(struct cow *cow, uint64_t hva, uint64_t len,
                   struct qstill_error *err)
{
    int e;

    while ((e = uffd_protect(&cow->uffd, hva, len)) == EAGAIN)
        if (cow_serve_once(cow, worker_now_ns(), err) < 0)
            return err->code;
    return e ? cow_lost(cow, e, "protect", err) : 0;
}

/* Before Linux 6.4 only pages that are mapped can be protected: reading maps
 * the page of zeros. Private memory only. */
static int populate(struct cow *cow, uint64_t hva, uint64_t len,
                    struct qstill_error *err)
{
    uint8_t bytes[COW_UNIT_PAGES];
    struct iovec here = {bytes, 0};
    struct iovec there[COW_UNIT_PAGES];
    size_t n = 0;

    for (uint64_t at = 0; at < len; at += RAMSET_PAGE) {
        there[n++] = (struct iovec){(void *)(uintptr_t)(hva + at), 1};
        if (n < COW_UNIT_PAGES && at + RAMSET_PAGE < len)
            continue;
        here.iov_len = n;
        if (process_vm_readv(cow->pid, &here, 1, there, n, 0) != (ssize_t)n)
            return cow_lost(cow, errno ? errno : EFAULT, "read", err);
        n = 0;
    }
    return 0;
}

static int protect_block(struct cow *cow, const struct cow_block *b,
                         uint64_t hva, uint64_t len, struct qstill_error *err)
{
    if (!cow->uffd.unpopulated && !b->shared &&
        populate(cow, hva, len, err) < 0)
        return err->code;
    return protect(cow, hva, len, err);
}

int cow_arm(struct cow *cow, struct qstill_error *err)
{
    uint64_t begun = worker_now_ns();

    for (size_t i = 0; i < cow->map.block_count; i++) {
        const struct cow_block *b = &cow->map.blocks[i];

        for (uint64_t off = 0; off < b->size; off += STEP) {
            if (protect_block(cow, b, b->hva + off,
                              min_u64(STEP, b->size - off), err) < 0 ||
                cow_serve_once(cow, worker_now_ns(), err) < 0)
                return err->code;
            if (capture_cancelled(cow->capture))
                return err_set(err, QSTILL_E_CANCELLED, "cancelled");
        }
    }
    cow->stats.arm_ms = (double)(worker_now_ns() - begun) / 1e6;
    return 0;
}

/*
 * What was marked, and no longer is then. The guest may run: what it writes
 * before its page is protected belongs to the time before the instant anyway,
 * what it wants to write afterwards marks the page again.
 */
static int protect_marked(struct cow *cow, struct qstill_error *err)
{
    struct cow_place at = {0, 0};
    struct cow_run run;

    while (cow_map_take_run(&cow->map, &at, RUN_GAP, &run)) {
        cow->marked -= run.marked;
        if (protect_block(cow, run.block, run.hva, run.len, err) < 0)
            return err->code;
    }
    return 0;
}

int cow_mark_until(struct cow *cow, int fd, struct qstill_error *err)
{
    uint64_t refreshed = worker_now_ns(), since;
    bool got = false;

    while (!got) {
        if (cow_sleep_until(cow, fd, REFRESH_MS, &since, &got, err) < 0 ||
            cow_serve_once(cow, since, err) < 0)
            return err->code;
        if (capture_cancelled(cow->capture))
            return err_set(err, QSTILL_E_CANCELLED, "cancelled");
        /* A page that is given back loses its protection only now, a little
         * after we were told: its mark must stay until the guest stands. */
        if (got || cow->removed || cow->marked < REFRESH_PAGES ||
            worker_now_ns() - refreshed < REFRESH_MS * 1000000u)
            continue;
        if (protect_marked(cow, err) < 0)
            return err->code;
        refreshed = worker_now_ns();
    }
    return 0;
}

int cow_take_instant(struct cow *cow, struct qstill_error *err)
{
    cow->stats.marked = cow->marked;
    /* Only a removal that comes just now marks anything again. */
    while (cow->marked > 0)
        if (protect_marked(cow, err) < 0)
            return err->code;
    for (size_t i = 0; i < cow->small_count; i++) {
        struct cow_small *s = &cow->smalls[i];
        struct iovec here = {s->data, s->size};

        if (!cow_read(cow, &here, 1, s->hva, s->size))
            return cow_lost(cow, errno, "read", err);
    }
    cow->saving = true;
    return 0;
}
