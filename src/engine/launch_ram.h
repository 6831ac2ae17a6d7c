/* SPDX-License-Identifier: MIT */
/*
 * Saved files as the RAM of the next start: memory-backend-file objects,
 * mapped privately, with the ids that the RAM blocks had.
 *
 * Refused: blocks that no backend of the command line makes, memory that
 * others share by its file descriptor (vhost-user, ivshmem) or that must
 * persist (nvdimm), and virtio-mem and, unless the files are opened read-only,
 * a balloon: QEMU discards what those give back by punching holes into the
 * file, share=off or not, and that would ruin the snapshot (seen with 7.2 and
 * 10.0: 64 pages put into the balloon were zeroed in the file).
 */
#ifndef QSTILL_ENGINE_LAUNCH_RAM_H
#define QSTILL_ENGINE_LAUNCH_RAM_H

#include "launch.h"
#include "launch_args.h"

/*
 * When the recorded process was itself started on the RAM files of a snapshot
 * (by name: .../snapshots/ID/memory/BLOCK.ram), its next start must not need
 * them: those backends become anonymous memory.
 */
int launch_ram_unmap(struct launch_args *args, struct qstill_error *err);

int launch_ram_map(struct launch_args *args, const struct launch_change *change,
                   struct qstill_error *err);

#endif
