/* SPDX-License-Identifier: MIT */
/*
 * Which private memory of a process was never written to: it is zero, and need
 * not be read (reading would even give it page tables). Told from
 * /proc/PID/pagemap: an entry that is empty, or that stands for nothing but
 * the write protection of an untouched page. What the kernel's form of the
 * latter is, is looked up on a page of our own, and not taken for granted.
 */
#ifndef QSTILL_MEMSTATE_UNTOUCHED_H
#define QSTILL_MEMSTATE_UNTOUCHED_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct untouched {
    int fd;          /* pagemap; -1: it cannot be told */
    uint64_t marker; /* of a protected page that was never touched; or 0 */
};

/* Never fails: what cannot be told is taken as touched. */
void untouched_open(struct untouched *u, pid_t pid);
void untouched_close(struct untouched *u);

/* All `pages` pages from `hva` on, which are anonymous private memory; up to
 * UNTOUCHED_PAGES. May be called by several threads. */
#define UNTOUCHED_PAGES 512u
bool untouched_all(const struct untouched *u, uint64_t hva, uint32_t pages);

#endif
