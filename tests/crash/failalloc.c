/* SPDX-License-Identifier: MIT */
/*
 * LD_PRELOAD library: the n-th allocation of the process fails with ENOMEM.
 *
 *     FAILALLOC_AT=n        which one, from 1; none when it is not set
 *     FAILALLOC_ONWARDS=1   and every later one
 *     FAILALLOC_COUNT=FILE  at exit, how many there were, in digits
 *
 * Counts malloc, calloc, realloc, posix_memalign, aligned_alloc and anonymous
 * mmap of every library, ours and others. glibc only.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t size);
void *__libc_memalign(size_t align, size_t size);

static atomic_long calls;
static atomic_long fail_at; /* 0: not read yet, -1: never */
static bool onwards;

static bool fails(void)
{
    long n = atomic_fetch_add(&calls, 1) + 1;
    long at = atomic_load(&fail_at);

    if (at == 0) {
        const char *text = getenv("FAILALLOC_AT");

        at = text ? strtol(text, NULL, 10) : -1;
        onwards = getenv("FAILALLOC_ONWARDS") != NULL;
        atomic_store(&fail_at, at);
    }
    if (at < 0 || n < at || (n > at && !onwards))
        return false;
    errno = ENOMEM;
    return true;
}

void *malloc(size_t size)
{
    return fails() ? NULL : __libc_malloc(size);
}

void *calloc(size_t n, size_t size)
{
    return fails() ? NULL : __libc_calloc(n, size);
}

void *realloc(void *p, size_t size)
{
    return fails() ? NULL : __libc_realloc(p, size);
}

void *aligned_alloc(size_t align, size_t size)
{
    return fails() ? NULL : __libc_memalign(align, size);
}

int posix_memalign(void **out, size_t align, size_t size)
{
    void *p = fails() ? NULL : __libc_memalign(align, size);

    if (!p)
        return ENOMEM;
    *out = p;
    return 0;
}

void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
    if ((flags & MAP_ANONYMOUS) && fails())
        return MAP_FAILED;
    return (void *)syscall(SYS_mmap, addr, len, prot, flags, fd, off);
}

__attribute__((destructor)) static void report(void)
{
    const char *path = getenv("FAILALLOC_COUNT");
    char text[32];
    int fd, n;

    if (!path)
        return;
    n = snprintf(text, sizeof(text), "%ld\n", atomic_load(&calls));
    fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, text, (size_t)n) != n)
        perror(path);
    if (fd >= 0)
        close(fd);
}
