/* SPDX-License-Identifier: MIT */
/*
 * The kernel's samepage merging (KSM). A page that it merges loses its write
 * protection by userfaultfd: the next write to it makes no fault, and nobody
 * hears of it. So memory that it may merge cannot be captured by one, neither
 * ours nor QEMU's (background-snapshot), while it is at work.
 */
#ifndef QSTILL_MEMSTATE_KSM_H
#define QSTILL_MEMSTATE_KSM_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/buf.h"
#include "base/error.h"

#define KSM_DIR "/sys/kernel/mm/ksm"

/* How far it had come at some moment. */
struct ksm_mark {
    bool on;
    uint64_t pages_scanned; /* counted since Linux 6.6 */
    uint64_t full_scans;
    uint64_t pages_shared;
    uint64_t pages_sharing;
};

/* `dir` is KSM_DIR but in tests. What is not there reads as 0: a kernel
 * without KSM. */
void ksm_read_mark(const char *dir, struct ksm_mark *out);
/* It was on then, is on now, or has been at work in between. (Before Linux
 * 6.6 a short while of work that merged nothing is not seen.) */
bool ksm_ran_since(const char *dir, const struct ksm_mark *then);

/* Of the text of /proc/PID/smaps: is a part of [start, start + size) marked
 * as mergeable? */
bool ksm_is_mergeable(const struct buf *smaps, uint64_t start, uint64_t size);

/* Whether process `pid` has memory that KSM may merge; true also where that
 * cannot be seen (`pid` 0). */
bool ksm_may_merge(pid_t pid);

/* PRECONDITION, and what to do. `what`: whose memory it is. */
int ksm_refuse(const char *what, struct qstill_error *err);

#endif
