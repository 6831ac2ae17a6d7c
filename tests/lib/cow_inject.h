/* SPDX-License-Identifier: MIT */
/* A system call run in a target (cow_target.h), and what is expected of it. */
#ifndef QSTILL_TESTS_COW_INJECT_H
#define QSTILL_TESTS_COW_INJECT_H

#include "cow_target.h"
#include "memstate/inject.h"

struct inject_call cow_eventfd_call(unsigned value);

/* Asserts that it works, and that the target's descriptors are as before. */
void cow_inject_once(const struct cow_target *t, unsigned value);
/* Asserts that it fails after 150 ms, with this code and text. */
void cow_inject_refused(const struct cow_target *t, int code, const char *text);

#endif
