/* SPDX-License-Identifier: MIT */
/*
 * Reads a RAM block of a process that stands still, in the way that costs
 * least, and without filling what was never used:
 * - shared memory by the file behind it, whose holes are zero (reading it
 *   through the process would allocate them);
 * - anonymous memory page by page as far as the process has touched it, told
 *   by /proc/PID/pagemap; what it has not is zero;
 * - all else, or where the kernel does not let us: as it is.
 */
#ifndef QSTILL_MEMSTATE_VMREAD_H
#define QSTILL_MEMSTATE_VMREAD_H

#include "memstate/procmem.h"
#include "memstate/ramset.h"

enum vmread_kind { VMREAD_PLAIN, VMREAD_FILE, VMREAD_ANONYMOUS };

struct vmread {
    struct procmem *mem;
    enum vmread_kind kind;
    uint64_t hva;
    int fd;          /* the file, or pagemap; -1 */
    uint64_t fd_off; /* of hva in the file */
};

/* `maps`: the text of /proc/PID/maps, by regions_read(). `mem` stays open
 * until vmread_close(). Never fails: VMREAD_PLAIN is always right. */
void vmread_open(struct vmread *out, struct procmem *mem,
                 const struct buf *maps, uint64_t hva, uint64_t size);
void vmread_close(struct vmread *v);

/*
 * Reads up to RAMSET_CHUNK bytes (whole pages) at offset `off` of the block.
 * *zero is set, and data left as it was, when all of it is known to be zero.
 */
int vmread_chunk(const struct vmread *v, uint64_t off, void *data, size_t len,
                 bool *zero, struct qstill_error *err);

#endif
