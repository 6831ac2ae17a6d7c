/* SPDX-License-Identifier: MIT */
/*
 * The copiers. Each takes a unit, reads it as a whole, lets the guest have it
 * back at once, puts the pages that were saved earlier in their places, and
 * only then looks for zeros, makes the sums and writes: so the disk holds up
 * nobody who waits for this unit. A unit that somebody waits for, or that was
 * written to, comes before the others.
 */
#include "cow_impl.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>

#include "base/checked.h"
#include "memstate/chunk_write.h"

/* Of each copier, 1 MiB each: two are being filled, the rest is on its way to
 * the disk. */
#define BUFFERS 12u
#define PARTS   (COW_UNIT / RAMSET_CHUNK)
/* How long somebody may wait who gives memory back while copiers end. */
#define JOIN_SLICE_NS 2000000

/* The buffers of a unit. */
struct unit_copy {
    struct chunk *parts[PARTS];
    bool blank; /* zero throughout, which the parts do not show yet */
};

/* The first one counts: when all protection is lifted after it, others fail
 * because of that. */
static void fail(struct cow *cow, const struct qstill_error *err)
{
    if (!__atomic_exchange_n(&cow->stop, true, __ATOMIC_ACQ_REL))
        cow->error = *err;
}

static void place_saved(void *user, uint32_t page, const uint8_t *data)
{
    struct unit_copy *c = user;
    uint8_t *to = c->parts[page / RAMSET_CHUNK_PAGES]->data;

    for (size_t i = 0; c->blank && i < PARTS; i++)
        memset(c->parts[i]->data, 0, RAMSET_CHUNK);
    c->blank = false;
    memcpy(to + page % RAMSET_CHUNK_PAGES * (size_t)RAMSET_PAGE, data,
           RAMSET_PAGE);
}

/* The whole of it, from the file behind it or from the process. (Not through a
 * mapping of the file: a process that cuts it short would have us killed, and
 * looking at a hole would fill it.) */
static int read_unit(struct cow *cow, const struct cow_unit *u,
                     struct iovec *iov, size_t count, struct qstill_error *err)
{
    const struct cow_block *b = u->block;

    if (b->fd >= 0) {
        if (preadv(b->fd, iov, (int)count, (off_t)(b->fd_off + u->offset)) ==
            (ssize_t)u->len)
            return 0;
        return err_set(err, QSTILL_E_FAILED, "the file of the RAM is short");
    }
    if (cow_read(cow, iov, count, b->hva + u->offset, u->len))
        return 0;
    if (errno == ESRCH)
        return err_set(err, QSTILL_E_UNREACHABLE, "process %d has ended",
                       cow->pid);
    return err_errno(err, errno, "cannot read RAM of process %d", cow->pid);
}

/* Never written to: a hole in the file of shared memory, or private memory
 * without pages. Reading would only find zeros, and give it pages or tables. */
static bool is_hole(const struct cow *cow, const struct cow_unit *u)
{
    const struct cow_block *b = u->block;
    off_t start = (off_t)(b->fd_off + u->offset);
    off_t data;

    if (b->anonymous)
        return untouched_all(&cow->untouched, b->hva + u->offset,
                             (uint32_t)(u->len / RAMSET_PAGE));
    if (b->fd < 0)
        return false;
    data = lseek(b->fd, start, SEEK_DATA);
    return data < 0 ? errno == ENXIO : data >= start + (off_t)u->len;
}

static int unprotect(struct cow *cow, const struct cow_unit *u,
                     struct qstill_error *err)
{
    uint64_t hva = u->block->hva + u->offset;
    int e;

    /* EAGAIN: the fault server is about to read an event. At the end it reads
     * no more, and lets go of all of it. */
    while ((e = uffd_unprotect(&cow->uffd, hva, u->len)) == EAGAIN) {
        if (__atomic_load_n(&cow->stop, __ATOMIC_ACQUIRE))
            return 0;
        sched_yield();
    }
    if (e == 0)
        return 0;
    return err_errno(err, e, "cannot unprotect RAM of process %d", cow->pid);
}

static void kick(struct cow *cow)
{
    eventfd_write(cow->kick_fd, 1);
}

/* From COPYING to DONE: the guest has the unit back, its bytes are ours. */
static int take_unit(struct cow *cow, uint32_t unit, const struct cow_unit *u,
                     struct unit_copy *c, struct qstill_error *err)
{
    struct iovec iov[PARTS];
    size_t count = 0;

    c->blank = is_hole(cow, u);
    for (uint64_t off = 0; off < u->len; off += RAMSET_CHUNK, count++) {
        iov[count].iov_base = c->parts[count]->data;
        iov[count].iov_len = (size_t)min_u64(RAMSET_CHUNK, u->len - off);
    }
    if (!c->blank &&
        (read_unit(cow, u, iov, count, err) < 0 ||
         cow_check_kept(cow, unit, u, 0, (uint32_t)(u->len / RAMSET_PAGE),
                        err) < 0))
        return err->code;
    cow_map_set_copied(&cow->map, unit);
    if (unprotect(cow, u, err) < 0)
        return err->code;
    cow_map_move(&cow->map, unit, COW_COPYING, COW_DONE);
    cow_pool_empty(&cow->pool, unit, place_saved, c);
    if (__atomic_load_n(&cow->waiting, __ATOMIC_SEQ_CST))
        kick(cow);
    return 0;
}

static void scan_part(struct cow_copier *k, struct chunk *c)
{
    struct ramset_writer *set = capture_writer(k->cow->capture);
    uint64_t sum = ramset_scan(c->data, c->number * RAMSET_CHUNK_PAGES,
                               c->pages, &c->have);

    ramset_sum_add(set, c->index, c->number, sum);
    k->written += (uint64_t)ramset_map_count(&c->have) * RAMSET_PAGE;
    ramset_map_close_gaps(&c->have, c->pages);
}

static int copy_unit(struct cow_copier *k, struct chunk_writer *w,
                     uint32_t unit, struct unit_copy *c,
                     struct qstill_error *err)
{
    struct cow_unit u = cow_map_unit(&k->cow->map, unit);

    if (take_unit(k->cow, unit, &u, c, err) < 0)
        return err->code;
    for (size_t i = 0; i < PARTS; i++) {
        uint64_t off = u.offset + i * RAMSET_CHUNK;
        struct chunk *part = c->parts[i];

        part->index = u.block->index;
        part->number = off / RAMSET_CHUNK;
        part->pages = off < u.block->size
                          ? (size_t)min_u64(RAMSET_CHUNK, u.block->size - off) /
                                RAMSET_PAGE
                          : 0;
        if (!c->blank && part->pages > 0)
            scan_part(k, part);
        c->parts[i] = NULL;
        if (chunk_writer_put(w, part, err) < 0)
            return err->code;
    }
    capture_add_done(k->cow->capture, u.len);
    return 0;
}

/* Buffers first: once a unit is taken, the guest may wait for it. */
static int get_buffers(struct chunk_writer *w, struct unit_copy *c,
                       struct qstill_error *err)
{
    for (size_t i = 0; i < PARTS; i++)
        if (!c->parts[i] && chunk_writer_get(w, 0, 0, &c->parts[i], err) < 0)
            return err->code;
    return 0;
}

static uint32_t next_unit(struct cow *cow)
{
    uint32_t unit;

    if (__atomic_load_n(&cow->stop, __ATOMIC_ACQUIRE))
        return COW_NONE;
    pthread_mutex_lock(&cow->pick);
    unit = cow_map_next(&cow->map);
    pthread_mutex_unlock(&cow->pick);
    return unit;
}

/* The blocks that were read during the pause. */
static int write_smalls(struct cow_copier *k, struct chunk_writer *w,
                        struct qstill_error *err)
{
    for (size_t i = 0; i < k->cow->small_count; i++) {
        const struct cow_small *s = &k->cow->smalls[i];
        struct chunk *part;

        if (chunk_writer_get(w, s->index, 0, &part, err) < 0)
            return err->code;
        memcpy(part->data, s->data, s->size);
        scan_part(k, part);
        capture_add_done(k->cow->capture, s->size);
        if (chunk_writer_put(w, part, err) < 0)
            return err->code;
    }
    return 0;
}

static int copy_all(struct cow_copier *k, struct chunk_writer *w,
                    struct qstill_error *err)
{
    struct unit_copy c = {{NULL}, false};
    uint32_t unit;

    if (k->number == 0 && write_smalls(k, w, err) < 0)
        return err->code;
    for (;;) {
        if (capture_pace(k->cow->capture, &k->pace, COW_UNIT, err) < 0 ||
            get_buffers(w, &c, err) < 0)
            return err->code;
        unit = next_unit(k->cow);
        if (unit == COW_NONE)
            return chunk_writer_drain(w, err);
        if (copy_unit(k, w, unit, &c, err) < 0)
            return err->code;
    }
}

static int copier_run(struct cow_copier *k, struct qstill_error *err)
{
    CLEANUP(chunk_writer_closep) struct chunk_writer *w = NULL;
    struct cow *cow = k->cow;
    const struct capture_options *o = capture_get_options(cow->capture);
    int r;

    r = chunk_writer_open(&w, capture_writer(cow->capture), o->io, BUFFERS,
                          err);
    if (r < 0)
        fail(cow, err);
    sem_post(&cow->ready);
    while (sem_wait(&cow->go) < 0)
        ;
    if (__atomic_load_n(&cow->stop, __ATOMIC_ACQUIRE))
        return 0;
    return copy_all(k, w, err);
}

static void *copier_main(void *arg)
{
    struct qstill_error err = {0};
    struct cow_copier *k = arg;

    if (copier_run(k, &err) < 0)
        fail(k->cow, &err);
    __atomic_sub_fetch(&k->cow->running, 1, __ATOMIC_ACQ_REL);
    kick(k->cow);
    return NULL;
}

/* ---------------------------------------------------------------- threads */

int cow_copiers_start(struct cow *cow, struct qstill_error *err)
{
    uint64_t rate = capture_get_options(cow->capture)->bwlimit;
    int r;

    /* The capture's thread takes no signals, so its children do not. */
    for (unsigned i = 0; i < cow->copier_count; i++) {
        struct cow_copier *k = &cow->copiers[i];

        *k = (struct cow_copier){.cow = cow, .number = i};
        pace_init(&k->pace, rate ? rate / cow->copier_count + 1 : 0);
        __atomic_add_fetch(&cow->running, 1, __ATOMIC_ACQ_REL);
        r = pthread_create(&k->thread, NULL, copier_main, k);
        if (r != 0) {
            __atomic_sub_fetch(&cow->running, 1, __ATOMIC_ACQ_REL);
            cow_copiers_stop(cow);
            return err_errno(err, r, "cannot start a thread");
        }
        cow->started++;
    }
    for (unsigned i = 0; i < cow->started; i++)
        while (sem_wait(&cow->ready) < 0)
            ;
    if (__atomic_load_n(&cow->stop, __ATOMIC_ACQUIRE))
        return cow_copiers_join(cow, err);
    return 0;
}

void cow_copiers_go(struct cow *cow)
{
    for (unsigned i = 0; i < cow->started; i++)
        sem_post(&cow->go);
}

void cow_copiers_stop(struct cow *cow)
{
    __atomic_store_n(&cow->stop, true, __ATOMIC_RELEASE);
}

/* Who gives memory back waits until that event is read, and in QEMU all others
 * wait for him. */
static void join(struct cow *cow, pthread_t thread)
{
    struct timespec until;

    do {
        cow_drain(cow);
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += JOIN_SLICE_NS;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
    } while (pthread_clockjoin_np(thread, NULL, CLOCK_MONOTONIC, &until) ==
             ETIMEDOUT);
}

int cow_copiers_join(struct cow *cow, struct qstill_error *err)
{
    /* Those that still wait for the start. One too many does no harm. */
    cow_copiers_go(cow);
    for (unsigned i = 0; i < cow->started; i++) {
        join(cow, cow->copiers[i].thread);
        capture_figures(cow->capture)->written_bytes += cow->copiers[i].written;
    }
    cow->started = 0;
    if (cow->error.code != 0)
        *err = cow->error;
    return cow->error.code;
}
