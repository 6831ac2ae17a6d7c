/* SPDX-License-Identifier: MIT */
/*
 * Bytes from a QMP or agent socket in, whole JSON objects out. Does no I/O, so
 * that it serves blocking and polled callers alike and can be fuzzed. The peer
 * is hostile: what one object may cost is bounded before jansson sees it.
 */
#ifndef QSTILL_QMP_WIRE_H
#define QSTILL_QMP_WIRE_H

#include <jansson.h>

#include "base/buf.h"
#include "base/error.h"

/* Bytes of one object. The largest that QEMU has cause to send is query-block,
 * which nests each disk's whole chain: 100 disks * 300 layers * 0.5 KiB = 15
 * MiB. The schema is 0.25 MiB. */
#define WIRE_MESSAGE_MAX (16u << 20)
/* Nesting: each layer of a chain adds one level; 7 are around it. Jansson
 * parses recursively, some 200 bytes of stack a level: 200 KiB. */
#define WIRE_DEPTH_MAX 1000
/* Values of one object: jansson takes about 100 bytes for each, so 100 MiB;
 * the query-block of above has 100 * 300 * 25 = 750,000. */
#define WIRE_VALUES_MAX (1u << 20)

struct wire {
    struct buf in;
    size_t start; /* of the object under way, or of what is not looked at */
    size_t scan;  /* all before it has been scanned */
    size_t depth;
    size_t values;
    bool in_string;
    bool escaped; /* the byte before was a backslash in a string */
};
#define WIRE_INIT                                                              \
    {                                                                          \
        BUF_INIT, 0, 0, 0, 0, false, false                                     \
    }

void wire_fini(struct wire *w);

/* Adds what was read. Call wire_next() until it gives NULL before adding more:
 * then no more than one object's limit is ever held. */
int wire_feed(struct wire *w, const void *data, size_t len,
              struct qstill_error *err);

/*
 * The next whole object, or NULL in *out when there is none yet. CORRUPT: no
 * JSON object begins here, or a limit is passed, or jansson refuses it; the
 * wire is then good for nothing but wire_skip_past(). An integer beyond 64 bits
 * signed turns all integers of its message into reals.
 */
int wire_next(struct wire *w, json_t **out, struct qstill_error *err);

/* Throws away all up to and including the first `mark` byte, wherever it
 * stands, or everything (false) when there is none; begins anew behind it. */
bool wire_skip_past(struct wire *w, uint8_t mark);

#endif
