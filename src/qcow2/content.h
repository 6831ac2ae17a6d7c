/* SPDX-License-Identifier: MIT */
/* A sum of what a guest sees through a chain, however its layers hold it. */
#ifndef QSTILL_QCOW2_CONTENT_H
#define QSTILL_QCOW2_CONTENT_H

#include "chain.h"

/* Loads the maps. Reads all data that is not a hole. */
int content_sum(struct chain *c, uint64_t *sum, struct qstill_error *err);

#endif
