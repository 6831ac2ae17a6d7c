/* SPDX-License-Identifier: MIT */
/* What the typed calls of this directory use of the client besides its public
 * face. */
#ifndef QSTILL_QMP_CLIENT_H
#define QSTILL_QMP_CLIENT_H

#include "qstill-qmp.h"
#include "base/error.h"

/*
 * Runs a command with arguments that the caller has just built: NULL is a
 * failed building (a string that is not UTF-8, or out of memory), not "none".
 */
int client_call(struct qstill_qmp *q, const char *command, json_t *arguments,
                json_t **ret, struct qstill_error *err);
/* One without arguments. */
int client_ask(struct qstill_qmp *q, const char *command, json_t **ret,
               struct qstill_error *err);

/* Takes the first event that `wanted` accepts, queued or coming before the
 * deadline, out of the queue; NULL in *out when none came. */
typedef bool client_wanted_fn(const void *user, const json_t *event);
int client_take_event(struct qstill_qmp *q, client_wanted_fn *wanted,
                      const void *user, uint64_t deadline, json_t **out,
                      struct qstill_error *err);

/* The schema (schema.h), kept with the client; NULL until it is set. */
struct schema;
struct schema *client_schema(const struct qstill_qmp *q);
void client_set_schema(struct qstill_qmp *q, struct schema *schema);

/* CLEANUP(client_closep) struct qstill_qmp *q = NULL; */
static inline void client_closep(struct qstill_qmp **q)
{
    qstill_qmp_close(*q);
}

#endif
