/* SPDX-License-Identifier: MIT */
/* The inside of the QMP client, for client.c (connection, what arrives) and
 * command.c (what is asked) only. */
#ifndef QSTILL_QMP_CLIENT_IMPL_H
#define QSTILL_QMP_CLIENT_IMPL_H

#include "channel.h"
#include "client.h"

#define CLIENT_ID_PREFIX "qstill-"
#define CLIENT_COMMAND_MAX                                                     \
    64 /* bytes of a command's name kept for messages                          \
        */
#define CLIENT_CLASS_MAX 64
/* Objects taken after the deadline of a wait: what had arrived, and no more
 * from a peer that never stops. */
#define CLIENT_LATE_MAX QSTILL_QMP_EVENTS_MAX

/* A command without reply, or with one that nobody has taken. */
struct slot {
    uint64_t number; /* 0: free */
    bool abandoned;  /* nobody waits any more */
    char command[CLIENT_COMMAND_MAX];
    json_t *reply;
};

struct event {
    struct event *next;
    json_t *json;
};

struct qstill_qmp {
    struct channel ch;
    uint32_t timeout_ms;
    uint64_t last_number;
    struct slot slots[QSTILL_QMP_IN_FLIGHT_MAX];
    struct event *events;
    struct event **events_end;
    size_t event_count;
    uint64_t events_dropped;
    qstill_qmp_event_fn *event_fn;
    void *event_user;
    struct schema *schema;
    struct qstill_error dead; /* code 0 while the connection is good */
    char error_class[CLIENT_CLASS_MAX];
    char error_text[sizeof(((struct qstill_error *)0)->message)];
};

/* Fails with the reason when the connection is dead. */
int client_check_alive(const struct qstill_qmp *q, struct qstill_error *err);
/* Remembers why the connection is good for nothing any more. */
int client_die(struct qstill_qmp *q, struct qstill_error *err);
/* By the rules of qstill-qmp.h for timeout_ms. */
uint64_t client_deadline(const struct qstill_qmp *q, uint32_t timeout_ms);
/* Reads one object and puts it where it belongs; *got false: none came. */
int client_read_one(struct qstill_qmp *q, uint64_t deadline, bool *got,
                    struct qstill_error *err);
/* The slot of a command; of 0, a free one. NULL when there is none. */
struct slot *client_slot(struct qstill_qmp *q, uint64_t number);
void client_slot_free(struct slot *s);

#endif
