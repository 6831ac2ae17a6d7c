/* SPDX-License-Identifier: MIT */
/*
 * Compares what guests see through two chains. What is the same place of the
 * same file, or zeros on both sides, is not read. What a foreign bottom
 * (chain.h) shows is equal to itself alone.
 */
#ifndef QSTILL_QCOW2_COMPARE_H
#define QSTILL_QCOW2_COMPARE_H

#include "chain.h"

struct compare;

/* Takes both chains over, on failure too. */
int compare_open(struct compare **out, struct chain *a, struct chain *b,
                 struct qstill_error *err);
/* Reads their tables, once and first. */
int compare_load(struct compare *c, struct aio_stop stop,
                 struct qstill_error *err);
/* Some work; *done also at the first difference. */
int compare_step(struct compare *c, bool *done, struct qstill_error *err);
int compare_fd(struct compare *c);
void compare_close(struct compare *c);
void compare_closep(struct compare **c);

/* Of a finished one: false and the first sector that differs. */
bool compare_equal(const struct compare *c, uint64_t *offset);
void compare_progress(const struct compare *c, uint64_t *done, uint64_t *total);

#endif
