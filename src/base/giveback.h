/* SPDX-License-Identifier: MIT */
/*
 * A large file is given back bit by bit. Whoever frees hundreds of MiB at once
 * has a filesystem that is mounted with `discard` tell the disk so in one
 * request, and others wait for the same disk behind it; elsewhere it is one
 * long transaction.
 */
#ifndef QSTILL_BASE_GIVEBACK_H
#define QSTILL_BASE_GIVEBACK_H

/* Before the file's name goes; -1 when it is small, or not to be had. */
int giveback_open(int dirfd, const char *name);
/* After it: frees the blocks and closes it. A file that has another name, or
 * that somebody else has open, is left alone: close() frees it, or does not. */
void giveback_close(int fd);

#endif
