/* SPDX-License-Identifier: MIT */
/* What the public image functions share. */
#ifndef QSTILL_ENGINE_IMAGE_H
#define QSTILL_ENGINE_IMAGE_H

#include "qcow2/chain.h"
#include "qstill-image.h"

/* "qcow2", "raw", or NULL: qcow2 if the file begins as one, else raw. A guest
 * can write such a beginning into its raw disk: only for files that the user
 * has named, never for a backing file. */
int image_format_of(const char *path, const char *format,
                    enum qcow2_format *out, struct qstill_error *err);

#endif
