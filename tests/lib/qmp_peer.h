/* SPDX-License-Identifier: MIT */
/*
 * A scripted QMP (or guest agent's) peer for unit tests: a thread at the other
 * end of a socket that follows a script and says at the end whether the client
 * did what the script wants. Scripts are texts or the transcripts of
 * fixtures/qmp/. A script is a list of lines:
 *
 *   # ...       a comment; empty lines too are passed over
 *   C {...}     waits for a command and compares it: "execute" and "arguments"
 *               must be equal; a string "*" in the script matches any value
 *   S {...}     sends the object; a return or an error gets the id of the last
 *               command first
 *   R text      sends the text as it is: \n, \r, \\ and \xNN are replaced, and
 *               $SYNC by arguments.id of the last command
 *   A {...}     a standing answer: this command may come at any time from here
 *   = {...}     on, any number of times, and gets the reply of the next line
 *   FD text     the last command must have brought a file descriptor: writes
 *               the text into it and closes it (one that is not so announced is
 *               a failure)
 *   TRICKLE n text   sends the text n times, 10 ms apart, or until the client
 *               closes
 *   SLEEP ms
 *   CLOSE       closes the connection
 *   IGNORE      reads on until the client closes, and cares for nothing
 *
 * At its end the script waits for the client to close; only standing answers
 * may still be asked for. 0xFF bytes before a command (an agent's sentinel) are
 * taken away.
 */
#ifndef QSTILL_TESTS_QMP_PEER_H
#define QSTILL_TESTS_QMP_PEER_H

#include "qstill-qmp.h"

struct qmp_peer;

/* A greeting and the negotiation, to begin a script with. */
#define QMP_PEER_GREETING                                                      \
    "S {\"QMP\":{\"version\":{\"qemu\":{\"major\":7,\"minor\":2,\"micro\":22}" \
    ",\"package\":\"test\"},\"capabilities\":[\"oob\"]}}\n"                    \
    "C {\"execute\":\"qmp_capabilities\"}\n"                                   \
    "S {\"return\":{}}\n"

/* At one end of a socket pair; *fd is the client's end, the caller's. All of
 * these assert. */
struct qmp_peer *qmp_peer_start(const char *script, int *fd);
/* At a unix socket of that path, for one client. */
struct qmp_peer *qmp_peer_listen(const char *script, const char *path);

/* The same with a client that is connected: the greeting goes before a script
 * that has none of its own. Timeouts: 20 s. */
struct qmp_peer *qmp_peer_client(const char *script, struct qstill_qmp **q);
/* With the transcript fixtures/qmp/NAME. */
struct qmp_peer *qmp_peer_replay(const char *name, struct qstill_qmp **q);

/* Waits for the script's end: close the client before. Fails the test when the
 * client did other than the script says. */
void qmp_peer_finish(struct qmp_peer *p);
/* Closes the client, then that. */
void qmp_peer_close(struct qmp_peer *p, struct qstill_qmp *q);

/* What a call returned and left in *err: the code, and a message with these
 * words in it. */
void qmp_peer_error(const struct qstill_error *err, int rc, int code,
                    const char *words);

#endif
