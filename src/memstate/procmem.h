/* SPDX-License-Identifier: MIT */
/*
 * The memory of another process: reading and writing it, and finding RAM blocks
 * of QEMU in it that no monitor command tells us (7.2 shows no addresses).
 *
 * QEMU maps each RAM block by itself, as long as its maximum length, followed
 * by a guard page without access. A mapping of that length which belongs to
 * no other block is the block; when several fit and hold the same bytes, any
 * is as good.
 */
#ifndef QSTILL_MEMSTATE_PROCMEM_H
#define QSTILL_MEMSTATE_PROCMEM_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

struct procmem;

/* PERMISSION with a hint when the process may not be read (ptrace rights);
 * NOT_FOUND when it is gone. */
int procmem_open(struct procmem **out, pid_t pid, struct qstill_error *err);
void procmem_close(struct procmem *p); /* NULL is fine */
void procmem_closep(struct procmem **p);

/* process_vm_readv, or /proc/PID/mem where that is refused. FAILED names the
 * address when a part of it is not mapped. */
int procmem_read(struct procmem *p, uint64_t hva, void *data, size_t len,
                 struct qstill_error *err);

/* Writes into a process that stands still; as procmem_read(). What lies before
 * an address that cannot be written is written. */
int procmem_write(struct procmem *p, uint64_t hva, const void *data, size_t len,
                  struct qstill_error *err);

enum procmem_how {
    PROCMEM_UNKNOWN,   /* in: to be found; out: no mapping fits */
    PROCMEM_KNOWN,     /* in: hva is given */
    PROCMEM_UNIQUE,    /* out: one mapping fits */
    PROCMEM_SAME,      /* out: several fit and hold the same bytes */
    PROCMEM_AMBIGUOUS, /* out: several fit and differ; hva stays 0 */
};

struct procmem_block {
    const char *id;
    uint64_t used; /* `info ramblock` Used: the bytes compared */
    uint64_t max;  /* Total: the length of the mapping */
    uint64_t hva;  /* 0 or given */
    /* Of an option ROM ("0000:00:02.0/e1000e.rom"): ids of the PCI device at
     * that address, which its header must name; 0: not known. */
    uint16_t pci_vendor;
    uint16_t pci_device;
    enum procmem_how how;
    unsigned candidates; /* out: how many mappings fitted */
};

/*
 * Finds the blocks with how == PROCMEM_UNKNOWN. The VM is stopped, so that
 * the comparison means something. Not finding a block is no error: see `how`.
 * FAILED when a known block is not mapped as long as it should be.
 */
int procmem_find(struct procmem *p, struct procmem_block *blocks, size_t count,
                 struct qstill_error *err);

#endif
