/* SPDX-License-Identifier: MIT */
/*
 * A client for QEMU's machine protocol (QMP), and for the guest agent's.
 *
 * The conventions of qstill.h hold: 0 or a negative QSTILL_E_* code, the error
 * last and optional, results through `out` and untouched on failure, one
 * thread per handle. JSON values are jansson's; a json_t that is handed out
 * is the caller's (json_decref), one that is passed in is taken over, on
 * failure too.
 *
 * What a client meets:
 * - QSTILL_E_UNREACHABLE: no such socket, nobody behind it, the peer speaks
 *   no QMP, it closed the connection, or a command got no answer in time. But
 *   for the last, the connection is then dead: every further call says so.
 * - QSTILL_E_BUSY (open only): the connection stands but no greeting comes.
 *   QEMU serves one client per socket; the next ones wait unaccepted.
 * - QSTILL_E_FAILED: QEMU's own error; the message has QEMU's words, and
 *   qstill_qmp_error_class() the class.
 * - QSTILL_E_PRECONDITION: the same for the class CommandNotFound.
 * - QSTILL_E_USAGE: an argument that cannot be sent.
 */
#ifndef QSTILL_QMP_H
#define QSTILL_QMP_H

#include <jansson.h>
#include <sys/types.h>

#include "qstill.h"

#ifdef __cplusplus
extern "C" {
#endif

/* -------------------------------------------------------------- connection */

struct qstill_qmp;

struct qstill_qmp_options {
    size_t size;
    uint32_t timeout_ms;          /* for one command; 0: 30000 */
    uint32_t greeting_timeout_ms; /* connect and greeting; 0: 5000 */
};
#define QSTILL_QMP_OPTIONS_INIT                                                \
    {                                                                          \
        sizeof(struct qstill_qmp_options), 0, 0                                \
    }

/*
 * Connects to the unix socket `path` (any length), takes the greeting and
 * negotiates capabilities (none: no out-of-band commands).
 */
int qstill_qmp_open(struct qstill_qmp **out, const char *path,
                    const struct qstill_qmp_options *options,
                    struct qstill_error *err);

/* The same over a connected stream socket, which is taken over (on failure
 * too); `name` stands for it in messages. */
int qstill_qmp_open_fd(struct qstill_qmp **out, int fd, const char *name,
                       const struct qstill_qmp_options *options,
                       struct qstill_error *err);

/* Closes the connection; the VM goes on. NULL is fine. */
void qstill_qmp_close(struct qstill_qmp *q);

/* Becomes readable when a reply or an event comes: then call qstill_qmp_pump().
 * Commands read ahead, so look once (pump, next_event without waiting) before
 * you wait for it. Belongs to the handle. */
int qstill_qmp_fd(const struct qstill_qmp *q);

/* The path or name that it was opened with. */
const char *qstill_qmp_name(const struct qstill_qmp *q);

/* The process that has the other end of the connection open: found by
 * SO_PEERCRED, then verified by the socket's inode below /proc/PID/fd, since
 * the socket's creator need not be QEMU. PERMISSION when /proc does not let us
 * look, NOT_FOUND when no process of our PID namespace has it. */
int qstill_qmp_peer_pid(struct qstill_qmp *q, pid_t *out,
                        struct qstill_error *err);

/* ---------------------------------------------------------------- commands */

/*
 * Runs a command and waits for its reply; `arguments` is an object or NULL and
 * is taken over; `ret` (may be NULL) gets the "return" value. timeout_ms 0
 * means the handle's default. Events that come meanwhile are queued. After a
 * timeout QEMU may still carry the command out; its late reply is discarded.
 */
int qstill_qmp_execute(struct qstill_qmp *q, const char *command,
                       json_t *arguments, uint32_t timeout_ms, json_t **ret,
                       struct qstill_error *err);

/* The same with a file descriptor beside it (SCM_RIGHTS), for `getfd`,
 * `add-fd` and the like; QEMU takes one per command. `fd` stays the caller's
 * and may be closed afterwards. */
int qstill_qmp_execute_fd(struct qstill_qmp *q, const char *command,
                          json_t *arguments, int fd, uint32_t timeout_ms,
                          json_t **ret, struct qstill_error *err);

/*
 * The two halves of execute, for callers with a loop of their own. Send
 * returns at once with the command's number; receive gets that reply, in any
 * order; with timeout_ms QSTILL_QMP_NO_WAIT it takes only what has arrived and
 * fails with QSTILL_E_BUSY when the reply has not. At most
 * QSTILL_QMP_IN_FLIGHT_MAX commands may be without reply (BUSY).
 */
#define QSTILL_QMP_NO_WAIT       UINT32_MAX
#define QSTILL_QMP_IN_FLIGHT_MAX 8 /* QEMU stops reading at this many */
int qstill_qmp_send(struct qstill_qmp *q, const char *command,
                    json_t *arguments, uint64_t *number,
                    struct qstill_error *err);
int qstill_qmp_receive(struct qstill_qmp *q, uint64_t number,
                       uint32_t timeout_ms, json_t **ret,
                       struct qstill_error *err);

/* Of the last command that QEMU refused: "GenericError", "DeviceNotFound", ...
 * and its text; "" when the last command did not fail in QEMU. Valid until the
 * next command. */
const char *qstill_qmp_error_class(const struct qstill_qmp *q);
const char *qstill_qmp_error_text(const struct qstill_qmp *q);

/* ------------------------------------------------------------------ events */

/*
 * The next event in the order of arrival: the whole object with "event",
 * "data" and "timestamp". QSTILL_QMP_NO_WAIT takes only what is there; 0 means
 * the handle's default. *event is NULL, and 0 returned, when none came in time.
 * The queue is bounded: when QSTILL_QMP_EVENTS_MAX wait unread the oldest is
 * dropped and counted.
 */
#define QSTILL_QMP_EVENTS_MAX 4096
int qstill_qmp_next_event(struct qstill_qmp *q, uint32_t timeout_ms,
                          json_t **event, struct qstill_error *err);
uint64_t qstill_qmp_events_dropped(const struct qstill_qmp *q);

/* Called for each event as it is read, whichever call reads it; true: handled,
 * do not queue it. It must not call back into `q`. NULL takes it off. */
typedef bool qstill_qmp_event_fn(void *user, const json_t *event);
void qstill_qmp_set_event_fn(struct qstill_qmp *q, qstill_qmp_event_fn *fn,
                             void *user);

/* Reads what has arrived without waiting: queues events (or gives them to the
 * callback), keeps replies. UNREACHABLE when the peer is gone. */
int qstill_qmp_pump(struct qstill_qmp *q, struct qstill_error *err);

/* ---------------------------------------------------------------- features */

/*
 * What this QEMU understands, from query-qmp-schema: read at the first question
 * and kept for the life of the handle. Paths name a member of an object by its
 * name and of an object inside by dots; lists and alternatives are looked
 * through, and of a union all branches are searched:
 * "capabilities.capability" of migrate-set-capabilities. The answer is *has;
 * an unknown command has no argument.
 */
int qstill_qmp_has_command(struct qstill_qmp *q, const char *command, bool *has,
                           struct qstill_error *err);
int qstill_qmp_has_event(struct qstill_qmp *q, const char *event, bool *has,
                         struct qstill_error *err);
int qstill_qmp_has_argument(struct qstill_qmp *q, const char *command,
                            const char *path, bool *has,
                            struct qstill_error *err);
/* `value` is one of the enumeration of that argument. */
int qstill_qmp_has_value(struct qstill_qmp *q, const char *command,
                         const char *path, const char *value, bool *has,
                         struct qstill_error *err);
/* `path` is a member of what the command returns. */
int qstill_qmp_has_member(struct qstill_qmp *q, const char *command,
                          const char *path, bool *has,
                          struct qstill_error *err);

/* ------------------------------------------------------------- guest agent */

/*
 * The agent's channel keeps stale replies of earlier clients and never says
 * whether anybody listens. So each call first synchronizes (0xFF and
 * guest-sync-delimited with a fresh number), discards all that came before, and
 * has a deadline for everything together. After a failure the handle can be
 * used again: the next call synchronizes anew.
 *
 * UNREACHABLE: nobody answers in time (no agent, guest stopped, socket held by
 * another client), or the peer is gone. FAILED: the agent's own error.
 * A guest that is stopped cannot answer: freeze before `stop`, thaw after
 * `cont`.
 */
struct qstill_qga;

struct qstill_qga_options {
    size_t size;
    uint32_t timeout_ms; /* for a synchronization and short calls; 0: 5000 */
    bool thaw; /* an agent that does not answer when it is opened is sent a
                  thaw all the same, which it finds when it reads on */
};
#define QSTILL_QGA_OPTIONS_INIT                                                \
    {                                                                          \
        sizeof(struct qstill_qga_options), 0, false                            \
    }

/* Connects and synchronizes once. */
int qstill_qga_open(struct qstill_qga **out, const char *path,
                    const struct qstill_qga_options *options,
                    struct qstill_error *err);
int qstill_qga_open_fd(struct qstill_qga **out, int fd, const char *name,
                       const struct qstill_qga_options *options,
                       struct qstill_error *err);
void qstill_qga_close(struct qstill_qga *a);

/* Any command; timeout_ms 0 means the handle's default. */
int qstill_qga_execute(struct qstill_qga *a, const char *command,
                       json_t *arguments, uint32_t timeout_ms, json_t **ret,
                       struct qstill_error *err);
int qstill_qga_ping(struct qstill_qga *a, struct qstill_error *err);

/*
 * Freezes all filesystems of the guest; *count (may be NULL) is how many the
 * agent froze, 0 being an answer and no error. timeout_ms 0 means 60000. When
 * it fails in any way after the command was sent, a thaw is sent as well, so
 * that an agent which comes back later thaws; the error is the freeze's. But
 * PRECONDITION: the agent has not run it (it is disabled, as it also is while
 * somebody else has frozen the guest), and nothing is thawed.
 */
int qstill_qga_freeze(struct qstill_qga *a, uint32_t timeout_ms,
                      uint32_t *count, struct qstill_error *err);
/* Thaws; asks for the status afterwards and fails unless it is "thawed". Right
 * also when nothing is frozen. timeout_ms 0 means 30000. */
int qstill_qga_thaw(struct qstill_qga *a, uint32_t timeout_ms, uint32_t *count,
                    struct qstill_error *err);
int qstill_qga_is_frozen(struct qstill_qga *a, bool *frozen,
                         struct qstill_error *err);
/* How many filesystems the guest has mounted that an agent could freeze. */
int qstill_qga_count_filesystems(struct qstill_qga *a, uint32_t *count,
                                 struct qstill_error *err);

#ifdef __cplusplus
}
#endif

#endif
