/* SPDX-License-Identifier: MIT */
/*
 * Capture mode `cow`: the guest is stopped for an instant only; then it runs
 * on while its RAM is copied, and a page that it wants to write is saved
 * first. Made with a userfaultfd in write-protect mode, so neither QEMU's
 * migration code nor its blockers are asked.
 *
 * From the owner's side it is a capture as in capture.h:
 *   capture_cow_open()   the userfaultfd is made and the RAM registered;
 *                        errors that mean "take another mode" come here
 *   status.ready         all RAM is protected; a write is let through and
 *                        its page marked
 *   capture_instant()    marked pages are protected again, small blocks are
 *                        read; no term in the size of the RAM
 *   status.instant_taken the guest may run; it must not run before: a write
 *                        of QEMU's main loop would wait for us
 *
 * Memory: the pool and the write buffers, COW_POOL_BYTES + 12 MiB for each
 * copier by default, and 1 MiB for each 24 GiB of RAM. When the pool is full,
 * writes of the guest wait for the disk: that is measured, not hidden.
 *
 * If we die, the kernel closes the userfaultfd and the guest runs on.
 */
#ifndef QSTILL_MEMSTATE_COW_H
#define QSTILL_MEMSTATE_COW_H

#include "memstate/capture.h"
#include "memstate/inject.h"

#define COW_POOL_BYTES  ((size_t)64 << 20)
#define COW_COPIERS_MAX 8u
/* A smaller block is read during the pause, as long as all of these together
 * have no more than COW_SMALL_TOTAL. */
#define COW_SMALL       ((uint64_t)1 << 20)
#define COW_SMALL_TOTAL ((uint64_t)8 << 20)
/* Of the histogram of stalls: bucket i counts stalls of less than 2^i us and
 * not less than 2^(i-1). */
#define COW_STALL_BUCKETS 32u

/* Where the time went; filled before status.complete. */
struct cow_stats {
    double inject_ms;  /* the target's thread was held for so long */
    double arm_ms;     /* first protection of all RAM, guest running */
    double instant_ms; /* from capture_instant() to instant_taken */
    double copy_ms;    /* from there until the last page was read */
    uint64_t marked;   /* pages written between ready and the instant */
    uint64_t faults;   /* write faults served after the instant */
    uint64_t waited;   /* of these, the ones that found the pool full */
    uint64_t pool_peak_bytes;
    uint64_t longest_stall_ns;
    uint64_t stalls[COW_STALL_BUCKETS];
};

struct capture_cow_options {
    size_t pool_bytes; /* 0: COW_POOL_BYTES; at least 4 MiB */
    unsigned copiers;  /* threads; 0: half of the processors, at most 4 */
    int uffd;          /* as `fd` of struct uffd_options */
    int device_fd;     /* as struct uffd_options; negative: none */
    /* The target may give memory back to the host (a balloon). Of private
     * memory we hear beforehand; shared memory is refused. */
    bool gives_back;
    bool no_unpopulated;                 /* tests: as before Linux 6.4 */
    bool no_file;                        /* read shared RAM as private */
    const char *ksm_dir;                 /* tests: in place of KSM_DIR */
    const struct inject_options *inject; /* may be NULL */
    struct cow_stats *stats;             /* may be NULL; outlives the capture */
};
#define CAPTURE_COW_OPTIONS_INIT                                               \
    {                                                                          \
        .uffd = -1, .device_fd = -1                                            \
    }

/*
 * For process `pid`, which may be our own: then the blocks must not hold
 * anything that our own threads write, and the pauses are the caller's.
 * Errors that mean "not in this mode": PRECONDITION (memory that cannot be
 * protected, the kernel, the process: each with its reason) and PERMISSION.
 */
int capture_cow_open(struct capture **out, pid_t pid,
                     const struct capture_source *blocks, size_t count,
                     const struct capture_cow_options *cow,
                     const struct capture_options *options,
                     struct qstill_error *err);

/* Would capture_cow_open() refuse? Changes nothing and traces nothing, so a
 * refusal of the injection itself is not foreseen. */
int capture_cow_check(pid_t pid, const struct capture_source *blocks,
                      size_t count, bool gives_back, struct qstill_error *err);

/* The p-th fraction (0..1) of the stalls was shorter than this, in ms: the
 * upper edge of its bucket, at most the longest one. */
double cow_stats_stall_ms(const struct cow_stats *s, double p);

#endif
