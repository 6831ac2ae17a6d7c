/* SPDX-License-Identifier: MIT */
/*
 * The QMP client's connection: greeting, capabilities, and all that arrives.
 * Refuses: out-of-band commands, and to guess after a peer broke the protocol:
 * the connection is then dead for good.
 *
 * What arrives: an event goes to the callback or the queue, a reply into the
 * slot of its command (command.c), or nowhere when that was given up.
 * Failures: end of stream, bad JSON, an object that is neither, an unknown id.
 */
#include "client_impl.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/options.h"
#include "deadline.h"
#include "field.h"
#include "schema.h"

#define TIMEOUT_MS          30000
#define GREETING_TIMEOUT_MS 5000

/* --------------------------------------------------------------- small ones */

int client_check_alive(const struct qstill_qmp *q, struct qstill_error *err)
{
    if (q->dead.code == 0)
        return 0;
    *err = q->dead;
    return err->code;
}

int client_die(struct qstill_qmp *q, struct qstill_error *err)
{
    if (err->code == QSTILL_E_CORRUPT) {
        err->code = QSTILL_E_UNREACHABLE;
        err_wrap(err, "'%s' speaks no QMP", q->ch.name);
    }
    if (q->dead.code == 0)
        q->dead = *err;
    return err->code;
}

uint64_t client_deadline(const struct qstill_qmp *q, uint32_t timeout_ms)
{
    if (timeout_ms == QSTILL_QMP_NO_WAIT)
        return DEADLINE_PAST;
    return deadline_in(timeout_ms ? timeout_ms : q->timeout_ms);
}

void client_slot_free(struct slot *s)
{
    json_decref(s->reply);
    *s = (struct slot){0};
}

struct slot *client_slot(struct qstill_qmp *q, uint64_t number)
{
    for (size_t i = 0; i < ARRAY_LEN(q->slots); i++)
        if (q->slots[i].number == number)
            return &q->slots[i];
    return NULL;
}

/* ------------------------------------------------------------------- events */

static json_t *event_unlink(struct qstill_qmp *q, struct event **at)
{
    struct event *e = *at;
    json_t *v = e->json;

    *at = e->next;
    if (!e->next)
        q->events_end = at;
    q->event_count--;
    free(e);
    return v;
}

/* Takes `v` over. */
static int event_arrived(struct qstill_qmp *q, json_t *v,
                         struct qstill_error *err)
{
    struct event *e;

    if (q->event_fn && q->event_fn(q->event_user, v)) {
        json_decref(v);
        return 0;
    }
    e = calloc(1, sizeof(*e));
    if (!e) {
        json_decref(v);
        return err_nomem(err);
    }
    if (q->event_count == QSTILL_QMP_EVENTS_MAX) {
        json_decref(event_unlink(q, &q->events));
        q->events_dropped++;
    }
    e->json = v;
    *q->events_end = e;
    q->events_end = &e->next;
    q->event_count++;
    return 0;
}

/* ------------------------------------------------------------- what arrives */

/* The number of an id of ours; 0 for any other. */
static uint64_t id_number(const char *id)
{
    const size_t prefix = strlen(CLIENT_ID_PREFIX);

    if (strncmp(id, CLIENT_ID_PREFIX, prefix) != 0)
        return 0;
    return strtoull(id + prefix, NULL, 10);
}

static int bad_id(struct qstill_error *err)
{
    return err_set(err, QSTILL_E_CORRUPT,
                   "a reply with an id that no command has");
}

/* Takes `v` over. */
static int reply_arrived(struct qstill_qmp *q, json_t *v,
                         struct qstill_error *err)
{
    CLEANUP(json_decrefp) json_t *reply = v;
    uint64_t number = id_number(field_string(reply, "id", ""));
    struct slot *s = number ? client_slot(q, number) : NULL;

    if (!s || s->reply)
        return bad_id(err);
    if (s->abandoned)
        client_slot_free(s);
    else
        s->reply = take_ptr(&reply);
    return 0;
}

/* Takes `v` over. */
static int object_arrived(struct qstill_qmp *q, json_t *v,
                          struct qstill_error *err)
{
    if (json_object_get(v, "event"))
        return event_arrived(q, v, err);
    if (json_object_get(v, "return") || json_object_get(v, "error"))
        return reply_arrived(q, v, err);
    json_decref(v);
    return err_set(err, QSTILL_E_CORRUPT,
                   "an object that is neither reply nor event");
}

int client_read_one(struct qstill_qmp *q, uint64_t deadline, bool *got,
                    struct qstill_error *err)
{
    json_t *v = NULL;

    if (client_check_alive(q, err) < 0)
        return err->code;
    if (channel_receive(&q->ch, deadline, &v, err) < 0)
        return client_die(q, err);
    *got = v != NULL;
    if (v && object_arrived(q, v, err) < 0)
        return client_die(q, err);
    return 0;
}

/* ----------------------------------------------------------------- opening */

static int held_by_another(const char *name, const char *why,
                           struct qstill_error *err)
{
    err_set(err, QSTILL_E_BUSY, "another client holds the QMP socket '%s' (%s)",
            name, why);
    return err_hint(err, "QEMU serves one client per socket: close the other,"
                         " or give QEMU one more -qmp socket for qstill; a "
                         "QEMU that is stopped (SIGSTOP) or hangs does not "
                         "greet either");
}

static int take_greeting(struct qstill_qmp *q, uint64_t deadline,
                         struct qstill_error *err)
{
    CLEANUP(json_decrefp) json_t *v = NULL;

    if (channel_receive(&q->ch, deadline, &v, err) < 0)
        return client_die(q, err);
    if (!v)
        return held_by_another(q->ch.name, "no greeting came", err);
    if (!json_is_object(json_object_get(v, "QMP"))) {
        err_set(err, QSTILL_E_CORRUPT, "its first words are no greeting");
        return client_die(q, err);
    }
    return 0;
}

/* `channel` is taken over. */
static int client_new(struct qstill_qmp **out, struct channel *channel,
                      const struct qstill_qmp_options *options,
                      uint64_t deadline, struct qstill_error *err)
{
    CLEANUP(client_closep) struct qstill_qmp *q = calloc(1, sizeof(*q));
    int left;

    if (!q)
        return err_nomem(err);
    q->ch = *channel;
    *channel = (struct channel)CHANNEL_INIT;
    q->events_end = &q->events;
    q->timeout_ms = options->timeout_ms ? options->timeout_ms : TIMEOUT_MS;
    if (take_greeting(q, deadline, err) < 0)
        return err->code;
    left = deadline_left(deadline);
    if (qstill_qmp_execute(q, "qmp_capabilities", NULL,
                           left > 0 ? (uint32_t)left : 1, NULL, err) < 0)
        return err->code;
    *out = take_ptr(&q);
    return 0;
}

static uint64_t greeting_deadline(const struct qstill_qmp_options *options)
{
    return deadline_in(options->greeting_timeout_ms
                           ? options->greeting_timeout_ms
                           : GREETING_TIMEOUT_MS);
}

QSTILL_PUBLIC
int qstill_qmp_open(struct qstill_qmp **out, const char *path,
                    const struct qstill_qmp_options *options,
                    struct qstill_error *caller)
{
    struct qstill_error scratch, *err = err_door(caller, &scratch);
    CLEANUP(channel_fini) struct channel ch = CHANNEL_INIT;
    struct qstill_qmp_options o;
    uint64_t deadline;

    if (options_take(&o, sizeof(o), options, "QMP", err) < 0)
        return err->code;
    deadline = greeting_deadline(&o);
    if (channel_connect(&ch, path, deadline, err) == QSTILL_E_BUSY)
        return held_by_another(path, "others wait for it", err);
    if (ch.fd < 0)
        return err->code;
    return client_new(out, &ch, &o, deadline, err);
}

QSTILL_PUBLIC
int qstill_qmp_open_fd(struct qstill_qmp **out, int fd, const char *name,
                       const struct qstill_qmp_options *options,
                       struct qstill_error *caller)
{
    struct qstill_error scratch, *err = err_door(caller, &scratch);
    CLEANUP(channel_fini) struct channel ch = CHANNEL_INIT;
    struct qstill_qmp_options o;

    /* First of all, since the descriptor is ours now, on failure too. */
    if (channel_adopt(&ch, fd, name, err) < 0 ||
        options_take(&o, sizeof(o), options, "QMP", err) < 0)
        return err->code;
    return client_new(out, &ch, &o, greeting_deadline(&o), err);
}

QSTILL_PUBLIC
void qstill_qmp_close(struct qstill_qmp *q)
{
    if (!q)
        return;
    while (q->events)
        json_decref(event_unlink(q, &q->events));
    for (size_t i = 0; i < ARRAY_LEN(q->slots); i++)
        client_slot_free(&q->slots[i]);
    schema_free(q->schema);
    channel_fini(&q->ch);
    free(q);
}

QSTILL_PUBLIC
int qstill_qmp_fd(const struct qstill_qmp *q)
{
    return q->ch.fd;
}

QSTILL_PUBLIC
const char *qstill_qmp_name(const struct qstill_qmp *q)
{
    return q->ch.name;
}

struct schema *client_schema(const struct qstill_qmp *q)
{
    return q->schema;
}

void client_set_schema(struct qstill_qmp *q, struct schema *schema)
{
    q->schema = schema;
}

/* ---------------------------------------------------------- reading events */

int client_take_event(struct qstill_qmp *q, client_wanted_fn *wanted,
                      const void *user, uint64_t deadline, json_t **out,
                      struct qstill_error *err)
{
    struct event **at = &q->events;
    uint64_t dropped = q->events_dropped;
    bool got = true;

    for (int late = 0;;) {
        for (; *at; at = &(*at)->next) {
            if (wanted && !wanted(user, (*at)->json))
                continue;
            *out = event_unlink(q, at);
            return 0;
        }
        if (!got || late > CLIENT_LATE_MAX) {
            *out = NULL;
            return 0;
        }
        if (client_read_one(q, deadline, &got, err) < 0)
            return err->code;
        if (deadline_left(deadline) == 0)
            late++;
        if (q->events_dropped == dropped)
            continue;
        dropped = q->events_dropped; /* `at` may have gone with the oldest */
        at = &q->events;
    }
}

QSTILL_PUBLIC
int qstill_qmp_next_event(struct qstill_qmp *q, uint32_t timeout_ms,
                          json_t **event, struct qstill_error *caller)
{
    struct qstill_error scratch, *err = err_door(caller, &scratch);

    return client_take_event(q, NULL, NULL, client_deadline(q, timeout_ms),
                             event, err);
}

QSTILL_PUBLIC
uint64_t qstill_qmp_events_dropped(const struct qstill_qmp *q)
{
    return q->events_dropped;
}

QSTILL_PUBLIC
void qstill_qmp_set_event_fn(struct qstill_qmp *q, qstill_qmp_event_fn *fn,
                             void *user)
{
    q->event_fn = fn;
    q->event_user = user;
}

QSTILL_PUBLIC
int qstill_qmp_pump(struct qstill_qmp *q, struct qstill_error *caller)
{
    struct qstill_error scratch, *err = err_door(caller, &scratch);
    bool got = true;

    for (int i = 0; got && i < CLIENT_LATE_MAX; i++)
        if (client_read_one(q, DEADLINE_PAST, &got, err) < 0)
            return err->code;
    return 0;
}
