/* SPDX-License-Identifier: MIT */
/*
 * A userfaultfd for the memory of a process (our own or another), used for
 * write protection: a write to a protected page waits until we let it.
 * When the last descriptor of it is closed, as on our death, the kernel lifts
 * all protection and lets all waiting threads go.
 *
 * Refused: kernels without write protection, and a userfaultfd that sees
 * faults of user mode only (a VM's memory is also written by the kernel: by
 * KVM, vhost, and read(2)).
 */
#ifndef QSTILL_MEMSTATE_UFFD_H
#define QSTILL_MEMSTATE_UFFD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "memstate/inject.h"

struct uffd {
    int fd; /* non-blocking; poll it for reading */
    /* Shared memory and hugetlbfs can be protected (Linux 5.19). */
    bool shared;
    /* Pages that were never touched can be protected (Linux 6.4): else read
     * each once before. */
    bool unpopulated;
};

struct uffd_options {
    /* A userfaultfd that was made for us, before any UFFDIO_API: taken over,
     * on failure too, and nothing is injected. Negative: none. */
    int fd;
    /* Number, in the target, of an open /dev/userfaultfd: used when the
     * target may not make a userfaultfd by itself (it is not root). Negative:
     * none. */
    int device_fd;
    bool no_unpopulated;                 /* tests: as before Linux 6.4 */
    const struct inject_options *inject; /* may be NULL */
};
#define UFFD_OPTIONS_INIT                                                      \
    {                                                                          \
        .fd = -1, .device_fd = -1                                              \
    }

/* Whether the process may make one for faults of the kernel's, too, by itself:
 * it has CAP_SYS_PTRACE (as more than the root of a user namespace), or
 * vm.unprivileged_userfaultfd is set. True when that cannot be told. */
bool uffd_may(pid_t pid);
/* The device that makes one for who has it open (since Linux 6.1), or -1. */
int uffd_open_device(void);
/* What the kernel can do, without touching the target. PRECONDITION with the
 * reason when it cannot write-protect. */
int uffd_probe(struct uffd *out, struct qstill_error *err);

/*
 * For process `pid`. For ourselves nothing is injected. USAGE when `fd` is no
 * fresh userfaultfd. PERMISSION with a
 * hint when it may not be made, PRECONDITION as inject_fd().
 */
int uffd_open(struct uffd *out, pid_t pid, const struct uffd_options *options,
              struct qstill_error *err);
void uffd_close(struct uffd *u);

/* Registers the range (whole pages of its kind); errno of the kernel or 0:
 * EINVAL for memory that cannot be write-protected, ENOENT or EINVAL when
 * nothing is mapped there. */
int uffd_register(const struct uffd *u, uint64_t start, uint64_t len);
/* Lifts the protection, wakes who waits. */
int uffd_unregister(const struct uffd *u, uint64_t start, uint64_t len);

/*
 * Both: 0 or an errno. EAGAIN: the target waits for an event (UFFD_REMOVED)
 * to be read. ENOENT: the mapping is gone.
 */
int uffd_protect(const struct uffd *u, uint64_t start, uint64_t len);
/* Also wakes the threads that wait for the range. */
int uffd_unprotect(const struct uffd *u, uint64_t start, uint64_t len);

/* Of an entry of /proc/PID/pagemap; there in all kernels that have markers for
 * pages which were never touched. */
#define UFFD_ENTRY_PROTECTED ((uint64_t)1 << 57)

/*
 * Whether it is for the memory of process `pid`, and not for that of another
 * one at the same addresses: the page of `len` bytes at `address`, in a
 * registered range, is protected by it, and seen to be. True also where that
 * cannot be seen.
 */
bool uffd_is_of(const struct uffd *u, pid_t pid, uint64_t address,
                uint64_t len);

enum uffd_kind {
    UFFD_WRITE,  /* a thread waits to write at `start` */
    UFFD_REMOVED /* [start, start + len) is about to become zeros */
};
struct uffd_event {
    enum uffd_kind kind;
    uint64_t start;
    uint64_t len;
};
/* Up to `max` events; 0 when there is none now, negative: -errno. */
ssize_t uffd_read(const struct uffd *u, struct uffd_event *events, size_t max);

#endif
