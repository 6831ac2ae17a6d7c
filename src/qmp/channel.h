/* SPDX-License-Identifier: MIT */
/*
 * A stream socket that carries JSON objects both ways, with a deadline for
 * every step. It knows neither QMP nor the agent: both stand upon it.
 */
#ifndef QSTILL_QMP_CHANNEL_H
#define QSTILL_QMP_CHANNEL_H

#include "wire.h"

struct channel {
    int fd;
    char *name; /* the path, for messages */
    struct wire in;
};
#define CHANNEL_INIT                                                           \
    {                                                                          \
        -1, NULL, WIRE_INIT                                                    \
    }

/*
 * Connects to a unix socket, by a path of any length. UNREACHABLE: no such
 * socket, or nobody listens; BUSY: it listens, but its queue of waiting clients
 * is full until the deadline; PERMISSION.
 */
int channel_connect(struct channel *c, const char *path, uint64_t deadline,
                    struct qstill_error *err);
/* Whether nobody listens there: no such file, or a socket that a dead QEMU
 * left. False when that cannot be told. Does not wait. */
bool channel_is_dead(const char *path);
/* Takes over a connected socket, on failure too. */
int channel_adopt(struct channel *c, int fd, const char *name,
                  struct qstill_error *err);
void channel_fini(struct channel *c);

/* Sends all bytes; `fd` (or -1) goes with the first one. After a failure a part
 * may have gone out. UNREACHABLE on a peer that is gone or does not read. */
int channel_send(struct channel *c, const void *data, size_t len, int fd,
                 uint64_t deadline, struct qstill_error *err);

/* Waits until bytes come and reads once; *got is false when the deadline passed
 * first. UNREACHABLE at the end of the stream. */
int channel_fill(struct channel *c, uint64_t deadline, bool *got,
                 struct qstill_error *err);

/* The next object; NULL in *out when the deadline passed first. CORRUPT: the
 * peer sends no JSON objects (wire.h). */
int channel_receive(struct channel *c, uint64_t deadline, json_t **out,
                    struct qstill_error *err);

#endif
