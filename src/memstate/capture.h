/* SPDX-License-Identifier: MIT */
/*
 * A capture: an object with threads of its own that brings a VM's memory into
 * a file set (ramset.h). The owner polls capture_fd() and asks capture_poll().
 *
 * The happy path, from the owner's side:
 *   1. capture_*_open()            files made, buffers and ring ready, guest
 *                                  running; cow: protects the RAM
 *   2. wait for status.ready, stop the VM, snapshot the disks
 *   3. capture_device_state()      not for streams: they bring it along
 *   4. capture_instant()           "the VM is stopped now"; streams: instead
 *                                  of it, send `migrate fd:...` to QEMU
 *   5. wait for status.instant_taken, then `cont`
 *   6. wait for status.complete, then capture_finish(), capture_close()
 * Failures: status.complete comes early, and capture_finish() says why. The
 * files that were made are removed by capture_close().
 */
#ifndef QSTILL_MEMSTATE_CAPTURE_H
#define QSTILL_MEMSTATE_CAPTURE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "memstate/ramset.h"

struct capture;
struct capture_source;

struct capture_options {
    const struct io *io;     /* NULL: the kernel; must outlive the capture */
    int dirfd;               /* where the file set goes; duplicated */
    uint64_t bwlimit;        /* bytes per second; 0: none */
    enum ramset_cache cache; /* RAMSET_DIRECT by default */
    /* The device state is not QEMU's: any bytes, also none. */
    bool foreign;
    /* precopy: at the stream's end the RAM of the stopped process is compared
     * with what came, and what was missed is taken (stream_amend.h). Must
     * outlive the capture; no blocks: nothing is compared. */
    pid_t pid;
    const struct capture_source *ram;
    size_t ram_count;
};

/* ----------------------------------------------- from a migration stream */

enum capture_flavour {
    CAPTURE_BACKGROUND, /* capability background-snapshot: each page once, no
                           RAM END, the instant is the first PART */
    CAPTURE_PRECOPY     /* ordinary: pages may come again, the instant is the
                           end */
};

/*
 * `fd` is the read end of the pipe (or a socket) whose other end QEMU has
 * got; it is taken over, on failure too. QEMU writes from step 4 on. All
 * capabilities but `events`, `background-snapshot` and
 * `pause-before-switchover` must be off: a stream with others is refused
 * (PRECONDITION), and so is one with a section in front of the end of RAM
 * that is not RAM (virtio-mem, vfio).
 */
int capture_stream_open(struct capture **out, int fd,
                        enum capture_flavour flavour,
                        const struct capture_options *options,
                        struct qstill_error *err);

/* ------------------------------------------- a copy while the VM is stopped */

struct capture_source {
    const char *id;     /* of the RAM block, as migration names it */
    uint64_t hva;       /* where it lies in the process */
    uint64_t size;      /* used length, a multiple of 4096 */
    uint32_t page_size; /* of its backend; 0: unknown */
};

int capture_copy_open(struct capture **out, pid_t pid,
                      const struct capture_source *blocks, size_t count,
                      const struct capture_options *options,
                      struct qstill_error *err);

/* -------------------------------------------------------- all of the kinds */

struct capture_status {
    bool ready;         /* the VM may be stopped */
    bool instant_taken; /* the guest may run on: what it writes from now on is
                           not in the capture. Never set by precopy: there
                           the instant is where `complete` finds the VM */
    bool complete;      /* done or failed: call capture_finish() */
    uint64_t bytes_done;
    uint64_t bytes_total; /* of guest RAM; 0 until it is known */
};

/* Readable when ready, instant_taken or complete has changed. */
int capture_fd(const struct capture *c);
/* Fills *status and makes the fd unreadable until the next change. */
void capture_poll(struct capture *c, struct capture_status *status);

/*
 * Gives the device state (what xen-save-devices-state wrote) in `fd`, from
 * its offset 0; duplicated, looked at now, copied after the instant.
 * CORRUPT when it is not in the form of devstate.h.
 */
int capture_device_state(struct capture *c, int fd, struct qstill_error *err);

/* Says that the VM is stopped and its device state given: returns at once. */
int capture_instant(struct capture *c, struct qstill_error *err);

/* Says that the guest runs again, so that the copy no longer has to keep out
 * of its way: cow reads no page before that, or before 50 ms are over. */
void capture_resumed(struct capture *c);

struct capture_result {
    size_t block_count;
    const struct ramset_block *blocks;
    uint64_t memory_bytes;   /* of all blocks */
    uint64_t written_bytes;  /* RAM bytes that are not zero */
    uint64_t zero_bytes;     /* holes */
    uint64_t sent_bytes;     /* page data moved; more than written_bytes when
                                precopy sent pages again */
    uint64_t disk_bytes;     /* blocks that the files use on the disk */
    uint64_t device_bytes;   /* length of device.state */
    uint64_t amended_pages;  /* precopy: that the stream had missed */
    uint64_t faults;         /* write faults served (cow) */
    double longest_stall_ms; /* cow: the worst wait of a guest's write;
                                streams: our longest time without reading,
                                which bounds our share of QEMU's stalls */
    /* From the stream, or "" / empty otherwise. */
    const char *machine;   /* versioned machine type */
    const uint8_t *config; /* configuration subsections, raw */
    size_t config_len;
    bool footers;       /* sections have footers */
    bool vmdescription; /* device.state has one */
};

/*
 * Valid once status.complete is set: the result, or the error that ended the
 * capture (CANCELLED after capture_cancel). The result belongs to the
 * capture. The file set is durable when this returns 0; a stream is whole,
 * but only `completed` in query-migrate says that QEMU thinks so too.
 */
int capture_finish(struct capture *c, struct capture_result *out,
                   struct qstill_error *err);

/* Asks the threads to stop; complete follows soon. Any thread. */
void capture_cancel(struct capture *c);

/* Cancels, joins; without a successful capture_finish() the files are
 * removed. NULL is fine. */
void capture_close(struct capture *c);
void capture_closep(struct capture **c);

#endif
