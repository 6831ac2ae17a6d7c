/* SPDX-License-Identifier: MIT */
/* Which other files an image's header names, whatever else it holds: for
 * children.c, which must not miss one for damage elsewhere. */
#ifndef QSTILL_QCOW2_STORED_NAMES_H
#define QSTILL_QCOW2_STORED_NAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "base/error.h"
#include "base/io.h"

struct stored_names {
    char *backing; /* NULL: it stands on nothing */
    char **data;   /* its external data file; the extents of a vmdk */
    size_t data_count;
    bool data_untold; /* it has one, but the header does not say which */
    bool data_unread; /* QEMU does not open all of them: extents of a vmdk that
                         are not for writing */
    const char *format; /* "qcow2" (or its first version), "qed" or "vmdk"; NULL
                           of what names nothing */
    bool backing_raw;   /* a qed says that it is not to be guessed */
};

/* `out` must be zeroed. */
int stored_names_read(const struct io *io, int fd, struct stored_names *out,
                      struct qstill_error *err);
void stored_names_fini(struct stored_names *names);

static inline bool stored_names_is_qed(const struct stored_names *names)
{
    return names->format && strcmp(names->format, "qed") == 0;
}

#endif
