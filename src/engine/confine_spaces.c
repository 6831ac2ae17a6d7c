/* SPDX-License-Identifier: MIT */
/* Whether the namespaces that a QEMU is or was in are ours. */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "confine_impl.h"
#include "mounts.h"

const char *const confine_names[CONFINE_APART] = {
    [CONFINE_USER] = "user", [CONFINE_PID] = "pid",   [CONFINE_MNT] = "mnt",
    [CONFINE_NET] = "net",   [CONFINE_IPC] = "ipc",   [CONFINE_UTS] = "uts",
    [CONFINE_ROOT] = "root", [CONFINE_VIEW] = "view",
};

uint64_t confine_space_of(int procfd, unsigned kind)
{
    char path[32], text[64];
    const char *at;
    ssize_t n;

    snprintf(path, sizeof(path), "ns/%s", confine_names[kind]);
    n = readlinkat(procfd, path, text, sizeof(text) - 1);
    if (n <= 0)
        return 0;
    text[n] = '\0';
    at = strchr(text, '[');
    return at ? strtoull(at + 1, NULL, 10) : 0;
}

uint64_t confine_since(int procfd)
{
    CLEANUP(closep) int fd = openat(procfd, "stat", O_RDONLY | O_CLOEXEC);
    char text[1024];
    ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);
    const char *at;

    text[n > 0 ? n : 0] = '\0';
    at = strrchr(text, ')');
    /* the 22nd field; behind the name is the blank before the third */
    for (int field = 2; at && field < 22; field++)
        at = strchr(at + 1, ' ');
    return at ? strtoull(at, NULL, 10) : 0;
}

/* When the process began, on the clock that files have. */
static double file_time(uint64_t since)
{
    struct timespec now, up;

    clock_gettime(CLOCK_REALTIME, &now);
    clock_gettime(CLOCK_BOOTTIME, &up);
    return (double)(now.tv_sec - up.tv_sec) +
           (double)(now.tv_nsec - up.tv_nsec) / 1e9 +
           (double)since / (double)sysconf(_SC_CLK_TCK);
}

/*
 * Whether somebody, or a name, keeps the namespaces of these kinds. A number is
 * used again at once when a namespace is gone, for another container that is
 * started with ours, say: so what came after QEMU keeps none of its. Where
 * processes are hidden from us they are gone.
 */
static bool are_there(const struct confine *c, unsigned kinds)
{
    struct dirent *e;
    bool found = false;
    DIR *d = NULL;

    for (unsigned i = 0; i < CONFINE_SPACES; i++)
        if ((kinds & CONFINE_BIT(i)) &&
            mounts_keep_space(confine_names[i], c->space[i],
                              c->since ? file_time(c->since) : 0))
            return true;
    d = opendir("/proc");
    while (d && !found && (e = readdir(d))) {
        CLEANUP(closep) int fd = -1;

        if (e->d_name[0] < '1' || e->d_name[0] > '9')
            continue;
        fd = openat(dirfd(d), e->d_name, O_PATH | O_CLOEXEC);
        found = fd >= 0;
        for (unsigned i = 0; found && i < CONFINE_SPACES; i++)
            found = !(kinds & CONFINE_BIT(i)) ||
                    confine_space_of(fd, i) == c->space[i];
        found = found && (!c->since || confine_since(fd) <= c->since);
    }
    if (d)
        closedir(d);
    return found;
}

/* That of the host's first process, 0: not known. */
static uint64_t host_space(unsigned kind, const struct confine *self)
{
    /* the kernel's PROC_..._INIT_INO; of the others not in all versions */
    static const uint64_t fixed[CONFINE_SPACES] = {
        [CONFINE_USER] = 0xeffffffd,
        [CONFINE_PID] = 0xeffffffc,
        [CONFINE_IPC] = 0xefffffff,
        [CONFINE_UTS] = 0xeffffffe,
    };
    CLEANUP(closep) int first = -1;

    if (fixed[kind] || self->space[CONFINE_PID] != fixed[CONFINE_PID])
        return fixed[kind];
    first = open("/proc/1", O_PATH | O_CLOEXEC);
    return first < 0 ? 0 : confine_space_of(first, kind);
}

/* The kinds in which we are where the host is, which is never gone, and QEMU
 * was not. */
static unsigned left_for_the_host(const struct confine *self, unsigned differ)
{
    unsigned left = 0;

    for (unsigned i = 0; i < CONFINE_SPACES; i++)
        if ((differ & CONFINE_BIT(i)) && host_space(i, self) == self->space[i])
            left |= CONFINE_BIT(i);
    return left;
}

/* What who looked last has seen counts, but for what shows that we are not
 * where that was. */
unsigned confine_apart(const struct confine *c, const struct confine *self)
{
    bool same_boot = c->boot[0] && strcmp(c->boot, self->boot) == 0;
    unsigned apart = c->apart, differ = 0;

    for (unsigned i = 0; same_boot && i < CONFINE_SPACES; i++) {
        if (!c->space[i] || !self->space[i])
            continue;
        if (c->space[i] == self->space[i])
            apart &= ~CONFINE_BIT(i);
        else
            differ |= CONFINE_BIT(i);
    }
    if (apart & CONFINE_BIT(CONFINE_VIEW))
        differ &= ~CONFINE_BIT(CONFINE_MNT);
    apart |= left_for_the_host(self, differ);
    /* that of its mounts may have been QEMU's alone */
    if (differ & ~CONFINE_BIT(CONFINE_MNT))
        differ &= ~CONFINE_BIT(CONFINE_MNT);
    return differ && are_there(c, differ) ? apart | differ : apart;
}
