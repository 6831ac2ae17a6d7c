/* SPDX-License-Identifier: MIT */
/* Locals that clean up after themselves; ownership leaves by take_ptr(). */
#ifndef QSTILL_BASE_CLEANUP_H
#define QSTILL_BASE_CLEANUP_H

#include <stdlib.h>
#include <unistd.h>

#define CLEANUP(fn)         __attribute__((cleanup(fn)))
#define PRINTF_LIKE(fmt, a) __attribute__((format(printf, fmt, a)))
/* A function of the public headers: the library hides all others. */
#define QSTILL_PUBLIC __attribute__((visibility("default")))
#define ARRAY_LEN(a)  (sizeof(a) / sizeof((a)[0]))

/* Frees what a `T *` local points to: CLEANUP(freep) char *s = NULL; */
static inline void freep(void *pp)
{
    free(*(void **)pp);
}

/* Closes an fd local unless it is negative: CLEANUP(closep) int fd = -1; */
static inline void closep(int *fd)
{
    if (*fd >= 0)
        close(*fd);
}

/* Gives the pointer away: the local becomes NULL, so its cleanup is a no-op. */
#define take_ptr(pp)                                                           \
    __extension__({                                                            \
        __typeof__(*(pp)) taken_ = *(pp);                                      \
        *(pp) = NULL;                                                          \
        taken_;                                                                \
    })

/* Gives the fd away: the local becomes -1. */
static inline int take_fd(int *fd)
{
    int taken = *fd;

    *fd = -1;
    return taken;
}

#endif
