/* SPDX-License-Identifier: MIT */
/*
 * Memory capture and restore for a VMM of one's own: the same capture, the
 * same files and the same restore that qstill(1) has for QEMU, over regions
 * of memory and four callbacks. Nothing of QEMU is needed.
 *
 * The conventions of qstill.h hold. The long work is a job (qstill.h); the
 * callbacks run on the thread that steps it.
 *
 * What a capture does:
 *   1. the RAM is write-protected through a userfaultfd while the VM runs
 *   2. pause(); save(); what was written meanwhile is protected again;
 *      resume(): some milliseconds, whatever the size of the RAM
 *   3. the RAM is copied as it was at that instant, while the VM runs; a page
 *      that is about to be written is saved first
 *   4. the files are made durable, and get their final name
 * Whatever fails, the VM is resumed and nothing stands under the final name.
 */
#ifndef QSTILL_MEMORY_H
#define QSTILL_MEMORY_H

#include <sys/types.h>

#include "qstill.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A piece of guest RAM; no two overlap. */
struct qstill_region {
    const char *id;     /* 1 to 255 bytes, unique; names its file */
    void *address;      /* page aligned; in the process that is captured */
    uint64_t length;    /* a multiple of 4096 */
    uint32_t page_size; /* of the memory behind it, for the record; 0: no
                           matter */
    uint32_t reserved;  /* 0 */
};
#define QSTILL_REGIONS_MAX 256

struct qstill_vmm {
    size_t size;
    void *user; /* first argument of all of these */
    /* Each returns 0, or a negative code and need not fill `err` then. (Any
     * other value is a failure, too; with 0 what is in `err` does not count.)
     *
     * When it returns 0, nobody writes to the regions or to the device state
     * until resume(): no vCPU, no device thread. When it fails, the VM runs.
     * After resume(), until the capture is complete, no page of shared RAM may
     * be given back through its file (a hole punched into the memfd by a
     * balloon): that is no write fault, and the page would be zero. A VMM that
     * does so sets `gives_back`. */
    int (*pause)(void *user, struct qstill_error *err);
    /* Called once for each pause() that returned 0. */
    int (*resume)(void *user, struct qstill_error *err);
    /* Writes the device state, whatever that is, with write(2) into `fd`, an
     * empty memfd; up to 1 GiB. NULL: there is none. */
    int (*save)(void *user, int fd, struct qstill_error *err);
    /* For restores: what save() had written. NULL: it is not wanted. */
    int (*load)(void *user, const void *state, size_t length,
                struct qstill_error *err);
};
#define QSTILL_VMM_INIT                                                        \
    {                                                                          \
        sizeof(struct qstill_vmm), 0, 0, 0, 0, 0                               \
    }

/* ---------------------------------------------------------------- capture */

struct qstill_memory_options {
    size_t size;
    const char *mode; /* "cow", "paused" (the VM stands still while its RAM is
                         copied), "auto" (default): cow where it can be */
    uint32_t max_pause_ms; /* 0: no limit; a longer pause fails */
    uint32_t copiers;      /* threads; 0: by the number of processors */
    uint64_t bwlimit;      /* bytes per second; 0: none */
    uint64_t pool_bytes;   /* for saved pages; 0: 64 MiB */
    pid_t pid;             /* whose memory it is; 0: our own */
    /* A userfaultfd of that process, when `has_userfaultfd` is set: made with
     * userfaultfd(2), before any UFFDIO_API; for one capture. It is taken over
     * by the call, whatever that returns, and closed when it fails, when the
     * capture needs it no more (mode "paused": at the end), with the job at
     * the latest. Only where `size` is no valid one, or of a time before this
     * member, it stays the caller's. A VMM that gives up its rights makes it
     * before, in the process that has the memory (USAGE for one of another:
     * a daemon's must not be its parent's). If it was made with
     * UFFD_USER_MODE_ONLY, the kernel (KVM, vhost, read(2)) must not write to
     * the regions. Without: our own process makes it; into another one the
     * system call is injected with ptrace. */
    bool has_userfaultfd;
    int userfaultfd;
    uint32_t reserved; /* 0 */
    /* The VMM gives memory back while the VM runs (a balloon). Shared memory
     * and huge pages are then not for mode cow: auto takes paused. Private
     * memory is: a page that goes before it was saved makes the capture fail.
     */
    bool gives_back;
};
#define QSTILL_MEMORY_OPTIONS_INIT                                             \
    {                                                                          \
        sizeof(struct qstill_memory_options), 0, 0, 0, 0, 0, 0, false, 0, 0,   \
            false                                                              \
    }

/*
 * Captures into the directory `dir`, which must not exist yet and exists when
 * the job is done, durable; until then the files are in DIR.partial (one left
 * by a process that died is replaced; one with anything else in it than such
 * files is BUSY, and not touched). `vmm` and the regions are copied; the
 * memory must stay mapped until the job is freed. Memory that may be written
 * without a fault (by a DMA device, or through another mapping of shared
 * memory, as a child has it that was forked) is not seen: pause() must cover
 * it, and mode be "paused". A child's private memory is its own, and free.
 *
 * Errors, here or from the steps: USAGE, BUSY (`dir` exists, or another
 * capture is at work on it), PRECONDITION (memory or a kernel that cannot be
 * write-protected, with mode "cow"; max_pause_ms), PERMISSION, NO_SPACE, and
 * what the callbacks return.
 */
int qstill_memory_capture(const char *dir, const struct qstill_region *regions,
                          size_t count, const struct qstill_vmm *vmm,
                          const struct qstill_memory_options *options,
                          struct qstill_job **out, struct qstill_error *err);

struct qstill_memory_result {
    const char *mode;        /* "cow" or "paused" */
    const char *mode_reason; /* why not cow, or "" */
    double pause_ms;         /* from before pause() to after resume() */
    double longest_stall_ms; /* worst wait of a write afterwards */
    uint64_t faults;         /* writes that had to wait */
    uint64_t memory_bytes;   /* of all regions */
    uint64_t written_bytes;  /* of them, not zero */
    uint64_t size_bytes;     /* that the files use */
};
/* Of a capture's job that is done; belongs to it. Else NULL. */
const struct qstill_memory_result *
qstill_memory_result(const struct qstill_job *job);

/* ---------------------------------------------------------------- restore */

/*
 * Reads a capture into our own memory: each region gets the content of its
 * id, checked against the sums on the way; then load() gets the device state.
 * The VM stands still, or was never started, from before the call until the
 * job is done; pause() and resume() are not called. PRECONDITION when ids or
 * lengths are not the capture's, or a part of a region is not mapped or not
 * writable, found before anything is written; CORRUPT
 * names the damage. When a step has failed, the RAM is a mixture and load()
 * was not called: do not run it.
 */
int qstill_memory_restore(const char *dir, const struct qstill_region *regions,
                          size_t count, const struct qstill_vmm *vmm,
                          struct qstill_job **out, struct qstill_error *err);

/* Checks all files of a capture against their sums. CORRUPT names the first
 * damage. */
int qstill_memory_verify(const char *dir, struct qstill_job **out,
                         struct qstill_error *err);

#ifdef __cplusplus
}
#endif

#endif
