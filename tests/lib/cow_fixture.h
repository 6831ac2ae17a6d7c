/* SPDX-License-Identifier: MIT */
/* A directory, memory that is written without pause, and its cow capture. */
#ifndef QSTILL_TESTS_COW_FIXTURE_H
#define QSTILL_TESTS_COW_FIXTURE_H

#include "cow_stress.h"
#include "memstate/cow.h"

#define MIB ((size_t)1 << 20)

struct cow_fixture {
    char path[128];
    int dirfd;
    struct cow_stress stress;
    struct cow_stats stats;
    struct capture_options options;
    struct capture_cow_options cow;
    struct qstill_error err;
    uint8_t *rom; /* a small block of the same process */
};

/* Why no capture can be made here, or NULL. */
const char *cow_hindrance(void);
int cow_setup(void **state);
int cow_teardown(void **state);
/* Starts the writers; skips the test, with the reason, where that cannot be. */
void cow_start(struct cow_fixture *f, enum cow_memory kind, bool other);
size_t cow_sources(struct cow_fixture *f, struct capture_source *out);
/* These assert. */
struct capture *cow_open(struct cow_fixture *f);
void cow_instant(struct cow_fixture *f, struct capture *c);
void cow_expect_files(struct cow_fixture *f, const uint8_t *copy);
/* Open, ready, pause, reference, instant, resume, complete, compare. */
void cow_round(struct cow_fixture *f);
/* Empties the directory for another round. */
void cow_empty_dir(struct cow_fixture *f);

#endif
