/* SPDX-License-Identifier: MIT */
/* Shared by procmem*.c and vmread.c. */
#ifndef QSTILL_MEMSTATE_PROCMEM_IMPL_H
#define QSTILL_MEMSTATE_PROCMEM_IMPL_H

#include <stdbool.h>

#include "memstate/procmem.h"

struct procmem {
    pid_t pid;
    int pidfd;
    int mem; /* /proc/PID/mem, or -1 */
    bool use_readv;
};

/* UNREACHABLE when the process has ended: what was read is not its memory. */
int procmem_alive(const struct procmem *p, struct qstill_error *err);

/* May a block of that id begin with these bytes? (procmem_content.c) */
bool procmem_content_fits(const struct procmem_block *block,
                          const uint8_t *head, size_t len);
/* So many bytes are looked at: an option ROM's header lies in its first KiB,
 * mostly. */
#define PROCMEM_HEAD 4096u

#endif
