/* SPDX-License-Identifier: MIT */
/*
 * Records of earlier versions, which took a throttle node on top of a disk's
 * image for the image's format. Record, manifests and the header of the first
 * overlay have "throttle" as a format then: no QEMU opens such an overlay by
 * its header, nor can a layer be merged.
 */
#ifndef QSTILL_ENGINE_FORMATS_MEND_H
#define QSTILL_ENGINE_FORMATS_MEND_H

#include "base/buf.h"
#include "base/error.h"

struct session;

/*
 * Puts the image's own format, which the VM's command line tells, in its place
 * everywhere, and says so. Only while the VM is off, and nobody has its images
 * open: else, and when the format cannot be told, that is said. Right to run
 * again when it was cut. `dry_run` only tells.
 */
int formats_mend(struct session *s, bool dry_run, struct buf *text,
                 struct qstill_error *err);

#endif
