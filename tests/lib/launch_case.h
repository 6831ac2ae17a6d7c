/* SPDX-License-Identifier: MIT */
/* One recorded command line and what must come of it. */
#ifndef QSTILL_TESTS_LAUNCH_CASE_H
#define QSTILL_TESTS_LAUNCH_CASE_H

#include "engine/launch.h"

enum { LAUNCH_CASE_WORDS = 24 };

/* Of a process in /vm with this argv and the binary /usr/bin/qemu; borrows. */
struct launch_record launch_case_record(const char *const *argv);
/* Fails, saying `why`, at the first word that differs. */
void launch_case_assert(const char *why, char *const *got,
                        const char *const *want);

#endif
