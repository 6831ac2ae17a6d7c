/* SPDX-License-Identifier: MIT */
/*
 * What a stop under ptrace does to a system call that waits. The kernel ends
 * each such call for the stop, and starts most of them again by itself; some
 * it never does (signal(7): "never restarted"): those would end with EINTR
 * though nothing has happened to the program. No I/O.
 */
#ifndef QSTILL_MEMSTATE_INJECT_WAIT_H
#define QSTILL_MEMSTATE_INJECT_WAIT_H

#include <stdbool.h>

struct inject_wait {
    long nr;
    unsigned long long args[6];
};

enum inject_eintr {
    INJECT_EINTR_NOT,     /* none that we know of */
    INJECT_EINTR_ENDLESS, /* it waits without a limit and has done nothing yet:
                             started again it is the same wait */
    INJECT_EINTR_LIMITED, /* the time that is left stands nowhere */
};
enum inject_eintr inject_wait_eintr(const struct inject_wait *w);

/* Waits with a signal mask of its own: a signal that only this mask lets in
 * must end the wait. */
bool inject_wait_masked(const struct inject_wait *w);

#endif
