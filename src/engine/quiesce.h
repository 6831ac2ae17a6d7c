/* SPDX-License-Identifier: MIT */
/* Freezing the guest's filesystems through its agent, and thawing always. */
#ifndef QSTILL_ENGINE_QUIESCE_H
#define QSTILL_ENGINE_QUIESCE_H

#include "base/error.h"

struct session;

struct quiesce {
    int pid; /* of its QEMU: with that gone nothing is frozen; 0: not known */
    uint64_t pid_start; /* when it began (start.h) */
    bool deaf;          /* QMP does not answer: it is of no help */
    bool sent;          /* the agent may have frozen something */
    bool frozen;
    bool early;           /* somebody may have thawed it before us */
    uint32_t filesystems; /* how many it froze */
    uint32_t mounted;     /* of so many; 0: the agent does not say */
    double frozen_at_ms;
    double frozen_ms; /* how long, once thawed */
};

/* UNREACHABLE or PRECONDITION with a hint when the agent does not answer, BUSY
 * when somebody else has frozen the guest. A paused VM is PRECONDITION. When
 * it fails, a thaw is owed if q->sent. */
int quiesce_freeze(struct session *s, uint32_t timeout_ms, struct quiesce *q,
                   struct qstill_error *err);
/* Thaws with retries, and believes it only when the agent's status says so.
 * When no agent helps, Linux is asked by its keyboard (SysRq-J), which nothing
 * confirms: that is still an error, and recovery tries again. */
int quiesce_thaw(struct session *s, struct quiesce *q,
                 struct qstill_error *err);
/* Once, without waiting for long. */
int quiesce_thaw_once(struct session *s, struct qstill_error *err);
/* Whether the agent says that the guest is frozen, if it answers at once. */
bool quiesce_is_frozen(struct session *s);
/* Whether there is an agent's socket; one of a VM that is off comes with it. */
bool quiesce_has_socket(const struct session *s);
/* Whether the agent answers, without waiting for long. */
int quiesce_reach(struct session *s, struct qstill_error *err);
/* Whether the agent answers, and nobody has frozen the guest (BUSY): such a
 * freeze is not ours to end. Changes nothing. */
int quiesce_check(struct session *s, struct qstill_error *err);

#endif
