/* SPDX-License-Identifier: MIT */
/*
 * syskill [--at N [--errno E [--stay] | --kill PID [--on] | --cancel]]
 *         [--list FILE] -- CMD ARG...
 *
 * Runs CMD and counts its system calls that change something anywhere: files,
 * directories, sockets and pipes, other processes. Just before the N-th one
 *   (nothing)      CMD is killed with SIGKILL;
 *   --errno E      the call does nothing and fails with errno E. Calls on
 *                  sockets are not counted then, no disk is full or broken
 *                  there, but for E of EPIPE only what is sent to a socket is,
 *                  and of ECONNRESET only what is received from one: the
 *                  command has come to its receiver, its answer is lost;
 *   --stay         and so do all such calls that follow;
 *   --kill PID     that process is killed, and waited for until it is gone;
 *                  then CMD is killed too, or goes on (--on).
 *   --cancel       CMD gets a SIGINT, and goes on.
 * Without --at nothing happens to it: the count says how many points there
 * are. FILE gets a line per call: "N name what", and at last "end N".
 *
 * Exits as CMD does; 128 + signal when one ended it; 125 for its own errors.
 * Threads of CMD are followed, processes that it starts are not (a QEMU that
 * it starts must not be touched). CMD may itself trace others.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef PTRACE_GET_SYSCALL_INFO
#define PTRACE_GET_SYSCALL_INFO 0x420e
#endif
#define OP_ENTRY 1
#define OP_EXIT  2

/* struct ptrace_syscall_info as far as it is used here: glibc's and the
 * kernel's header cannot be included together. */
struct call {
    uint8_t op;
    uint8_t pad[3];
    uint32_t arch;
    uint64_t ip, sp;
    uint64_t nr;
    uint64_t args[6];
};

enum kind { FD, OPEN, PATH, IOCTL, OTHER, RECEIVE };
/* What changes something. FD: only when args[0] is a file, socket or pipe;
 * RECEIVE: only when it is a socket, and that is asked for. */
static const struct {
    long nr;
    enum kind kind;
    const char *name;
} calls[] = {
    {SYS_write, FD, "write"},
    {SYS_pwrite64, FD, "pwrite"},
    {SYS_writev, FD, "writev"},
    {SYS_pwritev, FD, "pwritev"},
    {SYS_pwritev2, FD, "pwritev2"},
    {SYS_sendto, FD, "sendto"},
    {SYS_sendmsg, FD, "sendmsg"},
    {SYS_read, RECEIVE, "read"},
    {SYS_recvfrom, RECEIVE, "recvfrom"},
    {SYS_recvmsg, RECEIVE, "recvmsg"},
    {SYS_open, OPEN, "open"},
    {SYS_openat, OPEN, "openat"},
    {SYS_creat, PATH, "creat"},
    {SYS_mkdir, PATH, "mkdir"},
    {SYS_mkdirat, PATH, "mkdirat"},
    {SYS_mknodat, PATH, "mknodat"},
    {SYS_rename, PATH, "rename"},
    {SYS_renameat, PATH, "renameat"},
    {SYS_renameat2, PATH, "renameat2"},
    {SYS_unlink, PATH, "unlink"},
    {SYS_unlinkat, PATH, "unlinkat"},
    {SYS_rmdir, PATH, "rmdir"},
    {SYS_link, PATH, "link"},
    {SYS_linkat, PATH, "linkat"},
    {SYS_symlinkat, PATH, "symlinkat"},
    {SYS_fsync, FD, "fsync"},
    {SYS_fdatasync, FD, "fdatasync"},
    {SYS_sync_file_range, FD, "sync_file_range"},
    {SYS_truncate, PATH, "truncate"},
    {SYS_ftruncate, FD, "ftruncate"},
    {SYS_fallocate, FD, "fallocate"},
    {SYS_copy_file_range, OTHER, "copy_file_range"},
    {SYS_sendfile, FD, "sendfile"},
    {SYS_splice, OTHER, "splice"},
    {SYS_io_uring_enter, OTHER, "io_uring_enter"},
    {SYS_chmod, PATH, "chmod"},
    {SYS_fchmod, FD, "fchmod"},
    {SYS_fchmodat, PATH, "fchmodat"},
    {SYS_fchown, FD, "fchown"},
    {SYS_fchownat, PATH, "fchownat"},
    {SYS_utimensat, PATH, "utimensat"},
    {SYS_fsetxattr, FD, "fsetxattr"},
    {SYS_setxattr, PATH, "setxattr"},
    {SYS_fremovexattr, FD, "fremovexattr"},
    {SYS_ioctl, IOCTL, "ioctl"},
    {SYS_process_vm_writev, OTHER, "process_vm_writev"},
    {SYS_ptrace, OTHER, "ptrace"},
    {SYS_kill, OTHER, "kill"},
    {SYS_pidfd_send_signal, OTHER, "pidfd_send_signal"},
};
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static struct {
    long at;
    int error;
    pid_t kill;
    bool on;
    bool stay;
    bool cancel;
    FILE *list;
    long seen;
    pid_t child;
    pid_t failing[64]; /* threads whose call is to fail at its exit */
} run;

/* Takes the thread out of those whose call fails, or in. */
static bool take_failing(pid_t tid, pid_t other)
{
    for (size_t i = 0; i < COUNT(run.failing); i++)
        if (run.failing[i] == tid) {
            run.failing[i] = other;
            return true;
        }
    return false;
}

static _Noreturn void die(const char *what)
{
    perror(what);
    if (run.child > 0)
        kill(run.child, SIGKILL);
    exit(125);
}

/* ------------------------------------------------------------ what is it */

static void fd_target(pid_t tid, uint64_t fd, char *out, size_t size)
{
    char link[64];
    ssize_t n;

    snprintf(link, sizeof(link), "/proc/%d/fd/%d", (int)tid, (int)fd);
    n = readlink(link, out, size - 1);
    out[n < 0 ? 0 : n] = '\0';
}

static ssize_t read_mem(pid_t tid, uint64_t addr, void *out, size_t size)
{
    char mem[64];
    ssize_t n;
    int fd;

    snprintf(mem, sizeof(mem), "/proc/%d/mem", (int)tid);
    fd = open(mem, O_RDONLY | O_CLOEXEC);
    n = fd < 0 ? -1 : pread(fd, out, size, (off_t)addr);
    if (fd >= 0)
        close(fd);
    return n;
}

static void read_path(pid_t tid, uint64_t addr, char *out, size_t size)
{
    ssize_t n = read_mem(tid, addr, out, size - 1);

    out[n < 0 ? 0 : n] = '\0';
}

/* The first words of a message: a QMP command's name. */
static void read_message(pid_t tid, uint64_t msghdr, char *out, size_t size)
{
    uint64_t h[3], iov[2]; /* name, namelen, iov; base, len */

    out[0] = '\0';
    if (read_mem(tid, msghdr, h, sizeof(h)) < (ssize_t)sizeof(h) ||
        read_mem(tid, h[2], iov, sizeof(iov)) < (ssize_t)sizeof(iov))
        return;
    read_path(tid, iov[0], out, size < iov[1] ? size : iov[1] + 1);
    for (char *p = out; *p; p++)
        if (*p == '\n')
            *p = ' ';
}

/* FICLONE, FICLONERANGE, FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR, UFFDIO_*. */
static bool ioctl_changes(uint64_t request)
{
    return request == 0x40049409 || request == 0x4020940d ||
           request == 0x40086602 || request == 0x401c5820 ||
           ((request >> 8) & 0xff) == 0xaa;
}

/* Whether a fault of this errno can happen to what the call works on. */
static bool counts(enum kind kind, bool is_socket)
{
    if (run.error == ECONNRESET)
        return kind == RECEIVE && is_socket;
    if (run.error == EPIPE)
        return kind == FD && is_socket;
    return kind != RECEIVE && !(run.error && is_socket);
}

/* Whether the call changes something; says what in `text`. */
static bool changes(pid_t tid, const struct call *c, char *text, size_t size)
{
    char target[160] = "";
    size_t i = 0;

    while (i < COUNT(calls) && calls[i].nr != (long)c->nr)
        i++;
    if (i == COUNT(calls) || (calls[i].kind != FD &&
                              !counts(calls[i].kind, calls[i].kind == RECEIVE)))
        return false;
    switch (calls[i].kind) {
    case FD:
    case RECEIVE:
        fd_target(tid, c->args[0], target, sizeof(target));
        /* an eventfd wakes ourselves; 0 to 2 are for people */
        if (c->args[0] <= 2 || strncmp(target, "anon_inode:", 11) == 0 ||
            !counts(calls[i].kind, strncmp(target, "socket:", 7) == 0))
            return false;
        if (c->nr == SYS_sendmsg)
            read_message(tid, c->args[1], target, sizeof(target) - 60);
        break;
    case OPEN: {
        uint64_t flags = c->args[c->nr == SYS_open ? 1 : 2];

        if (!(flags & (O_CREAT | O_TRUNC)))
            return false;
        read_path(tid, c->args[c->nr == SYS_open ? 0 : 1], target,
                  sizeof(target));
        break;
    }
    case IOCTL:
        if (!ioctl_changes(c->args[1]))
            return false;
        snprintf(target, sizeof(target), "%#lx", (unsigned long)c->args[1]);
        break;
    case PATH:
    case OTHER:
        break;
    }
    snprintf(text, size, "%s %s", calls[i].name, target);
    return true;
}

/* --------------------------------------------------------------- the point */

static void wait_gone(pid_t pid)
{
    struct pollfd p = {.fd = (int)syscall(SYS_pidfd_open, pid, 0),
                       .events = POLLIN};

    if (p.fd < 0)
        return;
    poll(&p, 1, 20000);
    close(p.fd);
}

static void point(pid_t tid, const struct call *c)
{
    struct user_regs_struct regs;

    (void)c;
    if (run.kill) {
        kill(run.kill, SIGKILL);
        wait_gone(run.kill);
        if (run.on)
            return;
    }
    if (!run.error) {
        kill(run.child, run.cancel ? SIGINT : SIGKILL);
        return;
    }
    if (ptrace(PTRACE_GETREGS, tid, NULL, &regs) < 0)
        die("reading registers");
    regs.orig_rax = (unsigned long long)-1;
    if (ptrace(PTRACE_SETREGS, tid, NULL, &regs) < 0)
        die("setting registers");
    if (!take_failing(0, tid))
        die("too many threads");
}

static void syscall_stop(pid_t tid)
{
    struct user_regs_struct regs;
    struct call c;
    char text[200];

    if (ptrace(PTRACE_GET_SYSCALL_INFO, tid, sizeof(c), &c) < 0)
        return; /* killed meanwhile */
    if (c.op == OP_EXIT && take_failing(tid, 0)) {
        if (ptrace(PTRACE_GETREGS, tid, NULL, &regs) < 0)
            die("reading registers");
        regs.rax = (unsigned long long)-run.error;
        if (ptrace(PTRACE_SETREGS, tid, NULL, &regs) < 0)
            die("setting registers");
    }
    if (c.op != OP_ENTRY || !changes(tid, &c, text, sizeof(text)))
        return;
    run.seen++;
    if (run.list)
        fprintf(run.list, "%ld %s\n", run.seen, text);
    if (run.seen == run.at || (run.stay && run.at && run.seen > run.at))
        point(tid, &c);
}

/* ---------------------------------------------------------------- the loop */

static int finished(int status)
{
    if (run.list)
        fprintf(run.list, "end %ld\n", run.seen);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int follow(void)
{
    int status, sig;
    pid_t tid;

    for (;;) {
        tid = waitpid(-1, &status, __WALL);
        if (tid < 0)
            die("waiting");
        if (WIFEXITED(status) || WIFSIGNALED(status)) {
            if (tid == run.child)
                return finished(status);
            continue;
        }
        sig = WSTOPSIG(status);
        if (sig == (SIGTRAP | 0x80)) {
            syscall_stop(tid);
            sig = 0;
        } else if (sig == SIGTRAP || sig == SIGSTOP) {
            sig = 0; /* an event, or a new thread's first stop */
        }
        /* fails when it has been killed meanwhile */
        ptrace(PTRACE_SYSCALL, tid, NULL, (void *)(long)sig);
    }
}

static void start(char **argv)
{
    int status;

    run.child = fork();
    if (run.child < 0)
        die("forking");
    if (run.child == 0) {
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        raise(SIGSTOP);
        execvp(argv[0], argv);
        perror(argv[0]);
        _exit(125);
    }
    if (waitpid(run.child, &status, 0) < 0 || !WIFSTOPPED(status))
        die("starting");
    if (ptrace(PTRACE_SETOPTIONS, run.child, NULL,
               (void *)(PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE |
                        PTRACE_O_EXITKILL | PTRACE_O_TRACEEXEC)) < 0)
        die("tracing");
    ptrace(PTRACE_SYSCALL, run.child, NULL, NULL);
}

static int number_of_errno(const char *name)
{
    static const struct {
        const char *name;
        int value;
    } known[] = {{"ENOSPC", ENOSPC}, {"EIO", EIO},
                 {"EROFS", EROFS},   {"EDQUOT", EDQUOT},
                 {"EPIPE", EPIPE},   {"ECONNRESET", ECONNRESET},
                 {"EPERM", EPERM}};

    for (size_t i = 0; i < COUNT(known); i++)
        if (strcmp(known[i].name, name) == 0)
            return known[i].value;
    fprintf(stderr, "syskill: unknown errno %s\n", name);
    exit(125);
}

int main(int argc, char **argv)
{
    int i = 1;

    for (; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strcmp(argv[i], "--on") == 0)
            run.on = true;
        else if (strcmp(argv[i], "--stay") == 0)
            run.stay = true;
        else if (strcmp(argv[i], "--cancel") == 0)
            run.cancel = true;
        else if (i + 1 == argc)
            break;
        else if (strcmp(argv[i], "--at") == 0)
            run.at = atol(argv[++i]);
        else if (strcmp(argv[i], "--errno") == 0)
            run.error = number_of_errno(argv[++i]);
        else if (strcmp(argv[i], "--kill") == 0)
            run.kill = atoi(argv[++i]);
        else if (strcmp(argv[i], "--list") == 0)
            run.list = fopen(argv[++i], "we");
        else
            break;
    }
    if (i + 1 >= argc || strcmp(argv[i], "--") != 0) {
        fprintf(stderr, "usage: syskill [--at N] [--errno E [--stay]] [--kill "
                        "PID [--on]] [--cancel] [--list FILE] -- CMD...\n");
        return 125;
    }
    start(argv + i + 1);
    i = follow();
    if (run.list && fclose(run.list) != 0)
        die("writing the list");
    return i;
}
