/* SPDX-License-Identifier: MIT */
/*
 * watch PID ADDRESS: looks at a counter in another process's memory ten
 * thousand times a second until standard input ends, then prints each time
 * that it stood still for over MIN_GAP_NS: "GAP begin end" in nanoseconds of
 * CLOCK_REALTIME (the clock of QMP's events), and how late it was itself at
 * most: "LATE ns". That is how long the guest stood still as the guest lives
 * it: a guest's own clock may stand still with it.
 *
 * Runs with SCHED_FIFO when it may, so that it is not what stands still.
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { STEP_NS = 100 * 1000, MIN_GAP_NS = 1000 * 1000, GAPS_MAX = 1 << 20 };

struct gap {
    uint64_t begin, end;
};

static struct gap gaps[GAPS_MAX];
static size_t gap_count;

static uint64_t now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int look(pid_t pid, uint64_t address, uint64_t *out)
{
    struct iovec to = {out, sizeof(*out)};
    struct iovec from = {(void *)(uintptr_t)address, sizeof(*out)};

    return process_vm_readv(pid, &to, 1, &from, 1, 0) == sizeof(*out) ? 0 : -1;
}

static int ended(void)
{
    struct pollfd in = {0, POLLIN, 0};
    char c;

    return poll(&in, 1, 0) > 0 && read(0, &c, 1) <= 0;
}

int main(int argc, char **argv)
{
    struct sched_param fifo = {10};
    struct timespec step = {0, STEP_NS};
    uint64_t address, count, moved, seen, late = 0;
    pid_t pid;

    if (argc != 3)
        return 2;
    pid = (pid_t)atoi(argv[1]);
    address = strtoull(argv[2], NULL, 0);
    sched_setscheduler(0, SCHED_FIFO, &fifo);
    prctl(PR_SET_TIMERSLACK, 1);
    if (look(pid, address, &count) < 0) {
        perror("watch");
        return 1;
    }
    puts("READY");
    fflush(stdout);
    moved = seen = now();
    while (!ended()) {
        uint64_t c = count, t;

        nanosleep(&step, NULL);
        /* A target that is gone stands still. */
        look(pid, address, &c);
        t = now();
        late = t - seen > late ? t - seen : late;
        seen = t;
        if (c == count)
            continue;
        if (t - moved > MIN_GAP_NS && gap_count < GAPS_MAX)
            gaps[gap_count++] = (struct gap){moved, t};
        count = c;
        moved = t;
    }
    seen = now();
    if (seen - moved > MIN_GAP_NS && gap_count < GAPS_MAX)
        gaps[gap_count++] = (struct gap){moved, seen};
    for (size_t i = 0; i < gap_count; i++)
        printf("GAP %" PRIu64 " %" PRIu64 "\n", gaps[i].begin, gaps[i].end);
    printf("LATE %" PRIu64 "\n", late);
    return 0;
}
