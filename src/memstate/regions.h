/* SPDX-License-Identifier: MIT */
/*
 * What lies at an address of a process: /proc/PID/maps, read by lines, and
 * whether a RAM block that lies there can be write-protected by userfaultfd.
 */
#ifndef QSTILL_MEMSTATE_REGIONS_H
#define QSTILL_MEMSTATE_REGIONS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/buf.h"
#include "base/error.h"

/* 65530 mappings (the kernel's default limit) of up to 4096 + 80 bytes would
 * be 260 MiB; a QEMU has some hundred lines. */
#define REGIONS_TEXT_MAX ((size_t)32 << 20)

struct region {
    uint64_t start;
    uint64_t end;
    uint64_t offset; /* in the file */
    uint64_t inode;  /* 0: anonymous */
    unsigned major;
    unsigned minor;
    bool readable;
    bool writable;
    bool executable;
    bool shared;
    const char *path; /* not terminated; in the text */
    size_t path_len;
};

/* The text of /proc/PID/maps, appended to b. UNREACHABLE when there is no
 * such process, PERMISSION when it may not be read. */
int regions_read(pid_t pid, struct buf *b, struct qstill_error *err);

/* The region at *pos, which moves on; false at the end. A line that is not
 * in the kernel's form ends the text and sets *pos to SIZE_MAX. */
bool regions_next(const struct buf *text, size_t *pos, struct region *out);

/* The region that holds `address`; false when none does. */
bool regions_find(const struct buf *text, uint64_t address, struct region *out);

#endif
