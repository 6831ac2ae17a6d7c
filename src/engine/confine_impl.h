/* SPDX-License-Identifier: MIT */
/* Within confine.c and confine_spaces.c. */
#ifndef QSTILL_ENGINE_CONFINE_IMPL_H
#define QSTILL_ENGINE_CONFINE_IMPL_H

#include "confine.h"

#define CONFINE_BIT(i) (1u << (i))

extern const char *const confine_names[CONFINE_APART];

/* Of the process whose /proc directory this is; 0: not known. */
uint64_t confine_space_of(int procfd, unsigned kind);
uint64_t confine_since(int procfd);

/* The kinds, as bits, in which QEMU is apart from us, or was, when it is off,
 * and a new one would be. */
unsigned confine_apart(const struct confine *c, const struct confine *self);

#endif
