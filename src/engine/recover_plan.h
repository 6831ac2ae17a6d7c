/* SPDX-License-Identifier: MIT */
/* What a recovery is going to do, told from its journal alone. */
#ifndef QSTILL_ENGINE_RECOVER_PLAN_H
#define QSTILL_ENGINE_RECOVER_PLAN_H

#include "base/buf.h"

struct journal;

/* Lines for people; asks no QEMU and changes nothing. */
void recover_plan(int vmfd, const struct journal *j, struct buf *text);

#endif
