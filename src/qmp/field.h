/* SPDX-License-Identifier: MIT */
/*
 * Members of JSON objects that a peer sent, which may be missing or of another
 * type. Getters without an error give a default; those with one fail with
 * FAILED and name the member. `object` may be NULL or no object at all.
 */
#ifndef QSTILL_QMP_FIELD_H
#define QSTILL_QMP_FIELD_H

#include <jansson.h>

#include "base/error.h"

const char *field_string(const json_t *object, const char *key,
                         const char *or_else);
bool field_bool(const json_t *object, const char *key, bool or_else);
/* Negative and other than integers count as missing. */
uint64_t field_u64(const json_t *object, const char *key, uint64_t or_else);
int64_t field_i64(const json_t *object, const char *key, int64_t or_else);

/* A copy of the string, of "" when it is missing; out of memory fails. */
int field_dup(const json_t *object, const char *key, char **out,
              struct qstill_error *err);
/* The same, but a missing one fails. */
int field_need(const json_t *object, const char *key, char **out,
               struct qstill_error *err);
int field_need_u64(const json_t *object, const char *key, uint64_t *out,
                   struct qstill_error *err);

/* A copy that fits and can be shown: control characters become blanks. */
void field_printable(char *out, size_t size, const char *in);

#endif
