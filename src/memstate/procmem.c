/* SPDX-License-Identifier: MIT */
/*
 * Reads and writes the memory of another process. process_vm_readv goes by a
 * process id, which may be given anew when its process dies: so a pidfd, got
 * first, is asked after each read whether the process of then still lives.
 */
#include "procmem.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "memstate/procmem_impl.h"

static int refused(pid_t pid, struct qstill_error *err)
{
    err_set(err, QSTILL_E_PERMISSION,
            "the memory of process %d may not be read", (int)pid);
    return err_hint(err, "run as root, or as the user of QEMU with "
                         "kernel.yama.ptrace_scope at 0");
}

static int gone(pid_t pid, struct qstill_error *err)
{
    return err_set(err, QSTILL_E_UNREACHABLE, "process %d has ended", (int)pid);
}

/* Asks for one byte at address 0: a bad address, or no permission to ask. */
static int probe_readv(pid_t pid)
{
    char byte;
    struct iovec local = {&byte, 1}, remote = {NULL, 1};

    if (process_vm_readv(pid, &local, 1, &remote, 1, 0) >= 0)
        return 0;
    return errno;
}

int procmem_open(struct procmem **out, pid_t pid, struct qstill_error *err)
{
    CLEANUP(procmem_closep) struct procmem *p = calloc(1, sizeof(*p));
    char path[64];
    int why;

    if (!p)
        return err_nomem(err);
    p->pid = pid;
    p->mem = -1;
    p->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (p->pidfd < 0 && errno == ESRCH)
        return err_set(err, QSTILL_E_NOT_FOUND, "there is no process %d",
                       (int)pid);
    if (p->pidfd < 0)
        return err_errno(err, errno, "cannot watch process %d", (int)pid);
    snprintf(path, sizeof(path), "/proc/%d/mem", (int)pid);
    p->mem = open(path, O_RDWR | O_CLOEXEC);
    why = probe_readv(pid);
    p->use_readv = why == EFAULT || why == 0;
    if (p->mem < 0 && !p->use_readv)
        return why == ESRCH ? gone(pid, err) : refused(pid, err);
    *out = take_ptr(&p);
    return 0;
}

void procmem_close(struct procmem *p)
{
    if (!p)
        return;
    closep(&p->pidfd);
    closep(&p->mem);
    free(p);
}

void procmem_closep(struct procmem **p)
{
    procmem_close(*p);
    *p = NULL;
}

int procmem_alive(const struct procmem *p, struct qstill_error *err)
{
    struct pollfd fd = {.fd = p->pidfd, .events = POLLIN};

    return poll(&fd, 1, 0) == 0 ? 0 : gone(p->pid, err);
}

enum direction { READ, WRITE };

static ssize_t move_some(const struct procmem *p, enum direction d,
                         uint64_t hva, void *data, size_t len)
{
    struct iovec local = {data, len};
    struct iovec remote = {(void *)(uintptr_t)hva, len};

    if (p->use_readv)
        return d == READ ? process_vm_readv(p->pid, &local, 1, &remote, 1, 0)
                         : process_vm_writev(p->pid, &local, 1, &remote, 1, 0);
    return d == READ ? pread(p->mem, data, len, (off_t)hva)
                     : pwrite(p->mem, data, len, (off_t)hva);
}

static int move(struct procmem *p, enum direction d, uint64_t hva, void *data,
                size_t len, struct qstill_error *err)
{
    size_t n = 0;

    while (n < len) {
        ssize_t r = move_some(p, d, hva + n, (char *)data + n, len - n);
        int why = errno;

        if (r < 0 && why == EINTR)
            continue;
        if (procmem_alive(p, err) < 0)
            return err->code;
        if (r < 0 && why == ESRCH)
            return gone(p->pid, err);
        if (r < 0 && why == EPERM)
            return refused(p->pid, err);
        if (r <= 0)
            return err_set(err, QSTILL_E_FAILED,
                           "process %d cannot be %s at address %#llx",
                           (int)p->pid, d == READ ? "read" : "written",
                           (unsigned long long)(hva + n));
        n += (size_t)r;
    }
    return 0;
}

int procmem_read(struct procmem *p, uint64_t hva, void *data, size_t len,
                 struct qstill_error *err)
{
    return move(p, READ, hva, data, len, err);
}

int procmem_write(struct procmem *p, uint64_t hva, const void *data, size_t len,
                  struct qstill_error *err)
{
    return move(p, WRITE, hva, (void *)(uintptr_t)data, len, err);
}
