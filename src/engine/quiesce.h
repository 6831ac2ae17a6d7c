/* SPDX-License-Identifier: MIT */
/* Freezing the guest's filesystems through its agent, and thawing always. */
#ifndef QSTILL_ENGINE_QUIESCE_H
#define QSTILL_ENGINE_QUIESCE_H

#include "base/error.h"

struct session;

struct quiesce {
    bool frozen;
    uint32_t filesystems;
    double frozen_at_ms;
    double frozen_ms; /* how long, once thawed */
};

/* UNREACHABLE or PRECONDITION with a hint when the agent does not answer; the
 * guest is not frozen then. A paused VM is PRECONDITION. */
int quiesce_freeze(struct session *s, struct quiesce *q,
                   struct qstill_error *err);
/* Thaws with retries; the guest runs. */
int quiesce_thaw(struct session *s, struct quiesce *q,
                 struct qstill_error *err);
/* Whether the agent answers; changes nothing. */
int quiesce_ping(struct session *s, struct qstill_error *err);

#endif
