/* SPDX-License-Identifier: MIT */
#include "qmp_peer.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/buf.h"

#define PATIENCE_MS  10000 /* for the client's next step */
#define STANDING_MAX 64

struct qmp_peer {
    pthread_t thread;
    char *script;
    char *at;   /* the next line of the script */
    int listen; /* or -1 */
    int fd;
    int got_fd; /* that came with the last command, or -1 */
    struct buf in;
    json_t *command; /* the last one */
    json_t *asked[STANDING_MAX];
    json_t *answers[STANDING_MAX];
    size_t standing;
    char failure[1024];
};

static int blame(struct qmp_peer *p, const char *fmt, ...) PRINTF_LIKE(2, 3);

static int blame(struct qmp_peer *p, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    if (!p->failure[0])
        vsnprintf(p->failure, sizeof(p->failure), fmt, ap);
    va_end(ap);
    return -1;
}

/* -------------------------------------------------------------------- sending
 */

static int send_bytes(struct qmp_peer *p, const void *data, size_t len)
{
    const char *at = data;

    while (len > 0) {
        ssize_t n = send(p->fd, at, len, MSG_NOSIGNAL);

        if (n < 0)
            return blame(p, "cannot send to the client: %s", strerror(errno));
        at += n;
        len -= (size_t)n;
    }
    return 0;
}

/* In one piece: the client may close as soon as it has the whole object. */
static int send_object(struct qmp_peer *p, json_t *v)
{
    CLEANUP(buf_fini) struct buf line = BUF_INIT;
    char *text;

    if ((json_object_get(v, "return") || json_object_get(v, "error")) &&
        json_object_get(p->command, "id"))
        json_object_set(v, "id", json_object_get(p->command, "id"));
    text = json_dumps(v, JSON_COMPACT);
    buf_printf(&line, "%s\r\n", text);
    free(text);
    return send_bytes(p, line.data, line.len);
}

static int send_raw(struct qmp_peer *p, const char *text)
{
    CLEANUP(buf_fini) struct buf out = BUF_INIT;
    json_t *args = json_object_get(p->command, "arguments");

    while (*text) {
        char hex[3] = {0};

        if (strncmp(text, "$SYNC", 5) == 0) {
            buf_printf(&out, "%lld",
                       json_integer_value(json_object_get(args, "id")));
            text += 5;
        } else if (strncmp(text, "\\x", 2) == 0) {
            memcpy(hex, text + 2, 2);
            buf_append_u8(&out, (uint8_t)strtoul(hex, NULL, 16));
            text += 4;
        } else if (*text == '\\') {
            buf_puts(&out, text[1] == 'n'   ? "\n"
                           : text[1] == 'r' ? "\r"
                                            : "\\");
            text += 2;
        } else {
            buf_append_u8(&out, (uint8_t)*text++);
        }
    }
    return send_bytes(p, out.data, out.len);
}

/* ------------------------------------------------------------------ receiving
 */

static void keep_fd(struct qmp_peer *p, struct msghdr *msg)
{
    struct cmsghdr *c = CMSG_FIRSTHDR(msg);

    if (!c || c->cmsg_type != SCM_RIGHTS)
        return;
    if (p->got_fd >= 0)
        blame(p, "a second file descriptor came");
    closep(&p->got_fd);
    memcpy(&p->got_fd, CMSG_DATA(c), sizeof(p->got_fd));
}

/* 1: bytes came, 0: the client closed, -1. */
static int read_some(struct qmp_peer *p)
{
    char data[65536];
    union {
        struct cmsghdr align;
        char raw[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec iov = {data, sizeof(data)};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control.raw,
                         .msg_controllen = sizeof(control.raw)};
    struct pollfd poller = {.fd = p->fd, .events = POLLIN};
    ssize_t n;

    if (poll(&poller, 1, PATIENCE_MS) <= 0)
        return blame(p, "the client does nothing");
    n = recvmsg(p->fd, &msg, MSG_CMSG_CLOEXEC);
    if (n <= 0)
        return 0; /* closed, or reset with unread bytes */
    keep_fd(p, &msg);
    buf_append(&p->in, data, (size_t)n);
    return 1;
}

/* The next line of the client into p->command; 0 when it closed. */
static int read_command(struct qmp_peer *p)
{
    uint8_t *end;
    size_t skip = 0;
    int rc;

    while (!p->in.len || !(end = memchr(p->in.data, '\n', p->in.len))) {
        rc = read_some(p);
        if (rc <= 0)
            return rc;
    }
    while (p->in.data[skip] == 0xff)
        skip++;
    json_decref(p->command);
    p->command = json_loadb((char *)p->in.data + skip,
                            (size_t)(end - p->in.data) - skip, 0, NULL);
    if (!p->command)
        return blame(p, "no JSON from the client: %.*s",
                     (int)(end - p->in.data), (char *)p->in.data);
    buf_consume(&p->in, (size_t)(end - p->in.data) + 1);
    return 1;
}

/* ------------------------------------------------------------------ comparing
 */

static bool matches(const json_t *want, const json_t *have);

static bool objects_match(const json_t *want, const json_t *have)
{
    const char *key;
    json_t *v;

    if (!json_is_object(have) ||
        json_object_size(want) != json_object_size(have))
        return false;
    json_object_foreach(
        (json_t *)(uintptr_t)want, key,
        v) if (!matches(v, json_object_get(have, key))) return false;
    return true;
}

static bool arrays_match(const json_t *want, const json_t *have)
{
    if (!json_is_array(have) || json_array_size(want) != json_array_size(have))
        return false;
    for (size_t i = 0; i < json_array_size(want); i++)
        if (!matches(json_array_get(want, i), json_array_get(have, i)))
            return false;
    return true;
}

static bool matches(const json_t *want, const json_t *have)
{
    if (!have)
        return false;
    if (json_is_string(want) && strcmp(json_string_value(want), "*") == 0)
        return true;
    if (json_is_object(want))
        return objects_match(want, have);
    if (json_is_array(want))
        return arrays_match(want, have);
    return json_equal(want, have);
}

static bool is_command(const json_t *want, const json_t *have)
{
    const json_t *args = json_object_get(want, "arguments");
    const json_t *got = json_object_get(have, "arguments");

    if (!json_equal(json_object_get(want, "execute"),
                    json_object_get(have, "execute")))
        return false;
    if (!args || json_object_size(args) == 0)
        return !got || json_object_size(got) == 0;
    return matches(args, got);
}

/* ---------------------------------------------------------------- the script
 */

static json_t *parse(struct qmp_peer *p, const char *text)
{
    json_t *v = json_loads(text, 0, NULL);

    if (!v)
        blame(p, "the script's JSON is bad: %.200s", text);
    return v;
}

/* 1 when the last command has a standing answer, which is sent. */
static int answer_standing(struct qmp_peer *p)
{
    for (size_t i = p->standing; i-- > 0;)
        if (is_command(p->asked[i], p->command))
            return send_object(p, p->answers[i]) < 0 ? -1 : 1;
    return 0;
}

static int step_command(struct qmp_peer *p, const char *text)
{
    json_t *want = parse(p, text);
    char *got;
    int rc = want ? 0 : -1;

    while (rc == 0) {
        rc = read_command(p);
        if (rc == 0)
            rc = blame(p, "the client closed instead of %.200s", text);
        if (rc < 0 || is_command(want, p->command))
            break;
        rc = answer_standing(p) - 1;
        if (rc == -1) {
            got = json_dumps(p->command, JSON_COMPACT);
            rc = blame(p, "the client sent %.400s\ninstead of %.400s", got,
                       text);
            free(got);
        }
    }
    json_decref(want);
    return rc < 0 ? -1 : 0;
}

static int step_send(struct qmp_peer *p, const char *text)
{
    json_t *v = parse(p, text);
    int rc = v ? send_object(p, v) : -1;

    json_decref(v);
    return rc;
}

static int step_fd(struct qmp_peer *p, const char *text)
{
    if (p->got_fd < 0)
        return blame(p, "no file descriptor came");
    if (write(p->got_fd, text, strlen(text)) < 0)
        return blame(p, "cannot write into the file descriptor");
    close(p->got_fd);
    p->got_fd = -1;
    return 0;
}

static int step_standing(struct qmp_peer *p, const char *text)
{
    if (p->standing == STANDING_MAX)
        return blame(p, "too many standing answers");
    p->asked[p->standing] = parse(p, text);
    return p->asked[p->standing] ? 0 : -1;
}

static int step_answer(struct qmp_peer *p, const char *text)
{
    p->answers[p->standing] = parse(p, text);
    return p->answers[p->standing++] ? 0 : -1;
}

static int step_trickle(struct qmp_peer *p, const char *text)
{
    const char *what = strchr(text, ' ');

    for (int i = atoi(text); what && i > 0; i--) {
        if (send(p->fd, what + 1, strlen(what + 1), MSG_NOSIGNAL) < 0)
            break;
        poll(NULL, 0, 10);
    }
    return 0;
}

static int step_sleep(struct qmp_peer *p, const char *text)
{
    (void)p;
    poll(NULL, 0, atoi(text));
    return 0;
}

static int step_close(struct qmp_peer *p, const char *text)
{
    (void)text;
    close(p->fd);
    p->fd = -1;
    return 0;
}

static int step_ignore(struct qmp_peer *p, const char *text)
{
    int rc;

    (void)text;
    do {
        rc = read_some(p);
        p->in.len = 0;
    } while (rc > 0);
    closep(&p->got_fd);
    p->got_fd = -1;
    return rc;
}

static int run_line(struct qmp_peer *p, char *line)
{
    static const struct {
        const char *word;
        int (*step)(struct qmp_peer *p, const char *text);
    } steps[] = {
        {"C", step_command},   {"S", step_send},
        {"R", send_raw},       {"A", step_standing},
        {"=", step_answer},    {"FD", step_fd},
        {"SLEEP", step_sleep}, {"TRICKLE", step_trickle},
        {"CLOSE", step_close}, {"IGNORE", step_ignore},
    };
    size_t len = strcspn(line, " ");
    char *text = line + len + (line[len] == ' ');

    if (line[0] == '#' || line[0] == '\0')
        return 0;
    if (p->got_fd >= 0 && strncmp(line, "FD", 2) != 0)
        return blame(p, "a file descriptor came that the script does not want");
    for (size_t i = 0; i < ARRAY_LEN(steps); i++)
        if (strlen(steps[i].word) == len &&
            strncmp(line, steps[i].word, len) == 0)
            return steps[i].step(p, text);
    return blame(p, "the script has no step '%.60s'", line);
}

/* Only standing answers remain. */
static int run_end(struct qmp_peer *p)
{
    int rc = 1;

    while (rc > 0 && p->fd >= 0) {
        rc = read_command(p);
        if (rc > 0 && answer_standing(p) != 1)
            rc = blame(
                p, "the script is at its end, but '%s' came",
                json_string_value(json_object_get(p->command, "execute")));
    }
    return rc;
}

static void *run(void *arg)
{
    struct qmp_peer *p = arg;
    struct pollfd poller = {.fd = p->listen, .events = POLLIN};
    int rc = 0;

    if (p->listen >= 0) {
        if (poll(&poller, 1, PATIENCE_MS) <= 0)
            blame(p, "nobody connects");
        else
            p->fd = accept(p->listen, NULL, NULL);
        close(p->listen);
    }
    while (rc == 0 && p->at && !p->failure[0])
        rc = run_line(p, strsep(&p->at, "\n"));
    if (rc == 0 && !p->failure[0])
        run_end(p);
    closep(&p->fd);
    return NULL;
}

/* ------------------------------------------------------------------ the tests'
 */

static struct qmp_peer *start(const char *script, int fd, int listen_fd)
{
    struct qmp_peer *p = calloc(1, sizeof(*p));

    assert_non_null(p);
    p->script = p->at = strdup(script);
    p->fd = fd;
    p->listen = listen_fd;
    p->got_fd = -1;
    assert_int_equal(pthread_create(&p->thread, NULL, run, p), 0);
    return p;
}

struct qmp_peer *qmp_peer_start(const char *script, int *fd)
{
    int pair[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair),
                     0);
    *fd = pair[0];
    return start(script, pair[1], -1);
}

struct qmp_peer *qmp_peer_listen(const char *script, const char *path)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_true(fd >= 0 && strlen(path) < sizeof(addr.sun_path));
    memcpy(addr.sun_path, path, strlen(path));
    assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    assert_int_equal(listen(fd, 1), 0);
    return start(script, -1, fd);
}

struct qmp_peer *qmp_peer_client(const char *script, struct qstill_qmp **q)
{
    struct qstill_qmp_options options = QSTILL_QMP_OPTIONS_INIT;
    CLEANUP(buf_fini) struct buf whole = BUF_INIT;
    struct qstill_error err;
    struct qmp_peer *p;
    int fd;

    options.timeout_ms = options.greeting_timeout_ms = 20000;
    if (!strstr(script, "S {\"QMP\""))
        assert_int_equal(buf_puts(&whole, QMP_PEER_GREETING), 0);
    assert_int_equal(buf_puts(&whole, script), 0);
    p = qmp_peer_start((char *)whole.data, &fd);
    if (qstill_qmp_open_fd(q, fd, "test", &options, &err) < 0)
        fail_msg("cannot open: %s", err.message);
    return p;
}

struct qmp_peer *qmp_peer_replay(const char *name, struct qstill_qmp **q)
{
    CLEANUP(buf_fini) struct buf script = BUF_INIT;
    char path[256], chunk[4096];
    struct qmp_peer *p;
    size_t n;
    FILE *f;

    snprintf(path, sizeof(path), "fixtures/qmp/%s", name);
    f = fopen(path, "r");
    if (!f)
        fail_msg("no %s: run the tests from the top of the tree", path);
    while ((n = fread(chunk, 1, sizeof(chunk), f)) > 0)
        assert_int_equal(buf_append(&script, chunk, n), 0);
    fclose(f);
    p = qmp_peer_client((char *)script.data, q);
    return p;
}

void qmp_peer_finish(struct qmp_peer *p)
{
    char failure[sizeof(p->failure)];

    pthread_join(p->thread, NULL);
    memcpy(failure, p->failure, sizeof(failure));
    for (size_t i = 0; i < p->standing; i++) {
        json_decref(p->asked[i]);
        json_decref(p->answers[i]);
    }
    closep(&p->got_fd);
    json_decref(p->command);
    buf_fini(&p->in);
    free(p->script);
    free(p);
    if (failure[0])
        fail_msg("the peer: %s", failure);
}

void qmp_peer_close(struct qmp_peer *p, struct qstill_qmp *q)
{
    qstill_qmp_close(q);
    qmp_peer_finish(p);
}

void qmp_peer_error(const struct qstill_error *err, int rc, int code,
                    const char *words)
{
    assert_int_equal(rc, code);
    assert_int_equal(err->code, code);
    if (!strstr(err->message, words))
        fail_msg("'%s' has no '%s'", err->message, words);
}
