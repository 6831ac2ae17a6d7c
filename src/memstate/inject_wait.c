/* SPDX-License-Identifier: MIT */
#include "inject_wait.h"

#include <stddef.h>
#include <sys/syscall.h>

#include "base/cleanup.h"

/* Not in the headers of older systems. */
#define NR_IO_PGETEVENTS       333
#define NR_IO_URING_ENTER      426
#define NR_EPOLL_PWAIT2        441
#define IO_URING_ENTER_EXT_ARG (1u << 3) /* flags: there is a time limit */

/* What says "no limit" in a call's time limit. */
enum none {
    NONE_EVER, /* the call has no limit */
    NONE_NULL, /* an address: NULL */
    NONE_BELOW /* an int: below zero */
};

/*
 * Calls that only wait, and answer EINTR only when they have done nothing.
 * Not here: close() and what drivers do (read, write, ioctl), where EINTR may
 * come after the deed; socket calls, which answer EINTR only when the socket
 * has a time limit, which cannot be seen from outside.
 */
static const struct {
    long nr;
    unsigned limit;
    enum none none;
} waits[] = {
    {SYS_epoll_wait, 3, NONE_BELOW},  {SYS_epoll_pwait, 3, NONE_BELOW},
    {NR_EPOLL_PWAIT2, 3, NONE_NULL},  {SYS_semop, 0, NONE_EVER},
    {SYS_semtimedop, 3, NONE_NULL},   {SYS_rt_sigtimedwait, 2, NONE_NULL},
    {SYS_io_getevents, 4, NONE_NULL}, {NR_IO_URING_ENTER, 3, NONE_EVER},
};

enum inject_eintr inject_wait_eintr(const struct inject_wait *w)
{
    for (size_t i = 0; i < ARRAY_LEN(waits); i++) {
        unsigned long long limit = w->args[waits[i].limit];
        bool endless = true;

        if (waits[i].nr != w->nr)
            continue;
        if (waits[i].none == NONE_NULL)
            endless = limit == 0;
        else if (waits[i].none == NONE_BELOW)
            endless = (int)limit < 0;
        else if (w->nr == NR_IO_URING_ENTER)
            endless = !(limit & IO_URING_ENTER_EXT_ARG);
        return endless ? INJECT_EINTR_ENDLESS : INJECT_EINTR_LIMITED;
    }
    return INJECT_EINTR_NOT;
}

bool inject_wait_masked(const struct inject_wait *w)
{
    static const struct {
        long nr;
        unsigned mask; /* which argument is its address; NULL: an ordinary
                          wait */
    } masked[] = {
        {SYS_pselect6, 5},    {SYS_ppoll, 3},        {SYS_epoll_pwait, 4},
        {NR_EPOLL_PWAIT2, 4}, {NR_IO_PGETEVENTS, 5}, {NR_IO_URING_ENTER, 4},
    };

    if (w->nr == SYS_rt_sigsuspend)
        return true;
    for (size_t i = 0; i < ARRAY_LEN(masked); i++)
        if (masked[i].nr == w->nr)
            return w->args[masked[i].mask] != 0;
    return false;
}
