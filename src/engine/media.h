/* SPDX-License-Identifier: MIT */
/*
 * What is in the drives that the guest reads, and whose medium can be changed:
 * a guest whose memory comes back has that one mounted and cached.
 */
#ifndef QSTILL_ENGINE_MEDIA_H
#define QSTILL_ENGINE_MEDIA_H

#include "json.h"

struct session;

struct medium {
    const char *qdev;   /* of the drive: its id or QOM path */
    const char *device; /* the -drive's id; "" without one */
    const char *path;   /* absolute, or what QEMU calls it; "": empty */
    const char *format;
};
struct media {
    size_t count;
    struct medium *items; /* NULL: it is not known */
};

/* Of a VM that answers, into the arena. A medium that can be written is a disk,
 * and none of these. */
int media_read(struct session *s, struct arena *a, struct media *out,
               struct qstill_error *err);
/* Those of them that `then` has otherwise: what is to be put back after
 * media_put(then). */
int media_differing(struct session *s, struct arena *a,
                    const struct media *then, struct media *out,
                    struct qstill_error *err);

/* Whether the media are there for QEMU's user, or in the drives (`in_process`):
 * NOT_FOUND or PERMISSION names one that is not, with what to do; BUSY one that
 * somebody writes to, which QEMU would not open. `force` notes it. */
int media_check(struct session *s, const struct media *m, bool in_process,
                bool force, struct qstill_error *err);

/*
 * Puts them into the drives, and closes the trays: an open one is the device
 * state's to tell. To be done before that is loaded, for the guest is not to
 * see a change. Instead of what is no file, and of what is gone or QEMU cannot
 * open, the drive keeps what is in it, with a note.
 */
int media_put(struct session *s, const struct media *m,
              struct qstill_error *err);

/* An array "media"; null when it is not known. */
void media_from_json(struct json_in *in, const struct json_value *obj,
                     struct media *out);
json_t *media_to_json(const struct media *m);

#endif
