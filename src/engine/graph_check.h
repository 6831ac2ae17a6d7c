/* SPDX-License-Identifier: MIT */
/* What is below an image in QEMU, compared with what its header says. */
#ifndef QSTILL_ENGINE_GRAPH_CHECK_H
#define QSTILL_ENGINE_GRAPH_CHECK_H

#include "base/error.h"

struct launch_record;
struct qmp_disk;

/*
 * Each qcow2 image of the disk's chain must stand, in QEMU, on the image that
 * its header names (PRECONDITION else, with both): the header is what an
 * overlay, a merge and every later start go by, and a command line can say
 * another thing. What is no plain file, or cannot be read, is taken on trust.
 * `pid`: QEMU's, or 0.
 */
int graph_check_chain(const struct launch_record *launch, int pid,
                      const struct qmp_disk *q, struct qstill_error *err);
/* The names of what is below the disk's image lead to the files that QEMU has
 * open (PRECONDITION else): a name, or a link on the way to it, may be another
 * file's by now. As far as it can be told. */
int graph_check_open(const struct launch_record *launch, int pid,
                     const struct qmp_disk *q, struct qstill_error *err);

#endif
