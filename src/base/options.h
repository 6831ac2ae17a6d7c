/* SPDX-License-Identifier: MIT */
/*
 * Option structs of the public door: the first member is their size, they
 * only ever grow at the end, and zero means default. So a program that was
 * built against an older or a newer header can still be understood.
 */
#ifndef QSTILL_BASE_OPTIONS_H
#define QSTILL_BASE_OPTIONS_H

#include <stddef.h>

#include "error.h"

/* No option struct comes near it: a size above is a struct without one. */
#define OPTIONS_MAX 4096

/*
 * Copies the caller's options `from` (NULL: all defaults) into the struct
 * `to` of `to_size` bytes that this library knows. What an older caller does
 * not have is zero. USAGE when `from` has no size, or when a newer caller
 * asks for something (a byte that is not zero) beyond what is known here.
 * `what` names the options in the message ("create").
 */
int options_take(void *to, size_t to_size, const void *from, const char *what,
                 struct qstill_error *err);

#endif
