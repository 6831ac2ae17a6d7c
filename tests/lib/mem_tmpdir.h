/* SPDX-License-Identifier: MIT */
/* A directory of a test's own, removed with what is in it (one level). */
#ifndef QSTILL_TESTS_MEM_TMPDIR_H
#define QSTILL_TESTS_MEM_TMPDIR_H

/* Returns an fd; `path` gets the name. Asserts. */
int mem_tmpdir_make(char path[128]);
void mem_tmpdir_remove(const char *path, int fd);
void mem_tmpdir_empty(int fd);
/* Number of names in it, "." and ".." not counted. */
unsigned mem_tmpdir_count(int fd);

#endif
