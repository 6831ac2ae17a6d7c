/* SPDX-License-Identifier: MIT */
/*
 * The answer of query-qmp-schema as something that can be asked. It is a list
 * of commands, events and types that name each other; a hostile one may do so
 * in circles, so every question has a bounded number of steps.
 */
#ifndef QSTILL_QMP_SCHEMA_H
#define QSTILL_QMP_SCHEMA_H

#include <jansson.h>

#include "base/error.h"

struct schema;

/* Takes `list` over, on failure too. FAILED when it is no schema. */
int schema_parse(json_t *list, struct schema **out, struct qstill_error *err);
void schema_free(struct schema *s);

/* As the qstill_qmp_has_*() of qstill-qmp.h. */
bool schema_has_command(const struct schema *s, const char *name);
bool schema_has_event(const struct schema *s, const char *name);
bool schema_has_argument(const struct schema *s, const char *command,
                         const char *path);
bool schema_has_value(const struct schema *s, const char *command,
                      const char *path, const char *value);
bool schema_has_member(const struct schema *s, const char *command,
                       const char *path);

#endif
