/* SPDX-License-Identifier: MIT */
/*
 * Commands: sent with an id each, their replies taken in any order.
 *
 * slot taken -> sent -> read until its reply is in the slot (events and other
 * replies on the way are kept) -> slot freed.
 * Failures: a timeout leaves the slot to the late reply, which is thrown away
 * when it comes; a command that went out in part makes the connection dead.
 */
#include "client_impl.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "deadline.h"
#include "field.h"

/* The command's line, ready to be sent. QEMU needs no newline, but peers that
 * read lines do. Takes `arguments` over. */
static int command_line(const char *command, json_t *arguments, uint64_t number,
                        struct buf *out, struct qstill_error *err)
{
    CLEANUP(json_decrefp) json_t *args = arguments;
    CLEANUP(json_decrefp) json_t *msg = NULL;
    CLEANUP(freep) char *text = NULL;
    char id[sizeof(CLIENT_ID_PREFIX) + 20];

    if (args && !json_is_object(args))
        return err_set(err, QSTILL_E_USAGE,
                       "the arguments of '%s' are no JSON object", command);
    snprintf(id, sizeof(id), CLIENT_ID_PREFIX "%" PRIu64, number);
    msg = json_pack("{s:s, s:O*, s:s}", "execute", command, "arguments", args,
                    "id", id);
    text = msg ? json_dumps(msg, JSON_COMPACT) : NULL;
    if (!text)
        return err_set(err, QSTILL_E_USAGE, "cannot make a message of '%s'",
                       command);
    if (buf_puts(out, text) < 0 || buf_puts(out, "\n") < 0)
        return err_nomem(err);
    return 0;
}

/* Takes `arguments` over. */
static int send_command(struct qstill_qmp *q, const char *command,
                        json_t *arguments, int fd, uint64_t *number,
                        struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf line = BUF_INIT;
    struct slot *s = client_slot(q, 0);

    q->error_class[0] = q->error_text[0] = '\0';
    if (command_line(command, arguments, q->last_number + 1, &line, err) < 0)
        return err->code;
    if (client_check_alive(q, err) < 0)
        return err->code;
    if (!s)
        return err_set(err, QSTILL_E_BUSY,
                       "QEMU owes the replies to %d commands, '%s' must wait",
                       QSTILL_QMP_IN_FLIGHT_MAX, command);
    if (channel_send(&q->ch, line.data, line.len, fd,
                     deadline_in(q->timeout_ms), err) < 0)
        return client_die(q, err);
    s->number = ++q->last_number;
    snprintf(s->command, sizeof(s->command), "%s", command);
    *number = s->number;
    return 0;
}

static int refused(struct qstill_qmp *q, const struct slot *s,
                   const json_t *error, struct qstill_error *err)
{
    const char *class = field_string(error, "class", "");
    int code = strcmp(class, "CommandNotFound") == 0 ? QSTILL_E_PRECONDITION
                                                     : QSTILL_E_FAILED;

    field_printable(q->error_class, sizeof(q->error_class), class);
    field_printable(q->error_text, sizeof(q->error_text),
                    field_string(error, "desc", "(no text)"));
    return err_set(err, code, "QEMU refuses '%s': %s", s->command,
                   q->error_text);
}

/* Turns the reply in the slot into a result and frees the slot. */
static int take_reply(struct qstill_qmp *q, struct slot *s, json_t **ret,
                      struct qstill_error *err)
{
    json_t *error = json_object_get(s->reply, "error");

    if (error) {
        refused(q, s, error, err);
        client_slot_free(s);
        return err->code;
    }
    if (ret)
        *ret = json_incref(json_object_get(s->reply, "return"));
    client_slot_free(s);
    return 0;
}

/* Reads until the slot has its reply or the deadline passes. */
static int await_reply(struct qstill_qmp *q, const struct slot *s,
                       uint64_t deadline, struct qstill_error *err)
{
    bool got = true;

    for (int late = 0; !s->reply && got && late < CLIENT_LATE_MAX;) {
        if (client_read_one(q, deadline, &got, err) < 0)
            return err->code;
        if (deadline_left(deadline) == 0)
            late++;
    }
    return 0;
}

/* The whole wait; who does not get his reply in time gives it up. */
static int receive(struct qstill_qmp *q, struct slot *s, uint32_t timeout_ms,
                   json_t **ret, struct qstill_error *err)
{
    if (await_reply(q, s, client_deadline(q, timeout_ms), err) < 0)
        return err->code;
    if (s->reply)
        return take_reply(q, s, ret, err);
    if (timeout_ms == QSTILL_QMP_NO_WAIT)
        return err_set(err, QSTILL_E_BUSY, "no answer to '%s' yet", s->command);
    s->abandoned = true;
    err_set(err, QSTILL_E_UNREACHABLE,
            "QEMU has not answered '%s' within %u ms", s->command,
            timeout_ms ? timeout_ms : q->timeout_ms);
    return err_hint(err, "QEMU may be stuck on slow or failing storage; the"
                         " command may still take effect");
}

static int execute(struct qstill_qmp *q, const char *command, json_t *arguments,
                   int fd, uint32_t timeout_ms, json_t **ret,
                   struct qstill_error *err)
{
    uint64_t number;

    if (timeout_ms == QSTILL_QMP_NO_WAIT) {
        json_decref(arguments);
        return err_set(err, QSTILL_E_USAGE,
                       "'%s' cannot be executed without waiting", command);
    }
    if (send_command(q, command, arguments, fd, &number, err) < 0)
        return err->code;
    return receive(q, client_slot(q, number), timeout_ms, ret, err);
}

QSTILL_PUBLIC
int qstill_qmp_execute(struct qstill_qmp *q, const char *command,
                       json_t *arguments, uint32_t timeout_ms, json_t **ret,
                       struct qstill_error *caller)
{
    struct qstill_error scratch, *err = err_door(caller, &scratch);

    return execute(q, command, arguments, -1, timeout_ms, ret, err);
}

QSTILL_PUBLIC
int qstill_qmp_execute_fd(struct qstill_qmp *q, const char *command,
                          json_t *arguments, int fd, uint32_t timeout_ms,
                          json_t **ret, struct qstill_error *caller)
{
    struct qstill_error scratch, *err = err_door(caller, &scratch);

    if (fd < 0) {
        json_decref(arguments);
        return err_set(err, QSTILL_E_USAGE, "'%s' needs a file descriptor",
                       command);
    }
    return execute(q, command, arguments, fd, timeout_ms, ret, err);
}

QSTILL_PUBLIC
int qstill_qmp_send(struct qstill_qmp *q, const char *command,
                    json_t *arguments, uint64_t *number,
                    struct qstill_error *caller)
{
    struct qstill_error scratch, *err = err_door(caller, &scratch);

    return send_command(q, command, arguments, -1, number, err);
}

QSTILL_PUBLIC
int qstill_qmp_receive(struct qstill_qmp *q, uint64_t number,
                       uint32_t timeout_ms, json_t **ret,
                       struct qstill_error *caller)
{
    struct qstill_error scratch, *err = err_door(caller, &scratch);
    struct slot *s = number ? client_slot(q, number) : NULL;

    q->error_class[0] = q->error_text[0] = '\0';
    if (!s || s->abandoned)
        return err_set(err, QSTILL_E_USAGE,
                       "no command with number %" PRIu64 " awaits a reply",
                       number);
    return receive(q, s, timeout_ms, ret, err);
}

QSTILL_PUBLIC
const char *qstill_qmp_error_class(const struct qstill_qmp *q)
{
    return q->error_class;
}

QSTILL_PUBLIC
const char *qstill_qmp_error_text(const struct qstill_qmp *q)
{
    return q->error_text;
}

int client_call(struct qstill_qmp *q, const char *command, json_t *arguments,
                json_t **ret, struct qstill_error *err)
{
    if (!arguments)
        return err_set(err, QSTILL_E_USAGE,
                       "an argument of '%s' cannot be sent: it is not UTF-8",
                       command);
    return execute(q, command, arguments, -1, 0, ret, err);
}

int client_ask(struct qstill_qmp *q, const char *command, json_t **ret,
               struct qstill_error *err)
{
    return execute(q, command, NULL, -1, 0, ret, err);
}
