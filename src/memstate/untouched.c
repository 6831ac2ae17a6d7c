/* SPDX-License-Identifier: MIT */
#include "untouched.h"

#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "memstate/uffd.h"

#define PAGE 4096u
/* Bits of an entry. Without CAP_SYS_ADMIN the number of the page frame, or of
 * what stands in its place, is hidden: then a marker looks like a page that
 * was swapped out. */
#define PRESENT    ((uint64_t)1 << 63)
#define FRAME_MASK (((uint64_t)1 << 55) - 1)
/* Pages that are looked at first: memory in use shows it there, mostly, and
 * the kernel takes its time for each entry. */
#define PEEK 8u

static int open_pagemap(pid_t pid)
{
    char path[40];

    snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)pid);
    return open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
}

static bool read_entries(int fd, uint64_t hva, uint64_t *out, uint32_t pages)
{
    size_t len = pages * sizeof(*out);

    return pread(fd, out, len, (off_t)(hva / PAGE * sizeof(*out))) ==
           (ssize_t)len;
}

static uint64_t marker_of(const struct uffd *uffd, void *page)
{
    CLEANUP(closep) int fd = open_pagemap(getpid());
    uint64_t at = (uintptr_t)page, entry = 0;

    if (fd < 0 || uffd_register(uffd, at, PAGE) != 0 ||
        uffd_protect(uffd, at, PAGE) != 0 || !read_entries(fd, at, &entry, 1))
        return 0;
    return entry & PRESENT || !(entry & FRAME_MASK) ? 0 : entry;
}

static uint64_t find_marker(void)
{
    struct uffd_options options = UFFD_OPTIONS_INIT;
    struct qstill_error ignored = {0};
    uint64_t marker = 0;
    struct uffd uffd;
    void *page;

    if (uffd_open(&uffd, getpid(), &options, &ignored) < 0)
        return 0;
    page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                -1, 0);
    if (page != MAP_FAILED && uffd.unpopulated)
        marker = marker_of(&uffd, page);
    uffd_close(&uffd);
    if (page != MAP_FAILED)
        munmap(page, PAGE);
    return marker;
}

void untouched_open(struct untouched *u, pid_t pid)
{
    u->fd = open_pagemap(pid);
    u->marker = find_marker();
}

void untouched_close(struct untouched *u)
{
    closep(&u->fd);
    u->fd = -1;
}

static bool all_untouched(const struct untouched *u, uint64_t hva,
                          uint32_t pages)
{
    uint64_t entries[UNTOUCHED_PAGES];

    if (!read_entries(u->fd, hva, entries, pages))
        return false;
    /* An empty entry has no bit but, perhaps, "soft dirty" and the like, which
     * say nothing of content: taken as touched, to be on the safe side. */
    for (uint32_t i = 0; i < pages; i++)
        if (entries[i] != 0 && entries[i] != u->marker)
            return false;
    return true;
}

bool untouched_all(const struct untouched *u, uint64_t hva, uint32_t pages)
{
    uint32_t peek = pages < PEEK ? pages : PEEK;

    if (u->fd < 0 || pages > UNTOUCHED_PAGES)
        return false;
    return all_untouched(u, hva, peek) &&
           all_untouched(u, hva + (uint64_t)peek * PAGE, pages - peek);
}
