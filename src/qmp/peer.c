/* SPDX-License-Identifier: MIT */
/*
 * Who is at the other end of the QMP connection. SO_PEERCRED names the process
 * that called listen(), which with a passed socket is a management daemon; so
 * the kernel is asked for the inode of our socket's peer (sock_diag), and the
 * process is the one that has this inode open. Refuses to take a process on
 * trust when it can be checked and the check fails.
 *
 * 1. the peer's inode by sock_diag; 2. SO_PEERCRED's pid, when it has it open;
 * 3. else the first process of /proc that has.
 * Without sock_diag (a kernel without it), or without the right to look at the
 * pid's files: SO_PEERCRED's pid when its command is a QEMU's.
 */
#include "client.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

/* One answer: header, unix_diag_msg and two or three attributes. */
#define DIAG_ANSWER_MAX 1024

struct diag_request {
    struct nlmsghdr header;
    struct unix_diag_req body;
};

static bool diag_ask(int nl, ino_t inode)
{
    struct diag_request r = {
        .header = {.nlmsg_len = sizeof(r),
                   .nlmsg_type = SOCK_DIAG_BY_FAMILY,
                   .nlmsg_flags = NLM_F_REQUEST},
        .body = {.sdiag_family = AF_UNIX,
                 .udiag_states = UINT32_MAX,
                 .udiag_ino = (uint32_t)inode,
                 .udiag_show = UDIAG_SHOW_PEER,
                 .udiag_cookie = {UINT32_MAX, UINT32_MAX}},
    };

    return send(nl, &r, sizeof(r), 0) == (ssize_t)sizeof(r);
}

/* The attribute UNIX_DIAG_PEER of an answer, or 0. */
static uint32_t diag_peer(const struct nlmsghdr *h)
{
    const struct unix_diag_msg *msg = NLMSG_DATA(h);
    const struct rtattr *a = (const struct rtattr *)(msg + 1);
    uint32_t peer = 0;
    int left;

    if (h->nlmsg_type != SOCK_DIAG_BY_FAMILY ||
        h->nlmsg_len < NLMSG_LENGTH(sizeof(*msg)))
        return 0;
    left = (int)(h->nlmsg_len - NLMSG_LENGTH(sizeof(*msg)));
    for (; RTA_OK(a, left); a = RTA_NEXT(a, left))
        if (a->rta_type == UNIX_DIAG_PEER && RTA_PAYLOAD(a) >= sizeof(peer))
            memcpy(&peer, RTA_DATA(a), sizeof(peer));
    return peer;
}

/* Inode of the socket that `fd` is connected to; 0 when the kernel does not
 * tell (no sock_diag, a sandbox). */
static uint32_t peer_inode(int fd)
{
    _Alignas(struct nlmsghdr) char answer[DIAG_ANSWER_MAX];
    CLEANUP(closep) int nl = -1;
    struct stat st;
    ssize_t n;

    nl = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
    if (nl < 0 || fstat(fd, &st) < 0 || !diag_ask(nl, st.st_ino))
        return 0;
    /* the kernel has answered by the time send() returns */
    n = recv(nl, answer, sizeof(answer), MSG_DONTWAIT);
    if (n < 0 || !NLMSG_OK((const struct nlmsghdr *)answer, (size_t)n))
        return 0;
    return diag_peer((const struct nlmsghdr *)answer);
}

enum holds { HOLDS_NOT, HOLDS, HOLDS_HIDDEN };

/* Whether the process has the socket open. */
static enum holds process_holds(pid_t pid, uint32_t inode)
{
    char path[64], want[64], link[64];
    enum holds result = HOLDS_NOT;
    struct dirent *e;
    ssize_t n;
    DIR *dir;

    snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
    snprintf(want, sizeof(want), "socket:[%" PRIu32 "]", inode);
    dir = opendir(path);
    if (!dir)
        return errno == ENOENT ? HOLDS_NOT : HOLDS_HIDDEN;
    while (result == HOLDS_NOT && (e = readdir(dir)) != NULL) {
        n = readlinkat(dirfd(dir), e->d_name, link, sizeof(link) - 1);
        if (n < 0)
            continue;
        link[n] = '\0';
        if (strcmp(link, want) == 0)
            result = HOLDS;
    }
    closedir(dir);
    return result;
}

/* The first process that has it; 0 for none. *hidden: some could not be looked
 * at. */
static pid_t search_processes(uint32_t inode, bool *hidden)
{
    DIR *proc = opendir("/proc");
    struct dirent *e;
    pid_t found = 0;

    *hidden = !proc;
    while (proc && !found && (e = readdir(proc)) != NULL) {
        char *end;
        long pid = strtol(e->d_name, &end, 10);
        enum holds h;

        if (*end || pid <= 0 || pid > INT_MAX)
            continue;
        h = process_holds((pid_t)pid, inode);
        if (h == HOLDS)
            found = (pid_t)pid;
        *hidden |= h == HOLDS_HIDDEN;
    }
    if (proc)
        closedir(proc);
    return found;
}

/* Whether the process's own name (or the program it runs) is a QEMU's; both
 * files can be read without any right over the process. */
static bool looks_like_qemu(pid_t pid)
{
    char path[64], head[256];
    ssize_t n;
    CLEANUP(closep) int fd = -1;

    snprintf(path, sizeof(path), "/proc/%d/cmdline", (int)pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    n = fd < 0 ? -1 : read(fd, head, sizeof(head) - 1);
    if (n <= 0)
        return false;
    head[n] = '\0'; /* the arguments end in NULs: this is argv[0] */
    return strstr(head, "qemu") != NULL;
}

static int peer_pid(int fd, const char *name, pid_t *out,
                    struct qstill_error *err)
{
    struct ucred cred = {0};
    socklen_t len = sizeof(cred);
    enum holds h = HOLDS_HIDDEN;
    bool hidden = false;
    uint32_t inode;
    pid_t pid = 0;

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
        return err_errno(err, errno, "cannot ask who is behind '%s'", name);
    inode = peer_inode(fd);
    if (inode && cred.pid > 0)
        h = process_holds(cred.pid, inode);
    if (h == HOLDS ||
        (h == HOLDS_HIDDEN && cred.pid > 0 && looks_like_qemu(cred.pid)))
        pid = cred.pid;
    else if (inode)
        pid = search_processes(inode, &hidden);
    if (pid > 0) {
        *out = pid;
        return 0;
    }
    if (hidden || h == HOLDS_HIDDEN)
        return err_set(err, QSTILL_E_PERMISSION,
                       "cannot see which process is behind '%s'", name);
    return err_set(err, QSTILL_E_NOT_FOUND,
                   "no process here is behind '%s' (another PID namespace?)",
                   name);
}

QSTILL_PUBLIC
int qstill_qmp_peer_pid(struct qstill_qmp *q, pid_t *out,
                        struct qstill_error *caller)
{
    struct qstill_error scratch, *err = err_door(caller, &scratch);

    return peer_pid(qstill_qmp_fd(q), qstill_qmp_name(q), out, err);
}
