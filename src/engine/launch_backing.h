/* SPDX-License-Identifier: MIT */
/*
 * The "backing" of a node on the command line overrides what its image's header
 * says. Below an image of ours the headers decide, all the way down: so it goes
 * from the command line where it said the same, and is refused elsewhere.
 */
#ifndef QSTILL_ENGINE_LAUNCH_BACKING_H
#define QSTILL_ENGINE_LAUNCH_BACKING_H

#include "launch_args.h"
#include "launch_opts.h"

/*
 * NULL when the node at `prefix` of `o`, which opens the qcow2 image `path`,
 * would be the same without its "backing"; else what differs, for messages
 * (static). Nodes that are named are looked for in `args`.
 */
const char *launch_backing_differs(const struct launch_args *args,
                                   const char *cwd, const struct opts *o,
                                   const char *prefix, const char *path);

/* Drops the -blockdev of that node and those that only it has used. What
 * another option names stays; false when that is an image that QEMU opens for
 * writing: the chain of the headers could not have it open, too. */
bool launch_backing_prune(struct launch_args *args, const char *node);

#endif
