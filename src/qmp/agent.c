/* SPDX-License-Identifier: MIT */
/*
 * The guest agent's client. Refuses to believe anything that came before its
 * own synchronization, and to wait without end.
 *
 * A call: 0xFF and guest-sync-delimited(N) out -> all in up to a 0xFF thrown
 * away, until {"return": N} follows one -> the command out -> the next object
 * is its reply (the agent answers in order and has no events).
 * Failures: whatever happens, the next call synchronizes anew, which also puts
 * the agent's own parser straight.
 */
#include "qstill-qmp.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "base/options.h"
#include "channel.h"
#include "client.h"
#include "deadline.h"
#include "field.h"

#define TIMEOUT_MS        5000
#define FREEZE_TIMEOUT_MS 60000 /* a freeze writes all dirty pages out */
#define THAW_TIMEOUT_MS   30000
#define BLIND_TIMEOUT_MS  200 /* a few bytes into a socket's buffer */
#define SENTINEL          0xff
#define SENTINEL_STRING   "\xff"

struct qstill_qga {
    struct channel ch;
    uint32_t timeout_ms;
};

static int silent(const struct qstill_qga *a, const char *what,
                  struct qstill_error *err)
{
    err_set(err, QSTILL_E_UNREACHABLE,
            "the guest agent behind '%s' has not answered '%s' in time",
            a->ch.name, what);
    return err_hint(err, "qemu-guest-agent must run in the guest, the guest"
                         " must run, and no other client may hold the socket");
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* --------------------------------------------------------- synchronization */

/* A number that no earlier client has used: an integer that also fits the 53
 * bits of agents which hold numbers as doubles. */
static int64_t fresh_number(void)
{
    uint64_t n;

    if (getrandom(&n, sizeof(n), GRND_NONBLOCK) != (ssize_t)sizeof(n))
        n = deadline_now() << 20 ^ (uintptr_t)&n;
    return (int64_t)(n >> 11);
}

/* Discards up to and including a sentinel. */
static int skip_to_sentinel(struct qstill_qga *a, uint64_t deadline,
                            struct qstill_error *err)
{
    while (!wire_skip_past(&a->ch.in, SENTINEL)) {
        bool got;

        if (channel_fill(&a->ch, deadline, &got, err) < 0)
            return err->code;
        /* the clock is asked too: a peer that never stops sending is no agent
         * that answers */
        if (!got || deadline_left(deadline) == 0)
            return silent(a, "guest-sync-delimited", err);
    }
    return 0;
}

/* Whether the next object, behind a sentinel, is the answer to our number.
 * Something that is no JSON is not. */
static int check_answer(struct qstill_qga *a, int64_t number, uint64_t deadline,
                        bool *ours, struct qstill_error *err)
{
    CLEANUP(json_decrefp) json_t *v = NULL;

    *ours = false;
    if (channel_receive(&a->ch, deadline, &v, err) < 0)
        return err->code == QSTILL_E_CORRUPT ? err_clear(err) : err->code;
    if (!v)
        return silent(a, "guest-sync-delimited", err);
    *ours = field_i64(v, "return", -1) == number;
    return 0;
}

static int sync_agent(struct qstill_qga *a, uint64_t deadline,
                      struct qstill_error *err)
{
    int64_t number = fresh_number();
    bool ours = false;
    char line[128];
    int n;

    n = snprintf(line, sizeof(line),
                 SENTINEL_STRING "{\"execute\":\"guest-sync-delimited\","
                                 "\"arguments\":{\"id\":%" PRId64 "}}\n",
                 number);
    if (channel_send(&a->ch, line, (size_t)n, -1, deadline, err) < 0)
        return err->code;
    while (!ours) {
        if (skip_to_sentinel(a, deadline, err) < 0)
            return err->code;
        if (check_answer(a, number, deadline, &ours, err) < 0)
            return err->code;
    }
    return 0;
}

/* ------------------------------------------------------------------- sending
 */

/* The command's line behind `prefix`. Takes `arguments` over. */
static int make_line(struct buf *line, const char *prefix, const char *command,
                     json_t *arguments, struct qstill_error *err)
{
    CLEANUP(json_decrefp) json_t *args = arguments;
    CLEANUP(json_decrefp) json_t *msg = NULL;
    CLEANUP(freep) char *text = NULL;

    if (args && !json_is_object(args))
        return err_set(err, QSTILL_E_USAGE,
                       "the arguments of '%s' are no JSON object", command);
    msg = json_pack("{s:s, s:O*}", "execute", command, "arguments", args);
    text = msg ? json_dumps(msg, JSON_COMPACT) : NULL;
    if (!text)
        return err_set(err, QSTILL_E_USAGE, "cannot make a message of '%s'",
                       command);
    if (buf_puts(line, prefix) < 0 || buf_puts(line, text) < 0 ||
        buf_puts(line, "\n") < 0)
        return err_nomem(err);
    return 0;
}

/* A thaw that nobody waits for: an agent that is stuck now finds it when it
 * reads on. The first error stands, this one is of no interest. */
static void thaw_blindly(struct qstill_qga *a)
{
    CLEANUP(buf_fini) struct buf line = BUF_INIT;
    struct qstill_error ignored;

    if (make_line(&line, SENTINEL_STRING, "guest-fsfreeze-thaw", NULL,
                  &ignored) == 0)
        (void)channel_send(&a->ch, line.data, line.len, -1,
                           deadline_in(BLIND_TIMEOUT_MS), &ignored);
}

/* ------------------------------------------------------------------- opening
 */

/* `channel` is taken over. */
static int agent_new(struct qstill_qga **out, struct channel *channel,
                     const struct qstill_qga_options *o, uint64_t deadline,
                     struct qstill_error *err)
{
    struct qstill_qga *a = calloc(1, sizeof(*a));

    if (!a)
        return err_nomem(err);
    a->ch = *channel;
    *channel = (struct channel)CHANNEL_INIT;
    a->timeout_ms = o->timeout_ms;
    if (sync_agent(a, deadline, err) < 0) {
        if (o->thaw && err->code == QSTILL_E_UNREACHABLE)
            thaw_blindly(a);
        qstill_qga_close(a);
        return err->code;
    }
    *out = a;
    return 0;
}

static int take_options(struct qstill_qga_options *o,
                        const struct qstill_qga_options *options,
                        struct qstill_error *err)
{
    if (options_take(o, sizeof(*o), options, "guest agent", err) < 0)
        return err->code;
    if (o->timeout_ms == 0)
        o->timeout_ms = TIMEOUT_MS;
    return 0;
}

QSTILL_PUBLIC
int qstill_qga_open(struct qstill_qga **out, const char *path,
                    const struct qstill_qga_options *options,
                    struct qstill_error *caller)
{
    struct qstill_error scratch, *err = err_door(caller, &scratch);
    CLEANUP(channel_fini) struct channel ch = CHANNEL_INIT;
    struct qstill_qga_options o = QSTILL_QGA_OPTIONS_INIT;
    uint64_t deadline;

    if (take_options(&o, options, err) < 0)
        return err->code;
    deadline = deadline_in(o.timeout_ms);
    if (channel_connect(&ch, path, deadline, err) < 0)
        return err->code;
    return agent_new(out, &ch, &o, deadline, err);
}

QSTILL_PUBLIC
int qstill_qga_open_fd(struct qstill_qga **out, int fd, const char *name,
                       const struct qstill_qga_options *options,
                       struct qstill_error *caller)
{
    struct qstill_error scratch, *err = err_door(caller, &scratch);
    CLEANUP(channel_fini) struct channel ch = CHANNEL_INIT;
    struct qstill_qga_options o = QSTILL_QGA_OPTIONS_INIT;

    if (channel_adopt(&ch, fd, name, err) < 0 ||
        take_options(&o, options, err) < 0)
        return err->code;
    return agent_new(out, &ch, &o, deadline_in(o.timeout_ms), err);
}

QSTILL_PUBLIC
void qstill_qga_close(struct qstill_qga *a)
{
    if (!a)
        return;
    channel_fini(&a->ch);
    free(a);
}

/* ------------------------------------------------------------------ commands
 */

/* How far a call came; what must be undone depends on it. */
enum came { NOT_SENT, SENT, NOT_RUN };

static int receive_reply(struct qstill_qga *a, const char *command,
                         uint64_t deadline, json_t **ret, enum came *came,
                         struct qstill_error *err)
{
    CLEANUP(json_decrefp) json_t *v = NULL;
    char text[sizeof(err->message)];
    const json_t *error;

    if (channel_receive(&a->ch, deadline, &v, err) < 0) {
        if (err->code == QSTILL_E_CORRUPT)
            err->code = QSTILL_E_FAILED;
        return err_wrap(err, "reading the guest agent's answer to '%s'",
                        command);
    }
    if (!v)
        return silent(a, command, err);
    error = json_object_get(v, "error");
    if (error) {
        /* not there, or disabled, as all but a few are while it is frozen */
        if (strcmp(field_string(error, "class", ""), "CommandNotFound") == 0)
            *came = NOT_RUN;
        field_printable(text, sizeof(text),
                        field_string(error, "desc", "(no text)"));
        return err_set(err, QSTILL_E_FAILED, "the guest agent refuses '%s': %s",
                       command, text);
    }
    if (!json_object_get(v, "return"))
        return err_set(err, QSTILL_E_FAILED,
                       "the guest agent's answer to '%s' is none", command);
    if (ret)
        *ret = json_incref(json_object_get(v, "return"));
    return 0;
}

/* Takes `arguments` over. */
static int execute(struct qstill_qga *a, const char *command, json_t *arguments,
                   uint32_t timeout_ms, json_t **ret, enum came *came,
                   struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf line = BUF_INIT;
    uint64_t deadline = deadline_in(timeout_ms);

    *came = NOT_SENT;
    if (make_line(&line, "", command, arguments, err) < 0 ||
        sync_agent(a, earlier(deadline, deadline_in(a->timeout_ms)), err) < 0)
        return err->code;
    *came = SENT; /* a part of it, at least, even when this fails */
    if (channel_send(&a->ch, line.data, line.len, -1, deadline, err) < 0)
        return err->code;
    return receive_reply(a, command, deadline, ret, came, err);
}

QSTILL_PUBLIC
int qstill_qga_execute(struct qstill_qga *a, const char *command,
                       json_t *arguments, uint32_t timeout_ms, json_t **ret,
                       struct qstill_error *caller)
{
    struct qstill_error scratch, *err = err_door(caller, &scratch);
    enum came came;

    return execute(a, command, arguments,
                   timeout_ms ? timeout_ms : a->timeout_ms, ret, &came, err);
}

QSTILL_PUBLIC
int qstill_qga_ping(struct qstill_qga *a, struct qstill_error *caller)
{
    return qstill_qga_execute(a, "guest-ping", NULL, 0, NULL, caller);
}

/* ------------------------------------------------------------ freeze and thaw
 */

static int check_count(const char *command, const json_t *ret, uint32_t *count,
                       struct qstill_error *err)
{
    json_int_t n = json_is_integer(ret) ? json_integer_value(ret) : -1;

    if (n < 0 || n > UINT32_MAX)
        return err_set(err, QSTILL_E_FAILED,
                       "the guest agent's answer to '%s' is no number of"
                       " filesystems",
                       command);
    if (count)
        *count = (uint32_t)n;
    return 0;
}

QSTILL_PUBLIC
int qstill_qga_freeze(struct qstill_qga *a, uint32_t timeout_ms,
                      uint32_t *count, struct qstill_error *caller)
{
    struct qstill_error scratch, *err = err_door(caller, &scratch);
    CLEANUP(json_decrefp) json_t *ret = NULL;
    enum came came;

    if (execute(a, "guest-fsfreeze-freeze", NULL,
                timeout_ms ? timeout_ms : FREEZE_TIMEOUT_MS, &ret, &came,
                err) == 0 &&
        check_count("guest-fsfreeze-freeze", ret, count, err) == 0)
        return 0;
    if (came == SENT)
        thaw_blindly(a);
    else if (came == NOT_RUN)
        err->code = QSTILL_E_PRECONDITION;
    return err->code;
}

static int read_status(struct qstill_qga *a, bool *frozen,
                       struct qstill_error *err)
{
    CLEANUP(json_decrefp) json_t *ret = NULL;
    const char *word;
    enum came came;

    if (execute(a, "guest-fsfreeze-status", NULL, a->timeout_ms, &ret, &came,
                err) < 0)
        return err->code;
    word = json_string_value(ret);
    if (!word || (strcmp(word, "frozen") != 0 && strcmp(word, "thawed") != 0))
        return err_set(err, QSTILL_E_FAILED,
                       "the guest agent's freeze status is neither 'frozen' nor"
                       " 'thawed'");
    *frozen = strcmp(word, "frozen") == 0;
    return 0;
}

QSTILL_PUBLIC
int qstill_qga_thaw(struct qstill_qga *a, uint32_t timeout_ms, uint32_t *count,
                    struct qstill_error *caller)
{
    struct qstill_error scratch, *err = err_door(caller, &scratch);
    CLEANUP(json_decrefp) json_t *ret = NULL;
    uint32_t thawed = 0;
    bool frozen = true;
    enum came came;

    if (execute(a, "guest-fsfreeze-thaw", NULL,
                timeout_ms ? timeout_ms : THAW_TIMEOUT_MS, &ret, &came,
                err) < 0) {
        if (err->code == QSTILL_E_UNREACHABLE && came == NOT_SENT)
            thaw_blindly(a);
        return err->code;
    }
    if (check_count("guest-fsfreeze-thaw", ret, &thawed, err) < 0 ||
        read_status(a, &frozen, err) < 0)
        return err->code;
    if (frozen)
        return err_set(err, QSTILL_E_FAILED,
                       "the guest agent says thawed %u, but still frozen",
                       thawed);
    if (count)
        *count = thawed;
    return 0;
}

QSTILL_PUBLIC
int qstill_qga_is_frozen(struct qstill_qga *a, bool *frozen,
                         struct qstill_error *caller)
{
    struct qstill_error scratch, *err = err_door(caller, &scratch);

    return read_status(a, frozen, err);
}

QSTILL_PUBLIC
int qstill_qga_count_filesystems(struct qstill_qga *a, uint32_t *count,
                                 struct qstill_error *caller)
{
    struct qstill_error scratch, *err = err_door(caller, &scratch);
    CLEANUP(json_decrefp) json_t *ret = NULL;
    enum came came;

    if (execute(a, "guest-get-fsinfo", NULL, a->timeout_ms, &ret, &came, err) <
        0)
        return err->code;
    if (!json_is_array(ret))
        return err_set(err, QSTILL_E_FAILED,
                       "the guest agent's list of filesystems is none");
    *count = (uint32_t)json_array_size(ret);
    return 0;
}
