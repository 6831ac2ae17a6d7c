/* SPDX-License-Identifier: MIT */
/*
 * The pipe of a background snapshot has a name, STORE/VM/.stream, and QEMU
 * holds both its ends: QEMU 7.2 hangs for good, its RAM write-protected, when
 * the reader of that stream goes away. With the name a process that was killed
 * leaves QEMU waiting at worst, and the next one reads on and lets it end.
 */
#ifndef QSTILL_ENGINE_STREAM_FIFO_H
#define QSTILL_ENGINE_STREAM_FIFO_H

#include "memstate/worker.h"

#define STREAM_FIFO_NAME ".stream"
#define STREAM_FD_NAME   "qstill-stream" /* getfd's name for QEMU's end */

/* *reader: our end; *both: for QEMU, read and write, so that its writes never
 * fail for want of a reader. Where the file system has no FIFOs it is a plain
 * pipe. The caller owns both. */
int stream_fifo_make(int vmfd, int *reader, int *both,
                     struct qstill_error *err);
void stream_fifo_remove(int vmfd);
bool stream_fifo_exists(int vmfd);

/* Reads what a QEMU has still to write, on a thread, while the caller ends the
 * migration. Nothing happens without a FIFO in vmfd. */
struct session;

struct stream_drain {
    struct worker worker;
    int fd;
    int vmfd;
};

int stream_drain_start(struct stream_drain *d, int vmfd,
                       struct qstill_error *err);
/*
 * Waits until QEMU has written all of its background snapshot (somebody must
 * be reading), as fast as it can, and until no page is protected any more.
 * It is never cancelled: QEMU 7.2 to 10.0 leave the pages protected for a
 * while when it ends early, and a device or a `stop` that meets one then waits
 * for good. BUSY when nothing moves.
 */
int stream_run_out(struct session *s, struct qstill_error *err);
/* QEMU says "completed" before the protection goes: waits for that, since a
 * `stop` in between would never return. `pid` 0 is not known. */
void stream_settle(int pid);

/* Ends the thread; `done` removes the FIFO. */
void stream_drain_stop(struct stream_drain *d, bool done);

#endif
