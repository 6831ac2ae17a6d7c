/* SPDX-License-Identifier: MIT */
/* Shared by procmem.c and procmem_find.c. */
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

#endif
