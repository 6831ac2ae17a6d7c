/* SPDX-License-Identifier: MIT */
/* What the public image functions share. */
#ifndef QSTILL_ENGINE_IMAGE_H
#define QSTILL_ENGINE_IMAGE_H

#include "qcow2/chain.h"
#include "qstill-image.h"

/* "qcow2", "raw", or NULL: qcow2 if the file begins as one. A guest can write
 * that into its raw disk, so nothing but the user's own word or an image that
 * somebody made an overlay of may lead here. */
int image_format_of(const char *path, const char *format,
                    enum qcow2_format *out, struct qstill_error *err);

#endif
