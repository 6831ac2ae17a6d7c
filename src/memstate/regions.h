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
/* That of /proc/PID/smaps, for which the kernel walks through all pages. */
int regions_read_smaps(pid_t pid, struct buf *b, struct qstill_error *err);

/* The region at *pos, which moves on; false at the end. A line that is not
 * in the kernel's form ends the text and sets *pos to SIZE_MAX. */
bool regions_next(const struct buf *text, size_t *pos, struct region *out);

/* What a RAM block lies in, as far as userfaultfd is concerned. */
struct region_ram {
    bool shared;   /* another mapping of the file shows the same bytes */
    bool backed;   /* by tmpfs, a memfd or hugetlbfs */
    uint32_t page; /* 4096, or that of hugetlbfs */
    int fd;        /* of a shared file, to be read at fd_off; or -1 */
    uint64_t fd_off;
};

/*
 * Looks at [hva, hva + size) of process `pid`. `page_hint`: the page size as
 * QEMU tells it, 0 when unknown. PRECONDITION names what cannot be protected:
 * a mapping of a file on a disk (shared or private), pages that are too large,
 * memory that is not there. out->fd is the caller's.
 */
int regions_examine(pid_t pid, const struct buf *text, uint64_t hva,
                    uint64_t size, uint32_t page_hint, struct region_ram *out,
                    struct qstill_error *err);

/* The region that holds `address`; false when none does. */
bool regions_find(const struct buf *text, uint64_t address, struct region *out);

#endif
