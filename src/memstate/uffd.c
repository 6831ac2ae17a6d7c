/* SPDX-License-Identifier: MIT */
#include "uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "base/checked.h"

/* Not in the headers of Linux 6.1, which Debian 12 has. */
#define FEATURE_WP_UNPOPULATED ((uint64_t)1 << 13)
#define IOC_NEW                0xaa00u
#define DEVICE                 "/dev/userfaultfd"

#define FEATURES_NEEDED                                                        \
    (UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_EVENT_REMOVE)
#define PAGE  4096u
#define FLAGS (O_CLOEXEC | O_NONBLOCK)

/* For our own memory. */
static int open_own(int *out, struct qstill_error *err)
{
    CLEANUP(closep) int device = -1;
    int fd, saved;

    fd = (int)syscall(SYS_userfaultfd, FLAGS);
    saved = errno;
    if (fd < 0 && saved == EPERM) {
        device = uffd_open_device();
        if (device >= 0)
            fd = ioctl(device, IOC_NEW, FLAGS);
    }
    if (fd < 0 && saved == ENOSYS)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "this kernel has no userfaultfd");
    if (fd < 0 && saved == EPERM) {
        err_set(err, QSTILL_E_PERMISSION,
                "a userfaultfd may only be made here for faults of user mode");
        return err_hint(err, "as root: sysctl vm.unprivileged_userfaultfd=1, "
                             "or access to " DEVICE);
    }
    if (fd < 0)
        return err_errno(err, saved, "cannot make a userfaultfd");
    *out = fd;
    return 0;
}

static int handshake(int fd, uint64_t features, uint64_t *can,
                     struct qstill_error *err)
{
    struct uffdio_api api = {.api = UFFD_API, .features = features};

    if (ioctl(fd, UFFDIO_API, &api) < 0)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "this kernel cannot write-protect memory by "
                       "userfaultfd");
    *can = api.features;
    return 0;
}

static int probe(uint64_t *can, struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;

    if (open_own(&fd, err) < 0 || handshake(fd, 0, can, err) < 0)
        return err->code;
    if ((*can & FEATURES_NEEDED) != FEATURES_NEEDED)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "this kernel cannot write-protect memory by "
                       "userfaultfd (Linux 5.7 can)");
    return 0;
}

static uint64_t wanted(uint64_t can, bool no_unpopulated)
{
    uint64_t optional = UFFD_FEATURE_WP_HUGETLBFS_SHMEM;

    if (!no_unpopulated)
        optional |= FEATURE_WP_UNPOPULATED;
    return FEATURES_NEEDED | (can & optional);
}

#define CAP_SYS_PTRACE_BIT (1ull << 19)
#define FIRST_USER_NS      0xeffffffdu /* the kernel's PROC_USER_INIT_INO */

/* The capabilities of a process count in its own user namespace; the kernel
 * asks for one in the first, which nobody has in another. */
static bool is_in_first_user_ns(pid_t pid)
{
    char path[40];
    struct stat st;

    snprintf(path, sizeof(path), "/proc/%d/ns/user", (int)pid);
    return stat(path, &st) < 0 || st.st_ino == FIRST_USER_NS;
}

bool uffd_may(pid_t pid)
{
    char path[40], line[256];
    unsigned long long caps = CAP_SYS_PTRACE_BIT;
    int all = 0;
    FILE *f = fopen("/proc/sys/vm/unprivileged_userfaultfd", "re");

    if (!f || fscanf(f, "%d", &all) != 1)
        all = 1; /* before Linux 5.2 all could */
    if (f)
        fclose(f);
    if (all)
        return true;
    snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
    f = fopen(path, "re");
    while (f && fgets(line, sizeof(line), f))
        if (sscanf(line, "CapEff: %llx", &caps) == 1)
            break;
    if (f)
        fclose(f);
    return caps & CAP_SYS_PTRACE_BIT && is_in_first_user_ns(pid);
}

int uffd_open_device(void)
{
    return open(DEVICE, O_RDWR | O_CLOEXEC);
}

int uffd_probe(struct uffd *out, struct qstill_error *err)
{
    uint64_t can;

    if (probe(&can, err) < 0)
        return err->code;
    *out = (struct uffd){
        .fd = -1,
        .shared = (can & UFFD_FEATURE_WP_HUGETLBFS_SHMEM) != 0,
        .unpopulated = (can & FEATURE_WP_UNPOPULATED) != 0,
    };
    return 0;
}

/* By the system call, or through the device that the target was given. */
static int open_in(pid_t pid, const struct uffd_options *options, int *out,
                   struct qstill_error *err)
{
    struct inject_call call = {
        .name = "userfaultfd", .nr = SYS_userfaultfd, .args = {FLAGS}};
    struct inject_result result;

    if (inject_fd(pid, &call, options->inject, &result, err) < 0)
        return err->code;
    if (result.fd < 0 && result.remote_errno == EPERM &&
        options->device_fd >= 0) {
        call = (struct inject_call){
            .name = "ioctl",
            .nr = SYS_ioctl,
            .args = {(unsigned long)options->device_fd, IOC_NEW, FLAGS}};
        if (inject_fd(pid, &call, options->inject, &result, err) < 0)
            return err->code;
    }
    if (result.fd < 0 && result.remote_errno == EPERM) {
        err_set(err, QSTILL_E_PERMISSION,
                "process %d may only make a userfaultfd for faults of user "
                "mode",
                pid);
        return err_hint(err, "as root: sysctl vm.unprivileged_userfaultfd=1");
    }
    if (result.fd < 0)
        return err_errno(err, result.remote_errno,
                         "process %d cannot make a userfaultfd", pid);
    *out = result.fd;
    return 0;
}

/* What this kernel can do cannot be asked of a descriptor that shall be used:
 * it takes one UFFDIO_API that succeeds, and any number of others. */
static int open_given(struct uffd *out, int given, bool no_unpopulated,
                      struct qstill_error *err)
{
    const uint64_t shared = UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
    const uint64_t tries[] = {shared | FEATURE_WP_UNPOPULATED, shared, 0};
    CLEANUP(closep) int fd = given;
    int flags = fcntl(fd, F_GETFL);
    uint64_t can;

    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ||
        fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
        return err_set(err, QSTILL_E_USAGE, "descriptor %d cannot be used: %s",
                       given, strerror(errno));
    for (size_t i = no_unpopulated; i < ARRAY_LEN(tries); i++) {
        err_clear(err);
        if (handshake(fd, FEATURES_NEEDED | tries[i], &can, err) < 0)
            continue;
        *out = (struct uffd){
            .fd = take_fd(&fd),
            .shared = (tries[i] & shared) != 0,
            .unpopulated = (tries[i] & FEATURE_WP_UNPOPULATED) != 0,
        };
        return 0;
    }
    return err_set(err, QSTILL_E_USAGE,
                   "descriptor %d is no fresh userfaultfd, or this kernel "
                   "cannot write-protect memory by it",
                   given);
}

int uffd_open(struct uffd *out, pid_t pid, const struct uffd_options *options,
              struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;
    uint64_t can, use;
    int r;

    if (options->fd >= 0)
        return open_given(out, options->fd, options->no_unpopulated, err);
    if (probe(&can, err) < 0)
        return err->code;
    r = pid == getpid() ? open_own(&fd, err) : open_in(pid, options, &fd, err);
    if (r < 0)
        return r;
    use = wanted(can, options->no_unpopulated);
    if (handshake(fd, use, &can, err) < 0)
        return err->code;
    *out = (struct uffd){
        .fd = take_fd(&fd),
        .shared = (use & UFFD_FEATURE_WP_HUGETLBFS_SHMEM) != 0,
        .unpopulated = (use & FEATURE_WP_UNPOPULATED) != 0,
    };
    return 0;
}

void uffd_close(struct uffd *u)
{
    closep(&u->fd);
    u->fd = -1;
}

int uffd_register(const struct uffd *u, uint64_t start, uint64_t len)
{
    struct uffdio_register r = {
        .range = {start, len},
        .mode = UFFDIO_REGISTER_MODE_WP,
    };

    if (ioctl(u->fd, UFFDIO_REGISTER, &r) < 0)
        return errno;
    return r.ioctls & (uint64_t)1 << _UFFDIO_WRITEPROTECT ? 0 : EINVAL;
}

int uffd_unregister(const struct uffd *u, uint64_t start, uint64_t len)
{
    struct uffdio_range r = {start, len};

    int e = ioctl(u->fd, UFFDIO_UNREGISTER, &r) < 0 ? errno : 0;

    /* The kernel does so only at the last close, and who gave us the
     * descriptor may have another one of it. */
    ioctl(u->fd, UFFDIO_WAKE, &r);
    return e;
}

static int writeprotect(const struct uffd *u, uint64_t start, uint64_t len,
                        uint64_t mode)
{
    struct uffdio_writeprotect w = {.range = {start, len}, .mode = mode};
    int r;

    /* EINTR cannot be: our threads take no signals. */
    do
        r = ioctl(u->fd, UFFDIO_WRITEPROTECT, &w);
    while (r < 0 && errno == EINTR);
    return r < 0 ? errno : 0;
}

int uffd_protect(const struct uffd *u, uint64_t start, uint64_t len)
{
    return writeprotect(u, start, len, UFFDIO_WRITEPROTECT_MODE_WP);
}

int uffd_unprotect(const struct uffd *u, uint64_t start, uint64_t len)
{
    return writeprotect(u, start, len, 0);
}

bool uffd_is_of(const struct uffd *u, pid_t pid, uint64_t address, uint64_t len)
{
    CLEANUP(closep) int fd = -1;
    uint64_t entry;
    char path[40];

    if (!u->unpopulated)
        return true;
    snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)pid);
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0 || uffd_protect(u, address, len) != 0 ||
        pread(fd, &entry, sizeof(entry),
              (off_t)(address / PAGE * sizeof(entry))) != sizeof(entry))
        return true;
    return entry & UFFD_ENTRY_PROTECTED;
}

/* One read may bring so many messages of the kernel's. */
#define BATCH 64u

ssize_t uffd_read(const struct uffd *u, struct uffd_event *events, size_t max)
{
    struct uffd_msg msgs[BATCH];
    size_t want = max < BATCH ? max : BATCH;
    size_t out = 0;
    ssize_t n;

    n = read(u->fd, msgs, want * sizeof(msgs[0]));
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    for (size_t i = 0; i < (size_t)n / sizeof(msgs[0]); i++) {
        const struct uffd_msg *m = &msgs[i];

        if (m->event == UFFD_EVENT_PAGEFAULT)
            events[out++] =
                (struct uffd_event){UFFD_WRITE, m->arg.pagefault.address, 0};
        else if (m->event == UFFD_EVENT_REMOVE)
            events[out++] = (struct uffd_event){
                UFFD_REMOVED,
                m->arg.remove.start,
                m->arg.remove.end - m->arg.remove.start,
            };
    }
    return (ssize_t)out;
}
