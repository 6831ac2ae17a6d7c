/* SPDX-License-Identifier: MIT */
/* File sets for tests: memory with a content that is known, captured and
 * compared. */
#ifndef QSTILL_TESTS_MEM_SET_H
#define QSTILL_TESTS_MEM_SET_H

#include "memstate/capture.h"
#include "memstate/restore.h"

/* The smallest device state: one section with a footer, no vmdescription. */
extern const uint8_t mem_set_device[];
extern const size_t mem_set_device_len;
int mem_set_device_fd(void);

/* Pseudo-random bytes, never all zero in a page; about `zeros` in 100 pages
 * are zero, in runs. */
void mem_set_fill(uint8_t *data, size_t len, unsigned zeros, unsigned seed);

/* Polls until ready, instant_taken or complete; asserts within 20 s. */
enum mem_set_until { MEM_SET_READY, MEM_SET_INSTANT, MEM_SET_COMPLETE };
struct capture_status mem_set_wait(struct capture *c, enum mem_set_until until);

/* Captures own memory by capture_copy into dirfd; asserts that all is well. */
void mem_set_capture(int dirfd, const struct capture_source *blocks,
                     size_t count);

/* The block's file in dirfd holds exactly these bytes. */
void mem_set_expect(int dirfd, const char *id, const uint8_t *data, size_t len);
/* verify says so; returns its code, the message in err. */
int mem_set_verify(int dirfd, struct qstill_error *err);
int mem_set_wait_restore(struct restore *r, struct restore_result *result,
                         struct qstill_error *err);

#endif
