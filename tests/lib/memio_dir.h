/* SPDX-License-Identifier: MIT */
/*
 * Scratch directories in memory (tmpfs where there is one), and whole files in
 * and out of them. Helpers of tests: they fail the process with a message
 * instead of returning errors, for a test that cannot write cannot go on.
 */
#ifndef TESTS_MEMIO_DIR_H
#define TESTS_MEMIO_DIR_H

#include <stddef.h>
#include <stdint.h>

/* A new empty directory; free with memio_dir_remove(). */
char *memio_dir_new(void);
/* Removes it with all that is in it and frees the string; NULL is fine. */
void memio_dir_remove(char *dir);
/* Removes what is in it. */
void memio_dir_empty(const char *dir);

/* DIR/NAME, in a static ring of buffers: good for a few calls. */
const char *memio_path(const char *dir, const char *name);

void memio_put(const char *path, const void *data, size_t len);
/* malloc'ed; *len its size. NULL when there is no such file. */
uint8_t *memio_get(const char *path, size_t *len);

/* Calls fn for each regular file below dir, with its path relative to dir. */
void memio_each(const char *dir, void (*fn)(void *user, const char *relative),
                void *user);

/* Says what is wrong and aborts. */
void memio_die(const char *fmt, ...)
    __attribute__((format(printf, 1, 2), noreturn));

#endif
