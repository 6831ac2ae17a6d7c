/* SPDX-License-Identifier: MIT */
#include "channel.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "deadline.h"

#define READ_CHUNK       65536 /* a quarter of the schema, all else in one */
#define CONNECT_RETRY_MS 10    /* between looks at a full queue */
/* Reads after the deadline: what had arrived is taken (1 MiB is more than a
 * socket holds), and a peer that never stops cannot keep us. */
#define LATE_READS_MAX 16

/*
 * A socket's address has room for 107 bytes of path. A longer one is reached
 * through its directory: /proc/self/fd/N/NAME. *dir is then open.
 */
static int make_address(const char *path, struct sockaddr_un *addr, int *dir,
                        struct qstill_error *err)
{
    CLEANUP(freep) char *parent = NULL;
    const char *slash = strrchr(path, '/');
    int n;

    *addr = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (strlen(path) < sizeof(addr->sun_path)) {
        memcpy(addr->sun_path, path, strlen(path));
        return 0;
    }
    parent = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
    if (!parent)
        return err_nomem(err);
    *dir = open(parent, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (*dir < 0)
        return err_errno(err, errno, "cannot open '%s'", parent);
    n = snprintf(addr->sun_path, sizeof(addr->sun_path), "/proc/self/fd/%d/%s",
                 *dir, slash ? slash + 1 : path);
    if (n < 0 || (size_t)n >= sizeof(addr->sun_path))
        return err_set(err, QSTILL_E_USAGE,
                       "the name of socket '%s' is too"
                       " long",
                       path);
    return 0;
}

static int connect_error(int errno_value, const char *path,
                         struct qstill_error *err)
{
    switch (errno_value) {
    case EAGAIN:
        return err_set(err, QSTILL_E_BUSY,
                       "socket '%s' has clients waiting already", path);
    case ENOENT:
    case ENOTDIR:
        return err_set(err, QSTILL_E_UNREACHABLE, "there is no socket '%s'",
                       path);
    case ECONNREFUSED:
        return err_set(err, QSTILL_E_UNREACHABLE, "nobody listens at '%s'",
                       path);
    case EPROTOTYPE:
        return err_set(err, QSTILL_E_UNREACHABLE, "'%s' is no stream socket",
                       path);
    default:
        return err_errno(err, errno_value, "cannot connect to '%s'", path);
    }
}

int channel_connect(struct channel *c, const char *path, uint64_t deadline,
                    struct qstill_error *err)
{
    CLEANUP(closep) int dir = -1;
    CLEANUP(closep) int fd = -1;
    struct sockaddr_un addr;

    if (path[0] == '\0')
        return err_set(err, QSTILL_E_USAGE, "the socket's path is empty");
    if (make_address(path, &addr, &dir, err) < 0)
        return err->code == QSTILL_E_NOT_FOUND
                   ? connect_error(ENOENT, path, err)
                   : err->code;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_errno(err, errno, "cannot make a socket");
    while (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
        int wait = deadline_left(deadline);

        /* a unix socket has no connection "in progress": EAGAIN is a full
         * queue, and there is no event for its emptying */
        if ((errno != EAGAIN && errno != EINTR) || wait == 0)
            return connect_error(errno, path, err);
        poll(NULL, 0, wait < CONNECT_RETRY_MS ? wait : CONNECT_RETRY_MS);
    }
    return channel_adopt(c, take_fd(&fd), path, err);
}

bool channel_is_dead(const char *path)
{
    struct qstill_error why = {0};
    CLEANUP(closep) int dir = -1;
    CLEANUP(closep) int fd = -1;
    struct sockaddr_un addr;

    if (make_address(path, &addr, &dir, &why) < 0)
        return why.code == QSTILL_E_NOT_FOUND;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0)
        return false;
    return errno == ENOENT || errno == ECONNREFUSED || errno == ENOTDIR;
}

int channel_adopt(struct channel *c, int fd, const char *name,
                  struct qstill_error *err)
{
    c->fd = fd;
    c->name = strdup(name);
    if (!c->name)
        return err_nomem(err);
    if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
        return err_errno(err, errno, "cannot use the socket '%s'", name);
    return 0;
}

void channel_fini(struct channel *c)
{
    closep(&c->fd);
    free(c->name);
    wire_fini(&c->in);
    *c = (struct channel)CHANNEL_INIT;
}

/* True when the socket is ready, false when the deadline passed first. */
static bool wait_for(const struct channel *c, short events, uint64_t deadline)
{
    struct pollfd p = {.fd = c->fd, .events = events};
    int n;

    do
        n = poll(&p, 1, deadline_left(deadline));
    while (n < 0 && errno == EINTR);
    return n > 0;
}

/* One sendmsg. Returns what went out, or -1 with errno. */
static ssize_t send_some(const struct channel *c, const void *data, size_t len,
                         int fd)
{
    struct iovec iov = {.iov_base = (void *)(uintptr_t)data, .iov_len = len};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    union {
        struct cmsghdr align;
        char raw[CMSG_SPACE(sizeof(int))];
    } control = {0};

    if (fd >= 0) {
        struct cmsghdr *cmsg;

        msg.msg_control = control.raw;
        msg.msg_controllen = sizeof(control.raw);
        cmsg = CMSG_FIRSTHDR(&msg);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(cmsg), &fd, sizeof(fd));
    }
    return sendmsg(c->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
}

int channel_send(struct channel *c, const void *data, size_t len, int fd,
                 uint64_t deadline, struct qstill_error *err)
{
    const uint8_t *at = data;

    while (len > 0) {
        ssize_t n = send_some(c, at, len, fd);

        if (n >= 0) {
            at += n;
            len -= (size_t)n;
            fd = -1;
            continue;
        }
        if (errno == EINTR)
            continue;
        if (errno == EPIPE || errno == ECONNRESET)
            return err_set(err, QSTILL_E_UNREACHABLE,
                           "'%s' has closed the connection", c->name);
        if (errno != EAGAIN)
            return err_errno(err, errno, "cannot send to '%s'", c->name);
        if (!wait_for(c, POLLOUT, deadline))
            return err_set(err, QSTILL_E_UNREACHABLE,
                           "'%s' does not read what it is sent", c->name);
    }
    return 0;
}

int channel_fill(struct channel *c, uint64_t deadline, bool *got,
                 struct qstill_error *err)
{
    uint8_t chunk[READ_CHUNK];
    ssize_t n;

    *got = wait_for(c, POLLIN, deadline);
    if (!*got)
        return 0;
    /* no room for control data: fds that a peer sends us are closed by the
     * kernel */
    do
        n = recv(c->fd, chunk, sizeof(chunk), MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n == 0 || (n < 0 && errno == ECONNRESET))
        return err_set(err, QSTILL_E_UNREACHABLE,
                       "'%s' has closed the connection", c->name);
    if (n < 0 && errno == EAGAIN)
        n = 0;
    if (n < 0)
        return err_errno(err, errno, "cannot read from '%s'", c->name);
    return wire_feed(&c->in, chunk, (size_t)n, err);
}

int channel_receive(struct channel *c, uint64_t deadline, json_t **out,
                    struct qstill_error *err)
{
    bool got = true;

    for (int late = 0;;) {
        json_t *v = NULL;

        if (wire_next(&c->in, &v, err) < 0)
            return err->code;
        if (deadline_left(deadline) == 0)
            late++;
        if (v || !got || late > LATE_READS_MAX) {
            *out = v;
            return 0;
        }
        if (channel_fill(c, deadline, &got, err) < 0)
            return err->code;
    }
}
