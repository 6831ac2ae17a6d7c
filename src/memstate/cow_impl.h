/* SPDX-License-Identifier: MIT */
/*
 * What the files of the cow capture share. Threads: the capture's own one is
 * the fault server (cow_serve.c), and some copiers (cow_copy.c). They share
 * the map, the pool, and the fields marked as atomic here.
 */
#ifndef QSTILL_MEMSTATE_COW_IMPL_H
#define QSTILL_MEMSTATE_COW_IMPL_H

#include <pthread.h>
#include <semaphore.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "memstate/capture_impl.h"
#include "memstate/cow.h"
#include "memstate/cow_map.h"
#include "memstate/cow_pool.h"
#include "memstate/ksm.h"
#include "memstate/uffd.h"
#include "memstate/untouched.h"

/* A block that is read during the pause. */
struct cow_small {
    uint64_t hva;
    size_t size;
    unsigned index;
    uint8_t *data;
};

/* A write that waits. */
struct cow_waiter {
    uint64_t address;
    uint64_t since_ns;
    bool pool_full;
};
/* One for each thread that the target may have; vhost and io_uring workers
 * of the kernel count, too. */
#define COW_WAITERS 16384u

struct cow_copier {
    struct cow *cow;
    pthread_t thread;
    unsigned number;
    struct pace pace;
    uint64_t written; /* bytes that are not zero */
};

struct cow {
    struct capture *capture;
    pid_t pid;
    int pidfd; /* readable when the target has ended */
    struct uffd uffd;
    struct untouched untouched;
    struct cow_map map;
    struct cow_pool pool;
    const char *ksm_dir;
    struct ksm_mark ksm; /* before anything was protected */
    struct cow_small *smalls;
    size_t small_count;
    struct cow_stats stats;
    struct cow_stats *stats_out;

    /* The fault server's. */
    bool saving;  /* after the instant */
    bool removed; /* memory was given back before it */
    struct cow_waiter *waiters;
    size_t waiter_count;
    uint64_t marked;    /* pages */
    uint64_t looked_ns; /* when the userfaultfd was read last */
    int schedstat_fd;   /* its thread's; -1: not opened yet */

    struct cow_copier copiers[COW_COPIERS_MAX];
    unsigned copier_count;
    unsigned started;
    sem_t ready; /* a copier is set up, or has failed */
    sem_t go;
    pthread_mutex_t pick;      /* around cow_map_next() */
    int kick_fd;               /* wakes the fault server */
    unsigned running;          /* atomic: copiers that are not done */
    bool stop;                 /* atomic: an error, or cancelled */
    struct qstill_error error; /* of the copier that set it */
    bool waiting;              /* atomic: there are waiters */
};

/* Reads the target's memory; false when a part of it is not there. */
bool cow_read(const struct cow *cow, const struct iovec *here, size_t count,
              uint64_t hva, size_t len);

/* ---------------------------------------------------------- cow_protect.c */

/* Protects everything while the guest runs. */
int cow_arm(struct cow *cow, struct qstill_error *err);
/* Lets writes through and marks their pages until `fd` is readable. */
int cow_mark_until(struct cow *cow, int fd, struct qstill_error *err);
/* The instant: what was marked is protected again, small blocks are read. */
int cow_take_instant(struct cow *cow, struct qstill_error *err);

/* ------------------------------------------------------------ cow_serve.c */

/* After cow_release(): reads what is queued, so that nobody waits for that. */
void cow_drain(struct cow *cow);
/* Answers all there is now. `since_ns`: when the first may have come. */
int cow_serve_once(struct cow *cow, uint64_t since_ns,
                   struct qstill_error *err);
/* Until `fd`, the userfaultfd or a kick has something, or `ms` are over.
 * *since_ns: when what has come since may have begun to wait: now, when it
 * slept and was woken in time. It may return before `ms` are over. */
int cow_sleep_until(struct cow *cow, int fd, int ms, uint64_t *since_ns,
                    bool *got, struct qstill_error *err);
/* The error of what could not be done to the target's memory. */
int cow_lost(const struct cow *cow, int errno_value, const char *what,
             struct qstill_error *err);
/* Saves pages in front of writes until no copier runs. */
int cow_serve(struct cow *cow, struct qstill_error *err);
/* Lifts all protection and wakes all waiters, in steps that do not hold the
 * guest up for long. Again is fine. */
void cow_release(struct cow *cow);

/* ------------------------------------------------------------- cow_kept.c */

/* What the kernel says of the process. */
struct cow_seen {
    struct buf maps;
    bool ksm;         /* it is at work */
    struct buf smaps; /* then; empty: it cannot be read */
};
#define COW_SEEN_INIT                                                          \
    {                                                                          \
        .maps = BUF_INIT, .smaps = BUF_INIT                                    \
    }

int cow_see(struct cow_seen *out, pid_t pid, const struct ksm_mark *ksm,
            struct qstill_error *err);
void cow_seen_fini(struct cow_seen *seen);
/* PRECONDITION when KSM may merge pages of the block now. */
int cow_check_merging(const struct cow_seen *seen,
                      const struct capture_source *s, struct qstill_error *err);

/* Of pages that have just been read and are still the caller's: was each one,
 * unless it is in the pool, protected until then? FAILED if not. */
int cow_check_kept(struct cow *cow, uint32_t unit, const struct cow_unit *u,
                   uint32_t page, uint32_t pages, struct qstill_error *err);
/* When all is read: the same for kernels where that cannot be seen, by what
 * KSM has done meanwhile. */
int cow_check_merged(struct cow *cow, struct qstill_error *err);

/* ------------------------------------------------------------- cow_copy.c */

/* Starts the copiers; they are set up when it returns, and wait. */
int cow_copiers_start(struct cow *cow, struct qstill_error *err);
void cow_copiers_go(struct cow *cow);
/* Waits for their end; the first of their errors, if any. */
int cow_copiers_join(struct cow *cow, struct qstill_error *err);
/* Tells them to end; cow_copiers_join() follows. */
void cow_copiers_stop(struct cow *cow);

#endif
